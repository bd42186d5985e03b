"""From a model and chats to an adapter or a model: it learns, resumes, and says what it is."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from miudo.adapter import base_fingerprint
from miudo.data.chats import ChatSettings
from miudo.data.pipeline import PrepareSettings, prepare
from miudo.decoder.decoder import Decoder
from miudo.decoder.lora import LoraSettings, apply_adapter
from miudo.errors import (
    ConfigError,
    DataError,
    MissingError,
    ModelFileError,
    TokenizerError,
    UsageError,
)
from miudo.formats import open_model
from miudo.formats.peft import read_peft
from miudo.records import Record
from miudo.text.chat import DEFAULT_TEMPLATE
from miudo.train.artefact import begun_as_used, open_decoder
from miudo.train.estimate import estimate
from miudo.train.finetune import defaults, finetune
from miudo.train.lesson import FinetuneJob, chat_samples
from miudo.train.merge import merge_adapter
from miudo.train.preview import preview
from miudo.train.progress import Silent
from miudo.train.settings import FitSettings
from miudo.train.signals import StoppedError

TINY = Path(__file__).parents[1] / "data" / "tiny"
CHATS = [
    ("What is the sky like?", "The sky is blue."),
    ("Who lives in the sea?", "A big fish."),
    ("Say hi", "Hi there, friend!"),
]


def chats(path: Path, pairs: list[tuple[str, str]] = CHATS) -> Path:
    records = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in pairs
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def job(data: Path, out: Path, *, lora: bool = True, **changes: Any) -> FinetuneJob:
    fit = {
        **defaults(lora=lora), "steps": 4, "batch_size": 2, "length": 48, "precision": "f32",
        "compile": "off", "save_every": 1, "keep": 99, "log_every": 1,
    }  # fmt: skip
    fit |= changes.pop("fit", {})
    values: dict[str, Any] = {
        "model": TINY, "inputs": (str(data),), "out": out, "fit": FitSettings(**fit),
        "lora": changes.pop("side", LoraSettings(rank=4)) if lora else None,
        "chat_template": DEFAULT_TEMPLATE,
    }  # fmt: skip
    return FinetuneJob(**values | changes)


def answers(decoder: Decoder, work: FinetuneJob) -> float:
    """The share of the answers' ids that are the most probable."""
    from miudo.data.chats import read_chats

    conversations = list(read_chats(work.inputs, work.chat))
    samples, _ = chat_samples(work, open_decoder(TINY, "model"), conversations)
    right = []
    with torch.no_grad():
        for s in samples:
            best = decoder.logits(decoder(torch.tensor([s.ids])))[0].argmax(-1)
            right += [int(best[i - 1]) == s.ids[i] for i in range(1, len(s.ids)) if s.counted[i]]
    return float(np.mean(right))


def test_all_weights_learn_three_conversations_by_heart(tmp_path: Path) -> None:
    work = job(
        chats(tmp_path / "c.jsonl"), tmp_path / "out", lora=False,
        fit={"steps": 80, "lr": 5e-3, "save_every": 0, "warmup": 0.1},
    )  # fmt: skip
    before = open_decoder(TINY, "model").decoder.eval()
    assert answers(before, work) < 0.6
    made = finetune(work)
    assert made.path == tmp_path / "out" / "model"
    file = open_model(made.path)
    assert file.chat_template == DEFAULT_TEMPLATE
    assert answers(Decoder.from_weights(file.config, file.weights).eval(), work) == 1.0
    assert made.fit.loss < 0.1


