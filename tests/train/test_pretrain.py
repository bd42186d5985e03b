"""From text to a model's folder, broken and resumed."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from miudo.config import ModelConfig, Position
from miudo.data.mixture import Source
from miudo.data.pack import PackSettings
from miudo.data.packed import DataSet
from miudo.data.pipeline import PrepareSettings, prepare
from miudo.data.sources import ReadSettings
from miudo.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    MissingError,
    TrainingError,
    UsageError,
)
from miudo.files import sha256_file
from miudo.formats import open_model
from miudo.presets import load_preset
from miudo.records import Record
from miudo.text.chat import DEFAULT_TEMPLATE
from miudo.text.templates import BUILT_IN
from miudo.text.tokenizer import TextTokenizer
from miudo.train.pretrain import TrainJob, resume, train
from miudo.train.progress import Silent
from miudo.train.run_folder import locked_run_folder

TEXTS = [
    f"The {a} {b} went to the {c} and saw a {d} there.\n"
    for a in ("old", "young", "small")
    for b in ("cat", "dog", "bird")
    for c in ("town", "sea", "wood")
    for d in ("boat", "tree", "light")
]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on a text file."""
    root = tmp_path_factory.mktemp("pretrain")
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (root / "text.jsonl").write_text(lines)
    train(job(root / "text.jsonl", root / "out"))
    return root


def job(source: Path, out: Path, **changes: Any) -> TrainJob:
    from miudo.train.settings import FitSettings

    settings = FitSettings(
        steps=6, batch_size=2, length=8, save_every=2, precision="f32", compile="off", keep=9
    )
    shape = ModelConfig.uniform(
        vocab_size=512, d_model=32, n_layers=1, n_heads=2, d_ff=32, max_positions=64
    )
    values = {"inputs": (str(source),), "out": out, "settings": settings, "shape": shape}
    prepare = PrepareSettings(vocab_size=300, dedupe=None)
    prepare = dataclasses.replace(prepare, pack=dataclasses.replace(prepare.pack, held_out=0.2))
    return TrainJob(**{**values, "prepare": prepare, **changes})


def test_the_model_is_a_folder_with_its_record(done: Path) -> None:
    out = done / "out"
    model = open_model(out / "model")
    assert model.tokenizer is not None
    tokenizer = TextTokenizer(model.tokenizer)
    assert model.config.vocab_size == tokenizer.padded_size(64)
    assert model.config.eos_ids == (tokenizer.special_ids["<|end|>"],)
    assert model.config.pad_id == tokenizer.special_ids["<|pad|>"]
    record = Record.read(out / "model")
    assert record is not None
    assert record.verb == "train"
    assert record.seed == 0
    assert record.inputs[0].sha256 == sha256_file(out / "data" / "manifest.json")
    assert [parent.verb for parent in record.parents] == ["prepare"]
    measured = {m.name: m.value for m in record.measurements}
    assert measured["steps"] == 6
    assert measured["training_tokens"] == 6 * 2 * 8
    assert 1.0 < measured["held_out_loss"] < 8.0
    assert measured["parameters"] == sum(
        tensor.data.nbytes // 4 for tensor in model.weights.values()
    )
    assert json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["sample"]


