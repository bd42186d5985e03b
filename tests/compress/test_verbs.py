"""Distil, prune and quantise from file to file: what is written, what its record says."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from miudo.compress.distill.divergence import Divergence
from miudo.compress.distill.terms import (
    DistillSettings,
    FeatureTerm,
    LayerMap,
    Relation,
    RelationTerm,
    ResponseTerm,
)
from miudo.compress.jobs import DistillJob, PruneJob, QuantizeJob
from miudo.compress.prune.depth import DepthPruning
from miudo.compress.prune.sparse import SparsePruning
from miudo.compress.prune.width import WidthPruning
from miudo.compress.quantizing import run_quantize
from miudo.compress.verbs import run_distill, run_prune, student_config
from miudo.config import Activation, Mlp, ModelConfig, Norm, Position
from miudo.data.pack import PackSettings
from miudo.data.packed import DataSet
from miudo.data.pipeline import PrepareSettings, prepare
from miudo.decoder.decoder import Decoder
from miudo.errors import (
    CheckFailedError,
    CheckpointError,
    ConfigError,
    DataError,
    ModelFileError,
    TokenizerError,
    TrainingError,
    UsageError,
)
from miudo.files import sha256_file
from miudo.formats import open_model
from miudo.formats.blocks import to_f32
from miudo.formats.hf import write_folder
from miudo.formats.zeros import declared
from miudo.records import Record
from miudo.tensors import DType, parameter_count
from miudo.train.metrics import read_metrics
from miudo.train.pretrain import TrainJob, train
from miudo.train.run_folder import locked_run_folder
from miudo.train.settings import FitSettings

SHAPE = ModelConfig.uniform(
    n_layers=3, d_model=64, n_heads=2, d_ff=160, vocab_size=64, max_positions=32
)
FIT = FitSettings(steps=3, batch_size=2, length=16, eval_tokens=64, seed=4)
PACK = PrepareSettings(vocab_size=300, dedupe=None, pack=PackSettings(held_out=0.2))


def write_text(path: Path, seed: int, documents: int = 40) -> Path:
    draw = np.random.default_rng(seed)
    words = [f"{a}{b}{c}" for a in "bdklm" for b in "aeiou" for c in "nrst"]
    texts = (" ".join(draw.choice(words, 60)) + "." for _ in range(documents))
    path.write_text("\n\n\n".join(texts), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with packed text and a teacher of three steps."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("verbs")
    data = prepare([write_text(folder / "text.txt", 1)], folder / "data", settings=PACK)
    train(TrainJob((str(data.folder),), folder / "run", FIT, SHAPE))
    (folder / "run" / "model").rename(folder / "teacher")
    return folder


def distill_job(work: Path, out: Path) -> DistillJob:
    return DistillJob(work / "teacher", (str(work / "data"),), out, FIT, student=0.3)


def prune_job(work: Path, out: Path) -> PruneJob:
    methods = (DepthPruning(drop=1), WidthPruning(keep=0.5))
    return PruneJob(
        work / "teacher", (str(work / "data"),), out, methods,
        calibration_tokens=200, calibration_length=16,
    )  # fmt: skip


def measured(record: Record) -> dict[str, float]:
    return {m.name: m.value for m in record.measurements}


def values(path: Path) -> dict[str, np.ndarray]:
    return {name: np.array(to_f32(t)) for name, t in open_model(path).weights.items()}


def same(a: Path, b: Path) -> bool:
    x, y = values(a), values(b)
    return x.keys() == y.keys() and all(np.array_equal(x[n], y[n]) for n in x)


def test_distill_writes_a_smaller_model_with_its_lineage(work: Path, tmp_path: Path) -> None:
    made = run_distill(distill_job(work, tmp_path / "out"))
    teacher, student = open_model(work / "teacher"), open_model(made.path)
    assert made.path == tmp_path / "out" / "model"
    assert student.config == made.config == student_config(0.3, teacher.config)
    assert student.tokenizer == teacher.tokenizer
    record = student.record
    assert record is not None
    assert record.verb == "distill"
    assert [parent.verb for parent in record.parents] == ["train", "prepare"]
    assert record.parents[0] == teacher.record
    assert record.inputs[0].role == "teacher"
    found = measured(record)
    assert found["parameters"] == parameter_count(student.config)
    assert found["training_tokens"] == 3 * 2 * 16
    assert found["held_out_loss"] > 0
    assert found["teacher_held_out_loss"] > 0
    assert DistillSettings.from_json(record.settings["loss"]) == DistillSettings.of()
    assert record.seed == 4


def test_distill_is_the_same_twice_and_resumes_to_the_same(work: Path, tmp_path: Path) -> None:
    first = run_distill(distill_job(work, tmp_path / "a"))
    second = run_distill(distill_job(work, tmp_path / "b"))
    assert same(first.path, second.path)
    short = replace(distill_job(work, tmp_path / "c"), fit=FIT)
    run_distill(short)
    for step in ("step-00000003",):  # as if it had been killed before the last save
        for file in sorted((tmp_path / "c" / "checkpoints" / step).iterdir()):
            file.unlink()
        (tmp_path / "c" / "checkpoints" / step).rmdir()
    resumed = run_distill(short, resume=True)
    assert same(first.path, resumed.path)


def test_a_folder_that_holds_a_run_is_refused(work: Path, tmp_path: Path) -> None:
    job = distill_job(work, tmp_path / "out")
    run_distill(job)
    with pytest.raises(UsageError, match="--resume"):
        run_distill(job)


def test_resuming_with_another_loss_is_refused(work: Path, tmp_path: Path) -> None:
    job = distill_job(work, tmp_path / "out")
    run_distill(job)
    other = replace(job, loss=DistillSettings.of(alpha=0.5))
    with pytest.raises(UsageError, match="other settings"):
        run_distill(other, resume=True)


def test_a_student_of_chosen_layers_learns_by_a_recipe_of_terms(work: Path, tmp_path: Path) -> None:
    terms = (
        ResponseTerm(Divergence.REVERSE_KL, weight=0.8),
        FeatureTerm(layers=LayerMap.SURVIVING),
        RelationTerm(Relation.DISTANCE),
    )
    job = replace(
        distill_job(work, tmp_path / "out"), student_layers=(0, 2), loss=DistillSettings(terms)
    )
    made = run_distill(job)
    assert made.config.n_layers == 2
    assert made.record.settings["student_layers"] == [0, 2]
    assert DistillSettings.from_json(made.record.settings["loss"]).terms == terms
    row = read_metrics(tmp_path / "out" / "metrics.jsonl")[-1]
    assert {"reverse_kl", "hidden", "distance"} <= set(row)
    assert same(made.path, run_distill(job, resume=True).path)


def test_two_beginnings_of_a_student_are_refused(work: Path, tmp_path: Path) -> None:
    job = replace(distill_job(work, tmp_path / "out"), student_layers=(0,), start=work / "teacher")
    with pytest.raises(UsageError, match="not with both"):
        run_distill(job)


def test_several_teachers_stand_in_the_record(work: Path, tmp_path: Path) -> None:
    other = replace(distill_job(work, tmp_path / "first"), start=work / "teacher")
    second = run_distill(other).path
    job = replace(
        distill_job(work, tmp_path / "out"),
        more_teachers=(second,),
        loss=replace(DistillSettings(), teacher_weights=(2.0, 1.0)),
    )
    made = run_distill(job)
    roles = [part.role for part in made.record.inputs]
    assert roles == ["teacher", "teacher_2", "data"]
    one = replace(job, out=tmp_path / "one", more_teachers=(), loss=DistillSettings())
    assert not same(made.path, run_distill(one).path)
    with pytest.raises(ConfigError, match="2 weights for 1 teachers"):
        run_distill(replace(job, out=tmp_path / "bad", more_teachers=()))


def test_a_second_teacher_of_another_tokenizer_is_refused(work: Path, tmp_path: Path) -> None:
    data = prepare([write_text(tmp_path / "other.txt", 2)], tmp_path / "data", settings=PACK)
    train(TrainJob((str(data.folder),), tmp_path / "run", FIT, SHAPE))
    job = replace(distill_job(work, tmp_path / "out"), more_teachers=(tmp_path / "run" / "model",))
    with pytest.raises(ConfigError, match="another tokenizer than the teacher"):
        run_distill(job)


def test_text_of_another_tokenizer_is_refused(work: Path, tmp_path: Path) -> None:
    other = prepare([write_text(tmp_path / "other.txt", 2)], tmp_path / "data", settings=PACK)
    job = replace(distill_job(work, tmp_path / "out"), inputs=(str(other.folder),))
    with pytest.raises(ConfigError, match="another tokenizer than the teacher"):
        run_distill(job)


def test_student_with_another_tokenizer_is_refused(work: Path, tmp_path: Path) -> None:
    data = prepare([write_text(tmp_path / "other.txt", 2)], tmp_path / "data", settings=PACK)
    train(TrainJob((str(data.folder),), tmp_path / "run", FIT, SHAPE))
    job = replace(distill_job(work, tmp_path / "out"), start=tmp_path / "run" / "model")
    with pytest.raises(ConfigError, match="another tokenizer than the teacher"):
        run_distill(job)


def test_raw_text_is_packed_with_the_teachers_tokenizer(work: Path, tmp_path: Path) -> None:
    text = write_text(tmp_path / "new.txt", 3)
    job = replace(distill_job(work, tmp_path / "out"), inputs=(str(text),), prepare=PACK)
    made = run_distill(job)
    assert (tmp_path / "out" / "data" / "manifest.json").is_file()
    assert made.config.vocab_size == open_model(work / "teacher").config.vocab_size


def test_a_teacher_without_tokenizer_is_refused(work: Path, tmp_path: Path) -> None:
    model = open_model(work / "teacher")
    write_folder(tmp_path / "bare", replace(model, tokenizer=None))
    job = replace(distill_job(work, tmp_path / "out"), teacher=tmp_path / "bare")
    with pytest.raises(TokenizerError, match="no tokenizer"):
        run_distill(job)


def test_blocks_longer_than_the_teacher_reads_are_refused(work: Path, tmp_path: Path) -> None:
    fit = replace(FIT, length=64)
    with pytest.raises(ConfigError, match="16 positions"):
        run_distill(replace(distill_job(work, tmp_path / "out"), fit=fit))


def test_prune_shrinks_the_file_and_says_what_went(work: Path, tmp_path: Path) -> None:
    made = run_prune(prune_job(work, tmp_path / "out"))
    opened = open_model(made.path)
    assert opened.config.n_layers == 2
    assert [layer.d_ff for layer in opened.config.layers] == [64, 64]  # 80, in multiples of 32
    assert opened.record is not None
    assert len(opened.record.notes) == 3
    assert opened.record.parents[0].verb == "train"
    found = measured(opened.record)
    assert found["parameters"] == sum(v.size for v in values(made.path).values())
    assert found["weights"] == sum(v.nbytes for v in values(made.path).values())
    assert found["parameters_before"] == parameter_count(open_model(work / "teacher").config)
    assert [report.method for report in made.reports] == ["depth", "width"]
    assert made.fit is None


def test_prune_with_recovery_learns(work: Path, tmp_path: Path) -> None:
    plain = run_prune(prune_job(work, tmp_path / "plain"))
    job = replace(prune_job(work, tmp_path / "out"), fit=FIT)
    made = run_prune(job)
    assert made.config == plain.config
    assert not same(made.path, plain.path)
    assert made.fit is not None
    assert made.fit.steps == 3
    assert "held_out_loss" in measured(made.record)


SPARSE = (SparsePruning("2:4"),)


def zeros_of(path: Path) -> dict[str, int]:
    """The zeros of a file, which its record must name."""
    opened = open_model(path)
    found = {
        name: int((value == 0).sum())
        for name, value in values(path).items()
        if name.startswith("layers.") and value.ndim == 2
    }
    assert opened.record is not None
    assert declared(opened.record) == {name: zeros for name, zeros in found.items() if zeros}
    return found


@pytest.mark.parametrize("repair", [None, 0.01])
def test_a_sparse_model_learns_again_and_stays_sparse(
    repair: float | None, work: Path, tmp_path: Path
) -> None:
    job = replace(prune_job(work, tmp_path / "out"), methods=SPARSE, repair=repair, fit=FIT)
    made = run_prune(job)
    found = zeros_of(made.path)
    sizes = {name: value.size for name, value in values(made.path).items() if name in found}
    assert found == {name: size // 2 for name, size in sizes.items()}
    assert measured(made.record)["zero_weights"] == sum(found.values())
    before = {p.name: sha256_file(p) for p in sorted(made.path.glob("*.safetensors"))}
    shutil.rmtree(made.path)
    for file in (tmp_path / "out" / "checkpoints" / "step-00000003").iterdir():
        file.unlink()
    (tmp_path / "out" / "checkpoints" / "step-00000003").rmdir()
    again = run_prune(job, resume=True)
    assert {p.name: sha256_file(p) for p in sorted(again.path.glob("*.safetensors"))} == before


def test_later_verbs_know_of_the_zeros(work: Path, tmp_path: Path) -> None:
    sparse = run_prune(replace(prune_job(work, tmp_path / "out"), methods=SPARSE)).path
    before = zeros_of(sparse)
    narrow = run_prune(
        replace(
            prune_job(work, tmp_path / "narrow"), model=sparse, methods=(WidthPruning(),), fit=FIT
        )
    )
    kept = zeros_of(narrow.path)
    assert kept["layers.0.attn.q.weight"] == before["layers.0.attn.q.weight"]
    job = replace(distill_job(work, tmp_path / "taught"), start=sparse)
    assert zeros_of(run_distill(job).path) == before
    some = replace(distill_job(work, tmp_path / "layers"), teacher=sparse, student_layers=(0, 2))
    layers = zeros_of(run_distill(some).path)
    assert layers["layers.0.attn.q.weight"] == before["layers.0.attn.q.weight"]
    assert layers["layers.1.mlp.up.weight"] == before["layers.2.mlp.up.weight"]
    rounded = run_quantize(QuantizeJob(sparse, tmp_path / "q8.gguf"))
    found = declared(rounded.record)
    assert all(found[name] >= zeros for name, zeros in before.items())


def test_zeros_without_a_record_are_asked_about(work: Path, tmp_path: Path) -> None:
    sparse = run_prune(replace(prune_job(work, tmp_path / "out"), methods=SPARSE)).path
    (sparse / "record.json").unlink()
    job = replace(prune_job(work, tmp_path / "next"), model=sparse, methods=(WidthPruning(),))
    with pytest.raises(CheckFailedError, match="--keep-zeros, --free-zeros"):
        run_prune(job)
    assert declared(run_prune(replace(job, keep_zeros=True)).record)
    freed = run_prune(replace(job, out=tmp_path / "freed", keep_zeros=False))
    assert not declared(freed.record)


def test_what_no_folder_holds_is_refused_before_it_learns(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BLOOM's files know no other width than four times d_model."""
    made = open_model(work / "teacher")
    config = ModelConfig.uniform(
        n_layers=2, d_model=32, n_heads=2, d_ff=128, vocab_size=made.config.vocab_size,
        max_positions=32, norm=Norm.LAYER, norm_bias=True, position=Position.ALIBI,
        embed_norm=True, mlp=Mlp.PLAIN, activation=Activation.GELU_TANH,
        qkv_bias=True, o_bias=True, mlp_bias=True, eos_ids=made.config.eos_ids,
    )  # fmt: skip
    decoder = Decoder(config)
    decoder.initialise(1)
    bloom = replace(made, config=config, weights=decoder.to_weights(), record=None)
    write_folder(tmp_path / "bloom", bloom)
    monkeypatch.setattr("miudo.compress.prune.recover.distill", never)
    monkeypatch.setattr("miudo.compress.verbs.distill", never)
    job = replace(prune_job(work, tmp_path / "pruned"), model=tmp_path / "bloom", fit=FIT)
    with pytest.raises(ModelFileError, match="no Hugging Face folder holds such"):
        run_prune(job)
    narrow = replace(config, layers=(replace(config.layers[0], d_ff=96),))
    task = DistillJob(
        tmp_path / "bloom", (str(work / "data"),), tmp_path / "small", FIT, student=narrow
    )
    with pytest.raises(ModelFileError, match="no Hugging Face folder holds such"):
        run_distill(task)
    assert not (tmp_path / "small").exists()