def test_side_paths_learn_them_too_with_the_defaults(tmp_path: Path) -> None:
    work = job(chats(tmp_path / "c.jsonl"), tmp_path / "out", fit={"steps": 150, "save_every": 0})
    base = open_decoder(TINY, "model")
    before = answers(base.decoder.eval(), work)
    made = finetune(work)
    adapter = read_peft(made.path, base.file.config)
    after = answers(apply_adapter(base.decoder, adapter).eval(), work)
    assert before < 0.6
    assert after > 0.95


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of an adapter."""
    root = tmp_path_factory.mktemp("adapted")
    finetune(job(chats(root / "c.jsonl"), root / "out"))
    return root


def test_an_adapter_knows_its_base_and_how_it_was_made(adapted: Path) -> None:
    base = open_model(TINY)
    adapter = read_peft(adapted / "out" / "adapter", base.config)
    assert adapter.base == base_fingerprint(base.config, base.weights)
    assert adapter.tokenizer == open_decoder(TINY, "model").tokenizer().fingerprint
    assert len(adapter.parts) == 7 * 3
    record = Record.read(adapted / "out" / "adapter")
    assert record is not None
    assert [p.verb for p in record.parents] == ["train"]
    assert [p.role for p in record.inputs] == ["model", "data"]
    measured = {m.name: m.value for m in record.measurements}
    assert measured["trainable_parameters"] == sum(
        p.up.size + p.down.size for p in adapter.parts.values()
    )
    assert measured["conversations"] == 3
    assert 0 < measured["answer_tokens"] < measured["sample_tokens"]
    assert record.settings["lora"]["rank"] == 4
    assert (adapted / "out" / "adapter" / "chat_template.jinja").read_text() == DEFAULT_TEMPLATE


def test_an_adapter_on_its_base_is_the_merged_model(adapted: Path, tmp_path: Path) -> None:
    folder = adapted / "out" / "adapter"
    base = open_decoder(TINY, "model")
    decoder = apply_adapter(base.decoder.eval(), read_peft(folder, base.file.config))
    merged = open_model(merge_adapter(TINY, folder, tmp_path / "m").path)
    ids = torch.arange(30)[None] * 13 % 512
    # In float64, so that nothing differs but the rounding of the merged weights.
    decoder = decoder.double()
    found_by = Decoder.from_weights(merged.config, merged.weights).eval().double()
    with torch.no_grad():
        wanted = decoder.logits(decoder(ids))
        found = found_by.logits(found_by(ids))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert merged.chat_template == DEFAULT_TEMPLATE


def test_a_broken_run_goes_on_to_the_same_adapter(adapted: Path, tmp_path: Path) -> None:
    shutil.copytree(adapted / "out", tmp_path / "out")
    for step in (3, 4):
        shutil.rmtree(tmp_path / "out" / "checkpoints" / f"step-{step:08d}")
    shutil.rmtree(tmp_path / "out" / "adapter")  # killed before it was written
    work = job(adapted / "c.jsonl", tmp_path / "out")
    with pytest.raises(UsageError, match="holds a run"):
        finetune(work)
    finetune(work, resume=True)
    name = "adapter/adapter_model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (adapted / "out" / name).read_bytes()


def test_resuming_with_other_data_or_settings_is_refused(adapted: Path, tmp_path: Path) -> None:
    other = chats(tmp_path / "c.jsonl", CHATS[:2])
    for work in (
        job(other, adapted / "out"),
        job(adapted / "c.jsonl", adapted / "out", lora=False),
        job(adapted / "c.jsonl", adapted / "out", fit={"lr": 0.5}),
    ):
        with pytest.raises(UsageError, match="was started with another model, other text"):
            finetune(work, resume=True)


def test_a_run_of_an_older_miudo_knows_fewer_settings(adapted: Path, tmp_path: Path) -> None:
    shutil.copytree(adapted / "out", tmp_path / "out")
    path = tmp_path / "out" / "run.json"
    begun = json.loads(path.read_text())
    assert begun["settings"]["prepare"]["pack"].pop("begin_token", 1) is None
    path.write_text(json.dumps(begun))
    finetune(job(adapted / "c.jsonl", tmp_path / "out"), resume=True)


def test_where_no_run_began_none_is_resumed(adapted: Path, tmp_path: Path) -> None:
    shutil.copytree(adapted / "out" / "adapter", tmp_path / "adapter")
    before = (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes()
    with pytest.raises(MissingError, match=r"holds no run. Start one without --resume"):
        finetune(job(adapted / "c.jsonl", tmp_path), resume=True)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes() == before


def test_ctrl_c_leaves_a_state_to_go_on_from(
    adapted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import signal

    from miudo.train.stepper import Stepper

    plain = Stepper.take

    def take(self: Stepper, step: int, plan: Any) -> Any:
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self, step, plan)

    work = job(adapted / "c.jsonl", tmp_path / "out")
    monkeypatch.setattr(Stepper, "take", take)
    with pytest.raises(StoppedError, match="stopped after step 2 of 4"):
        finetune(work)
    monkeypatch.setattr(Stepper, "take", plain)
    assert not (tmp_path / "out" / "adapter").exists()
    finetune(work, resume=True)
    name = "adapter/adapter_model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (adapted / "out" / name).read_bytes()


class Notes(Silent):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.parametrize(("end", "stops"), [("<|end|>", True), ("<|pad|>", False), ("", False)])
def test_answers_that_end_where_the_model_does_not_stop_are_told(
    tmp_path: Path, end: str, stops: bool
) -> None:
    template = DEFAULT_TEMPLATE.replace("<|end|>", end)
    notes = Notes()
    finetune(job(chats(tmp_path / "c.jsonl"), tmp_path / "o", chat_template=template), notes)
    assert stops == (not any("it will go on and on" in text for text in notes.said))


def test_epochs_become_steps_and_small_data_small_batches(tmp_path: Path) -> None:
    pairs = [(f"q{i} is?", f"a{i} is.") for i in range(12)]
    data = chats(tmp_path / "c.jsonl", pairs)
    notes = Notes()
    said = notes.said
    made = finetune(
        job(data, tmp_path / "a", epochs=3.0, fit={"batch_size": 16, "length": 32}), notes
    )
    rows = {m.name: m.value for m in made.record.measurements}["rows"]
    assert made.fit.steps == 3  # one batch of all rows an epoch
    assert made.record.settings["fit"]["batch_size"] == rows
    assert any(f"batch_size is {int(rows)}, not 16" in text for text in said)
    assert any("too few conversations to hold any out" in text for text in said)
    assert any(text.startswith("3 steps are few to learn by: a smaller --b") for text in said)
    said.clear()
    finetune(job(data, tmp_path / "b", epochs=6.0, fit={"batch_size": 1, "length": 32}), notes)
    assert not any("are few" in text for text in said)


def test_an_epoch_is_the_same_with_accumulation(tmp_path: Path) -> None:
    data = chats(tmp_path / "c.jsonl", [(f"q{i} is?", f"a{i} is.") for i in range(12)])
    fit, notes = {"batch_size": 1, "length": 32, "accumulate": 64}, Notes()
    made = finetune(job(data, tmp_path / "a", epochs=2.0, fit=fit), notes)
    rows = {m.name: m.value for m in made.record.measurements}["rows"]
    assert made.fit.steps == 2
    assert made.record.settings["fit"]["accumulate"] == rows
    assert any(f"accumulate is {int(rows)}, not 64" in text for text in notes.said)


def test_text_begins_as_the_model_is_used(tmp_path: Path) -> None:
    opened = open_decoder(TINY, "model")
    tokenizer, config = opened.tokenizer(), opened.file.config
    name = next(n for n, i in tokenizer.special_ids.items() if i not in config.eos_ids)
    other = dataclasses.replace(config, bos_id=tokenizer.special_ids[name])
    plain = PrepareSettings(dedupe=None)
    assert begun_as_used(plain, tokenizer, config) == plain
    settings = begun_as_used(plain, tokenizer, other)
    (tmp_path / "a.txt").write_text("One day.\n<|endoftext|>\nAnother day.\n")
    data = prepare(
        [str(tmp_path / "a.txt")], tmp_path / "d", tokenizer=tokenizer, settings=settings
    )
    ids = [data.open_split(part).ids(0, 99).tolist() for part in ("train", "held_out")]
    for part in ids:
        assert part[0] == other.bos_id
        assert part.count(other.bos_id) == part.count(data.end_id) == 1
    bare = prepare([str(tmp_path / "a.txt")], tmp_path / "b", tokenizer=tokenizer, settings=plain)
    assert "begin_token" not in bare.manifest["settings"]


def test_conversations_are_held_out_where_there_are_enough(tmp_path: Path) -> None:
    data = chats(tmp_path / "c.jsonl", [(f"q{i} is?", f"a{i} is.") for i in range(20)])
    made = finetune(job(data, tmp_path / "out", chat=ChatSettings(held_out=0.2)))
    measured = {m.name: m.value for m in made.record.measurements}
    assert measured["conversations_held_out"] >= 1
    assert measured["conversations"] + measured["conversations_held_out"] == 20
    assert measured["held_out_loss"] > 0


def test_held_out_conversations_that_fit_no_row_stop_nothing(tmp_path: Path) -> None:
    """Which are held out is chance: a long one there is left out like any other."""
    pairs = [(f"q{i}", "word " * (60 if i % 2 else 1)) for i in range(20)]
    data = chats(tmp_path / "c.jsonl", pairs)
    work = job(data, tmp_path / "out", fit={"length": 24}, chat=ChatSettings(held_out=0.05))
    found = set()
    for seed in range(6):
        fit = dataclasses.replace(work.fit, seed=seed)
        made = finetune(dataclasses.replace(work, fit=fit, out=tmp_path / str(seed)))
        measured = {m.name: m.value for m in made.record.measurements}
        assert measured["exchanges_left_out"] == 10
        assert measured["conversations_held_out"] > 0
        found.add("held_out_loss" in measured)
    assert found == {True, False}


def test_running_text_is_learned_whole(tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_text("\n\n\n".join(f"The {i} cats of house {i} sleep all day." for i in range(60)))
    made = finetune(job(text, tmp_path / "out", chat_template=None, fit={"length": 16}))
    assert made.path.name == "adapter"
    assert [p.verb for p in made.record.parents] == ["train", "prepare"]
    assert not (made.path / "chat_template.jinja").exists()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"chat_template": None}, TokenizerError, "has no chat template.*--chat-template default"),
        ({"fit": {"length": 300}}, ConfigError, "length is 300, the model has 256 positions"),
        ({"fit": {"length": 2}}, DataError, "no exchange fits a row of 2 tokens"),
        ({"side": LoraSettings(rank=65)}, ConfigError, "rank is 65"),
        ({"chat_template": "{{ 1 / 0 }}"}, DataError, "c.jsonl, line 1"),
        ({"chat_template": "hello<|end|>"}, DataError, "writes nothing of the answers"),
        ({"chat_template": "x {{ messages[-1].content }}"}, DataError, "writes a beginning"),
    ],
)
def test_what_cannot_be_is_refused_and_writes_no_result(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    work = job(chats(tmp_path / "c.jsonl"), tmp_path / "out", **changes)
    with pytest.raises(error, match=message):
        finetune(work)
    left = set() if not work.out.exists() else {p.name for p in work.out.iterdir()}
    assert left <= {"run.lock"}


def test_epochs_out_of_range(tmp_path: Path) -> None:
    for epochs in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="epochs is"):
            job(tmp_path / "c.jsonl", tmp_path, epochs=epochs)


def test_a_base_that_no_folder_holds_is_refused_before_training(tmp_path: Path) -> None:
    from miudo.formats.gguf import write_gguf

    file = open_model(TINY)
    layers = list(file.config.layers)
    layers[0] = dataclasses.replace(layers[0], window=8)
    odd = dataclasses.replace(file, config=dataclasses.replace(file.config, layers=tuple(layers)))
    write_gguf(tmp_path / "odd.gguf", odd)
    work = job(chats(tmp_path / "c.jsonl"), tmp_path / "out", model=tmp_path / "odd.gguf")
    for changes in ({}, {"lora": None}):
        with pytest.raises(ModelFileError, match="no Hugging Face folder holds such a"):
            finetune(dataclasses.replace(work, **changes))
    assert not (tmp_path / "out").exists()


def test_a_preview_shows_what_is_learned(tmp_path: Path) -> None:
    work = job(chats(tmp_path / "c.jsonl"), tmp_path / "out")
    shown = preview(work, 2)
    assert len(shown) == 2
    text = "".join(text for text, _ in shown[0].spans)
    assert text.endswith("<|user|>What is the sky like?<|end|><|assistant|>The sky is blue.<|end|>")
    assert [t for t, learned in shown[0].spans if learned] == ["The sky is blue.<|end|>"]
    assert shown[0].where.endswith("c.jsonl, line 1")
    assert not (tmp_path / "out").exists()


def test_a_preview_says_which_special_tokens_were_typed(tmp_path: Path) -> None:
    data = chats(tmp_path / "c.jsonl", [("Hi <|end|>", "Ho"), ("Hi", "Ho")])
    shown = preview(job(data, tmp_path), 2)
    assert [sample.typed for sample in shown] == [("<|end|>",), ()]


def test_a_preview_goes_past_what_fits_no_row(tmp_path: Path) -> None:
    data = chats(tmp_path / "c.jsonl", [("q", "word " * 60), CHATS[2]])
    long, short = preview(job(data, tmp_path / "out"), 2)
    assert "c.jsonl, line 1, messages[1] (" in long.where
    assert long.spans == ()
    assert short.where.endswith("line 2")
    assert short.learned > 0


def test_rows_longer_than_the_model_are_refused_whatever_the_data(tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_text("\n\n\n".join(f"The {i} cats sleep all day." for i in range(99)))
    work = job(text, tmp_path / "out", chat_template=None, fit={"length": 300})
    for step in (estimate, finetune):
        with pytest.raises(ConfigError, match="length is 300, the model has 256 positions"):
            step(work)
    assert not (tmp_path / "out" / "data").exists()


@pytest.mark.parametrize("lora", [True, False])
def test_an_estimate_counts_and_writes_nothing(tmp_path: Path, lora: bool) -> None:
    work = job(chats(tmp_path / "c.jsonl"), tmp_path / "out", lora=lora, epochs=2.0)
    found = estimate(work)
    parts = {part.name: part.size_bytes for part in found.parts}
    config = open_model(TINY).config
    weights = sum(p.numel() for p in Decoder(config).parameters())
    trained = sum(4 * (a + b) for a, b in shapes(config)) if lora else weights
    assert parts["weights"] == 4 * (weights + (trained if lora else 0))
    assert parts["gradients"] == 4 * trained
    assert parts["moments"] == 8 * trained
    assert found.other_bytes < found.total_bytes  # with checkpointing
    assert found.plan.steps == 2
    assert found.step_s > 0
    assert found.peak_bytes > 0
    assert "measured, largest resident size" in found.text()
    assert not (tmp_path / "out").exists()


def shapes(config: Any) -> list[tuple[int, int]]:
    from miudo.tensors import Role, tensor_table

    table = tensor_table(config)
    return [s.shape for s in table if s.role in (Role.ATTENTION, Role.MLP)]  # type: ignore[misc]