def test_a_broken_run_makes_the_same_model(small: Any, done: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(done / "out", out)
    shutil.rmtree(out / "model")
    small.forget_after(out, 2)
    resume(out)
    weights = "model/model.safetensors"
    assert sha256_file(out / weights) == sha256_file(done / "out" / weights)


def test_a_data_folder_is_taken_as_it_is(done: Path, tmp_path: Path) -> None:
    result = train(job(done / "out" / "data", tmp_path / "out"))
    weights = "model/model.safetensors"
    assert not (tmp_path / "out" / "data").exists()
    assert sha256_file(tmp_path / "out" / weights) == sha256_file(done / "out" / weights)
    assert result.folder == tmp_path / "out" / "model"


def test_a_preset_sets_the_vocabulary(done: Path, tmp_path: Path) -> None:
    one = dataclasses.replace(job(done / "text.jsonl", tmp_path / "out"), shape="1m")
    config = train(one).config
    assert config.layers == load_preset("1m").layers
    assert config.vocab_size % 64 == 0


def test_a_run_is_not_started_twice(done: Path) -> None:
    with pytest.raises(UsageError, match="holds a run, saved"):
        train(job(done / "text.jsonl", done / "out"))


def test_there_must_be_a_run_to_resume(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="holds no run"):
        resume(tmp_path)
    (tmp_path / "run.json").write_text('{"schema": 9}')
    with pytest.raises(CheckpointError, match="schema 9"):
        resume(tmp_path)


def test_a_second_trainer_leaves_the_first_ones_files(done: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "data").mkdir(parents=True)
    (out / "data" / "manifest.json").write_text("of the first")
    (out / "run.json").write_text("of the first")
    with locked_run_folder(out):
        with pytest.raises(TrainingError, match="another run trains"):
            train(job(done / "text.jsonl", out))
        with pytest.raises(TrainingError, match="another run trains"):
            resume(out)
    assert (out / "run.json").read_text() == "of the first"
    assert [path.name for path in (out / "data").iterdir()] == ["manifest.json"]
    assert (out / "data" / "manifest.json").read_text() == "of the first"


def test_a_model_that_lies_there_is_not_replaced(done: Path, tmp_path: Path) -> None:
    shutil.copytree(done / "out" / "model", tmp_path / "model")
    with pytest.raises(UsageError, match="holds a model already"):
        train(job(done / "text.jsonl", tmp_path))
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("error", [ValueError, KeyError, TypeError])
def test_a_fault_of_training_is_not_blamed_on_the_runs_file(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    shutil.copytree(done / "out", tmp_path / "out")

    def fault(*_: Any, **__: Any) -> None:
        raise error("a fault")

    monkeypatch.setattr("miudo.train.pretrain.fit", fault)
    with pytest.raises(error, match="a fault"):
        resume(tmp_path / "out")


@pytest.mark.parametrize(
    "text", ["", "[]", '{"schema": 1}', '{"schema": 1, "data": 3}', "[" * 9999]
)
def test_a_damaged_runs_file_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"run\.json: .*another folder"):
        resume(tmp_path)


def test_another_tokenizer_than_the_datas_is_refused(done: Path, tmp_path: Path) -> None:
    from miudo.text.tokenizer import train_bpe

    other = train_bpe(["abc abc abd"], vocab_size=270)
    with pytest.raises(ConfigError, match="packed with another tokenizer"):
        train(job(done / "out" / "data", tmp_path / "out", tokenizer=other))


def test_a_shape_no_format_holds_is_refused_before_training(done: Path, tmp_path: Path) -> None:
    shape = load_preset("1m")
    layers = tuple(dataclasses.replace(layer, rotary=False) for layer in shape.layers)
    shape = dataclasses.replace(shape, position=Position.LEARNED, layers=layers)
    with pytest.raises(ConfigError, match="can hold this shape"):
        train(job(done / "out" / "data", tmp_path / "out", shape=shape))
    assert not (tmp_path / "out").exists()


def test_progress_hears_what_happens(done: Path, tmp_path: Path) -> None:
    class Heard(Silent):
        def __init__(self) -> None:
            self.notes: list[str] = []

        def note(self, text: str) -> None:
            self.notes.append(text)

    heard = Heard()
    train(job(done / "out" / "data", tmp_path / "out"), heard)
    assert heard.notes[0] == "6 steps of 16 tokens, f32, eager, 1 threads"
    assert heard.notes[-1] == f"model written to {tmp_path / 'out' / 'model'}"


def test_a_run_may_start_from_a_model(done: Path, tmp_path: Path) -> None:
    start = done / "out" / "model"
    settings = dataclasses.replace(job(start, start).settings, steps=1, lr=0.0, muon_lr=0.0)
    made = train(
        dataclasses.replace(
            job(done / "text.jsonl", tmp_path / "on"), init=start, settings=settings, shape="1m"
        )
    )
    before, after = open_model(start), open_model(made.folder)
    assert after.config == before.config  # the preset counts for nothing
    assert after.tokenizer == before.tokenizer
    # A step at learning rate 0 moves nothing: these are the weights it started from.
    assert all(
        (after.weights[name].data == tensor.data).all() for name, tensor in before.weights.items()
    )
    record = Record.read(made.folder)
    assert record is not None
    assert [parent.verb for parent in record.parents] == ["prepare", "train"]


def test_a_run_from_a_model_resumes_from_its_checkpoint(done: Path, tmp_path: Path) -> None:
    start = done / "out" / "model"
    for name in ("whole", "broken"):
        wanted = dataclasses.replace(job(done / "text.jsonl", tmp_path / name), init=start)
        train(wanted)
    shutil.rmtree(tmp_path / "broken" / "model")
    resume(tmp_path / "broken", from_step=2)
    weights = [
        sha256_file(tmp_path / n / "model" / "model.safetensors") for n in ("whole", "broken")
    ]
    assert weights[0] == weights[1]


def test_a_run_can_be_ended_where_it_is_and_gone_on_with(done: Path, tmp_path: Path) -> None:
    text = done / "text.jsonl"
    for name in ("whole", "ended"):
        train(job(text, tmp_path / name))
    out = tmp_path / "ended"
    log = (out / "metrics.jsonl").read_text()
    shutil.rmtree(out / "model")
    made = resume(out, from_step=2, end=True)
    assert made.fit.steps == 2
    assert made.fit.held_out_loss is not None
    found = {m.name: m.value for m in made.record.measurements}
    assert found["steps"] == 2
    assert found["training_tokens"] == made.fit.tokens
    assert found["held_out_loss"] == made.fit.held_out_loss
    weights = [
        sha256_file(tmp_path / n / "model" / "model.safetensors") for n in ("whole", "ended")
    ]
    assert weights[0] != weights[1]
    resume(out, from_step=2)
    assert sha256_file(out / "model" / "model.safetensors") == weights[0]
    assert len((out / "metrics.jsonl").read_text().splitlines()) == len(log.splitlines())


def test_a_run_without_a_step_has_nothing_to_end_with(done: Path, tmp_path: Path) -> None:
    train(job(done / "text.jsonl", tmp_path / "out"))
    with pytest.raises(UsageError, match="no step"):
        resume(tmp_path / "out", from_step=0, end=True)


def test_data_of_another_tokenizer_than_the_start_models_is_refused(
    done: Path, tmp_path: Path
) -> None:
    from miudo.data.pipeline import prepare

    other = prepare(
        [done / "text.jsonl"], tmp_path / "data", settings=PrepareSettings(vocab_size=280)
    )
    wanted = dataclasses.replace(
        job(done / "text.jsonl", tmp_path / "on"),
        init=done / "out" / "model",
        inputs=(str(other.folder),),
    )
    with pytest.raises(ConfigError, match="another tokenizer"):
        train(wanted)


def test_the_record_says_how_much_text_was_seen(done: Path) -> None:
    record = Record.read(done / "out" / "model")
    assert record is not None
    found = {m.name: m.value for m in record.measurements}
    assert found["epochs"] == 6 * 16 / found["unique_tokens"]
    assert found["tokens_per_parameter"] == 6 * 16 / found["parameters"]
    bare = found["parameters_without_embeddings"]
    assert found["tokens_per_parameter_without_embeddings"] == 6 * 16 / bare


def chats(path: Path) -> Path:
    records = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "Yes."}]}
        for text in TEXTS
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_chats_are_learned_through_the_template_that_the_model_gets(tmp_path: Path) -> None:
    source, plain = chats(tmp_path / "chats.jsonl"), BUILT_IN["plain"]
    made = train(job(source, tmp_path / "plain", chat_template=plain))
    assert open_model(made.folder).chat_template == plain
    data = DataSet.open(tmp_path / "plain" / "data")
    ids, special = data.open_split("train").ids(0, 200).tolist(), data.tokenizer().special_ids
    assert special["<|user|>"] not in ids
    made = train(job(source, tmp_path / "default"))
    assert open_model(made.folder).chat_template == DEFAULT_TEMPLATE
    data = DataSet.open(tmp_path / "default" / "data")
    ids, special = data.open_split("train").ids(0, 200).tolist(), data.tokenizer().special_ids
    assert special["<|user|>"] in ids
    with pytest.raises(ConfigError, match="packed through another chat template"):
        train(job(data.folder, tmp_path / "other", chat_template=plain))


def test_a_run_does_not_go_on_over_other_weights_of_a_mixture(small: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("\n".join(TEXTS))
    sources = tuple(
        Source(name, f"{name}.txt", "CC0-1.0", read=ReadSettings(split="line")) for name in "ab"
    )
    given = PrepareSettings(
        vocab_size=300, dedupe=None, root=str(tmp_path), sources=sources,
        pack=PackSettings(held_out=0.2),
    )  # fmt: skip
    prepare([], tmp_path / "data", settings=given)
    train(job(tmp_path / "data", tmp_path / "out"))
    small.forget_after(tmp_path / "out", 2)
    heavier = (sources[0], dataclasses.replace(sources[1], weight=20.0))
    prepare([], tmp_path / "data", settings=dataclasses.replace(given, sources=heavier))
    with pytest.raises(DataError, match="is not the data that the run began with"):
        resume(tmp_path / "out")