def never(*_: object, **__: object) -> None:
    raise AssertionError("it began to learn")


def test_pruning_all_layers_or_nothing_is_refused(work: Path, tmp_path: Path) -> None:
    job = prune_job(work, tmp_path / "out")
    with pytest.raises(ConfigError, match="3 blocks"):
        run_prune(replace(job, methods=(DepthPruning(drop=3),)))
    with pytest.raises(ConfigError, match="nothing is to be pruned"):
        run_prune(replace(job, methods=()))


def test_too_little_text_to_calibrate_is_refused(work: Path, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("two", encoding="utf-8")
    settings = replace(PACK, pack=PackSettings(held_out=0.0))
    job = replace(
        prune_job(work, tmp_path / "out"), inputs=(str(text),), prepare=settings,
    )  # fmt: skip
    with pytest.raises(DataError, match="no block of 16 tokens"):
        run_prune(job)
    assert not (tmp_path / "out" / "model").exists()


@pytest.mark.filterwarnings("ignore:.*weights that are not finite")
@pytest.mark.parametrize("verb", ["distill", "prune", "quantize"])
def test_a_model_with_nan_is_refused_and_nothing_written(
    work: Path, tmp_path: Path, verb: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(work / "teacher", broken)
    # miudo itself writes no such file.
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.1.self_attn.k_proj.weight"][0, 3] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    out = tmp_path / "out"
    calls = {
        "distill": lambda: run_distill(replace(distill_job(work, out), teacher=broken)),
        "prune": lambda: run_prune(replace(prune_job(work, out), model=broken)),
        "quantize": lambda: run_quantize(QuantizeJob(broken, tmp_path / "out.gguf")),
    }
    with pytest.raises(CheckFailedError, match=r"layers\.1\.attn\.k\.weight"):
        calls[verb]()
    assert not (out / "model").exists()
    assert not (tmp_path / "out.gguf").exists()


def test_quantize_writes_one_file_with_everything(work: Path, tmp_path: Path) -> None:
    made = run_quantize(QuantizeJob(work / "teacher", tmp_path / "small.gguf"))
    opened, teacher = open_model(made.path), open_model(work / "teacher")
    assert opened.weights["layers.0.mlp.up.weight"].dtype is DType.Q8_0
    assert opened.weights["norm.weight"].dtype is DType.F32
    assert opened.tokenizer == teacher.tokenizer
    assert opened.record is not None
    assert opened.record.verb == "quantize"
    assert opened.record.parents == (teacher.record,)
    found = measured(opened.record)
    assert found["weights"] == sum(t.data.nbytes for t in opened.weights.values())
    assert found["weights"] < found["weights_before"] / 3
    assert made.reports[0].bits_per_weight == pytest.approx(found["bits_per_weight"])


def test_an_output_that_is_an_input_is_refused(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "teacher", tmp_path / "run" / "model")
    before = values(tmp_path / "run" / "model")
    model, out = tmp_path / "run" / "model", tmp_path / "run"
    small = run_quantize(QuantizeJob(model, tmp_path / "small.gguf")).path
    content = small.read_bytes()
    jobs = (
        lambda: run_distill(replace(distill_job(work, out), teacher=model)),
        lambda: run_distill(replace(distill_job(work, out), start=model)),
        lambda: run_prune(replace(prune_job(work, out), model=model), resume=True),
        lambda: run_quantize(QuantizeJob(small, tmp_path / "run" / ".." / "small.gguf")),
    )
    for job in jobs:
        with pytest.raises(UsageError, match="would overwrite what it is made from"):
            job()
    assert small.read_bytes() == content
    assert sorted(path.name for path in out.iterdir()) == ["model"]
    assert all((value == before[name]).all() for name, value in values(model).items())


@pytest.mark.parametrize("fit", [None, FIT])
def test_prune_replaces_no_model_and_no_run(
    work: Path, tmp_path: Path, fit: FitSettings | None
) -> None:
    shutil.copytree(work / "teacher", tmp_path / "model")
    with pytest.raises(UsageError, match="holds a model already"):
        run_prune(replace(prune_job(work, tmp_path), fit=fit))
    with locked_run_folder(tmp_path), pytest.raises(TrainingError, match="another run trains"):
        run_prune(replace(prune_job(work, tmp_path), fit=fit), resume=True)
    assert open_model(tmp_path / "model").config.n_layers == 3


def test_other_text_is_never_taken_for_the_one_named(work: Path, tmp_path: Path) -> None:
    texts = [write_text(tmp_path / f"{name}.txt", seed) for seed, name in ((5, "a"), (6, "b"))]
    out = tmp_path / "out"
    jobs = [
        replace(prune_job(work, out), inputs=(str(text),), prepare=PACK, fit=FIT) for text in texts
    ]
    broken = replace(jobs[0], methods=(DepthPruning(drop=3),))  # fails after its text is packed
    with pytest.raises(ConfigError, match="3 blocks"):
        run_prune(broken)
    first = DataSet.open(out / "data").manifest["splits"]
    run_prune(jobs[1])
    assert DataSet.open(out / "data").manifest["splits"] != first
    with pytest.raises(UsageError, match="other text"):
        run_prune(jobs[0], resume=True)
    texts[1].unlink()  # what was packed is enough to go on
    assert run_prune(jobs[1], resume=True).fit is not None


def test_a_damaged_runs_file_is_told(work: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"schema": 1,')
    with pytest.raises(CheckpointError, match=r"run\.json: .*another folder"):
        run_prune(prune_job(work, tmp_path), resume=True)


def test_lineage_names_every_input_and_carries_the_licence(work: Path, tmp_path: Path) -> None:
    teacher = open_model(work / "teacher")
    assert teacher.record is not None
    for name, licence in (("free", "Apache-2.0"), ("other", "MIT")):
        record = replace(teacher.record, licence=licence, name=name)
        write_folder(tmp_path / name, replace(teacher, record=record))
    begun = replace(
        distill_job(work, tmp_path / "same"), teacher=tmp_path / "free", start=tmp_path / "free"
    )
    record = run_distill(begun).record
    assert [part.role for part in record.inputs] == ["teacher", "start", "data"]
    assert record.inputs[2].sha256 == sha256_file(work / "data" / "manifest.json")
    assert [parent.verb for parent in record.parents] == ["train", "train", "prepare"]
    assert record.licence == "Apache-2.0"
    mixed = replace(begun, start=tmp_path / "other", out=tmp_path / "mixed")
    assert run_distill(mixed).record.licence is None  # whose holds, a person must say
    pruned = run_prune(replace(prune_job(work, tmp_path / "cut"), model=tmp_path / "other"))
    assert [part.role for part in pruned.record.inputs] == ["model", "data"]
    assert pruned.record.licence == "MIT"
    small = run_quantize(QuantizeJob(pruned.path, tmp_path / "small.gguf"))
    written = open_model(small.path).record
    assert written is not None
    assert written.licence == "MIT"
    assert b"general.license" in small.path.read_bytes()


def test_quantize_needs_a_gguf_name(work: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.gguf"):
        run_quantize(QuantizeJob(work / "teacher", tmp_path / "folder"))
