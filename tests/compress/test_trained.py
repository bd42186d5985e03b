"""Quantisation-aware distillation: what is learned is what the file holds, and it helps."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from miudo.compress.distill.lesson import Lesson, distill
from miudo.compress.distill.method import held_text
from miudo.compress.jobs import DistillJob
from miudo.compress.quantize.nearest import NearestRounding
from miudo.compress.quantize.trained import (
    ROUNDED_FIT,
    ROUNDED_LOSS,
    RoundedStudent,
    TrainedRounding,
    mean_kl,
)
from miudo.compress.verbs import run_distill
from miudo.config import ModelConfig
from miudo.data.pack import PackSettings
from miudo.data.pipeline import PrepareSettings, prepare
from miudo.decoder.decoder import Decoder
from miudo.decoder.grids import Grid
from miudo.decoder.sparsity import Masks
from miudo.engine.native import NativeEngine
from miudo.errors import ConfigError, UsageError
from miudo.formats import open_model
from miudo.formats.blocks import encode, to_f32
from miudo.formats.sparse import sparse_weights
from miudo.protocol import SeqWork, Want
from miudo.tensors import DType
from miudo.train.pretrain import TrainJob, train
from miudo.train.settings import FitSettings

SHAPE = ModelConfig.uniform(
    n_layers=1, d_model=256, n_heads=4, d_ff=256, vocab_size=64, max_positions=32
)


def parent() -> Decoder:
    decoder = Decoder(SHAPE)
    decoder.initialise(6)
    with torch.no_grad():  # logits that differ, as a trained model's do
        decoder.embed.weight.mul_(4.0)
    return decoder


def text() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 64, (4, 17), generator=generator) for _ in range(4)]


@pytest.mark.parametrize(
    ("dtype", "lr"),
    [(DType.Q2_K, 1e-3), (DType.TQ2_0, 1e-3), (DType.Q3_K, 1e-4), (DType.IQ4_NL, 3e-5)],
)
def test_training_brings_it_nearer_than_rounding(dtype: DType, lr: float) -> None:
    decoder, rows = parent(), text()
    method = TrainedRounding(dtype, tables=dtype, steps=40, batch_size=16, lr=lr)
    given = method.calibrate(decoder, rows)
    made, report = method.apply(decoder, given)
    rounded = RoundedStudent(copy.deepcopy(decoder), dtype, dtype)
    with rounded.weights.shown():
        before = mean_kl(decoder, rounded.student, given, given.length)
    after = mean_kl(decoder, made, given, given.length)
    assert after < 0.8 * before
    assert report.stored_dtypes()["layers.0.mlp.up.weight"] is dtype
    (note,) = [note for note in report.notes if note.startswith("KL")]
    assert note == f"KL {before:.5f} nats a token rounded, {after:.5f} trained"


def test_training_that_does_not_help_is_not_kept() -> None:
    decoder, rows = parent(), text()
    method = TrainedRounding(DType.Q4_0, steps=3, batch_size=4, lr=1.0)  # it tears all apart
    stored, report = method.store(decoder, method.calibrate(decoder, rows))
    assert report.notes[-1] == "training did not help: rounding alone was kept"
    plain = decoder.to_weights()
    for name, tensor in stored.items():
        alone = encode(to_f32(plain[name]), tensor.dtype)
        np.testing.assert_array_equal(tensor.data, alone.data, err_msg=name)


def lesson_of(rows: list[Tensor], steps: int = 6, **changes: object) -> Lesson:
    given = held_text("test", parent(), rows)
    values = {"steps": steps, "batch_size": 4, "length": 16, "save_every": 1, "keep": 99}
    return Lesson(given, FitSettings.from_json(values | ROUNDED_FIT | changes), ROUNDED_LOSS)


def test_a_broken_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Broken in the middle, and where scales stay already."""
    whole = RoundedStudent(parent(), DType.Q2_K, DType.Q4_0)
    distill([parent()], whole.student, lesson_of(text()), tmp_path / "a", stand_in=whole.weights)
    wanted = whole.weights.store()
    for broken in (2, 5):
        shutil.copytree(tmp_path / "a", tmp_path / f"b{broken}")
        for step in range(broken + 1, 7):
            shutil.rmtree(tmp_path / f"b{broken}" / "checkpoints" / f"step-{step:08d}")
        again = RoundedStudent(parent(), DType.Q2_K, DType.Q4_0)
        distill(
            [parent()], again.student, lesson_of(text()), tmp_path / f"b{broken}",
            stand_in=again.weights, resume=True,
        )  # fmt: skip
        for name, tensor in again.weights.store().items():
            np.testing.assert_array_equal(tensor.data, wanted[name].data, err_msg=name)


def test_accumulated_batches_see_the_same_rounded_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two halves of a batch give what the whole gives: rounding happens once a step."""
    # Float32 throughout: bf16, where a processor has it, makes 1e-4 of two orders of summing.
    monkeypatch.setattr("miudo.train.muon.native_bf16", lambda device: False)
    made = []
    for i, changes in enumerate(({"batch_size": 8}, {"batch_size": 4, "accumulate": 2})):
        student = RoundedStudent(parent(), DType.Q3_K, DType.Q8_0)
        lesson = lesson_of(text(), 1, precision="f32", **changes)
        distill([parent()], student.student, lesson, tmp_path / str(i), stand_in=student.weights)
        made.append(student.student.get_parameter("layers.0.attn.q.weight").detach().clone())
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=1e-5)
    assert not torch.equal(made[0], parent().get_parameter("layers.0.attn.q.weight"))


def test_zeros_of_a_sparse_model_stay_in_its_file() -> None:
    decoder = parent()
    matrix = decoder.get_parameter("layers.0.mlp.up.weight")
    with torch.no_grad():
        matrix[:, ::2] = 0.0
    method = TrainedRounding(DType.Q3_K, steps=10, batch_size=8, lr=3e-2)
    made, _ = method.apply(decoder, method.calibrate(decoder, text()))
    found = made.get_parameter("layers.0.mlp.up.weight")
    assert bool((found[:, ::2] == 0).all())
    assert bool((found[:, 1::2] != 0).any())


@pytest.mark.parametrize("dtype", [DType.Q2_K, DType.Q4_1, DType.IQ4_NL])
def test_a_sparse_model_gets_no_type_without_a_zero(dtype: DType) -> None:
    decoder = parent()
    with torch.no_grad():
        decoder.get_parameter("layers.0.mlp.up.weight")[:, ::2] = 0.0
    rounded = RoundedStudent(decoder, dtype, DType.Q8_0)
    with pytest.raises(ConfigError, match=rf"up\.weight is sparse, and {dtype}.*Q4_0"):
        rounded.check_keeps(Masks.of(decoder))


def test_a_type_that_training_cannot_round_to_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"dtype is MXFP4.*Known are"):
        TrainedRounding(DType.MXFP4)
    with pytest.raises(ConfigError, match=r"tables is MXFP4.*Known are"):
        TrainedRounding(tables=DType.MXFP4)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with packed text and a teacher of three steps."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    draw = np.random.default_rng(1)
    words = [f"{a}{b}{c}" for a in "bdklm" for b in "aeiou" for c in "nrst"]
    texts = (" ".join(draw.choice(words, 60)) + "." for _ in range(30))
    (folder / "text.txt").write_text("\n\n\n".join(texts), encoding="utf-8")
    packing = PrepareSettings(vocab_size=300, dedupe=None, pack=PackSettings(held_out=0.2))
    prepare([folder / "text.txt"], folder / "data", settings=packing)
    fit = FitSettings(steps=3, batch_size=2, length=16, eval_tokens=64)
    train(TrainJob((str(folder / "data"),), folder / "run", fit, SHAPE))
    (folder / "run" / "model").rename(folder / "teacher")
    return folder


def job_of(work: Path, out: Path) -> DistillJob:
    values = {"steps": 4, "batch_size": 2, "length": 16, "eval_tokens": 64, "save_every": 1}
    return DistillJob(
        work / "teacher", (str(work / "data"),), out, FitSettings.from_json(values | ROUNDED_FIT),
        loss=ROUNDED_LOSS, dtype=DType.Q2_K, tables=DType.Q6_K,
    )  # fmt: skip


def test_distill_writes_a_file_that_runs_as_it_was_trained(work: Path, tmp_path: Path) -> None:
    made = run_distill(job_of(work, tmp_path / "out"))
    assert made.path == tmp_path / "out" / "model.gguf"
    file = open_model(made.path)
    assert file.weights["layers.0.attn.q.weight"].dtype is DType.Q2_K
    assert file.weights["embed.weight"].dtype is DType.Q6_K
    record = file.record
    assert record is not None
    assert (record.settings["dtype"], record.settings["tables"]) == ("Q2_K", "Q6_K")
    found = {m.name: m.value for m in record.measurements}
    assert 0 < found["kl_trained"] < found["kl_rounded"]
    assert found["training_tokens"] == 4 * 2 * 16
    assert 2.6 < found["bits_per_weight"] < 4.5
    ids = list(range(16))
    engine = NativeEngine(file, activations="float")
    work_item = SeqWork(conversation=engine.open(), ids=ids, want=Want.ALL_LOGITS)
    logits = engine.step([work_item])[0].logits
    assert logits is not None
    twin = Decoder.from_weights(file.config, file.weights)
    with torch.no_grad():
        expected = twin.logits(twin(torch.tensor([ids])))[0].numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


def test_distill_to_a_type_resumes_to_the_same_file(work: Path, tmp_path: Path) -> None:
    first = run_distill(job_of(work, tmp_path / "a"))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for step in (3, 4):
        shutil.rmtree(tmp_path / "b" / "checkpoints" / f"step-{step:08d}")
    (tmp_path / "b" / "model.gguf").unlink()
    again = run_distill(job_of(work, tmp_path / "b"), resume=True)
    one, other = open_model(first.path).weights, open_model(again.path).weights
    for name, tensor in one.items():
        np.testing.assert_array_equal(tensor.data, other[name].data, err_msg=name)
    with pytest.raises(UsageError):  # another type is another run
        run_distill(replace(job_of(work, tmp_path / "b"), dtype=DType.Q3_K), resume=True)


def test_a_smaller_student_may_be_trained_to_be_rounded_too(work: Path, tmp_path: Path) -> None:
    made = run_distill(
        replace(job_of(work, tmp_path / "out"), student=0.5, dtype=DType.Q4_0, tables=None)
    )
    assert made.config != open_model(work / "teacher").config
    assert open_model(made.path).weights["embed.weight"].dtype is DType.Q4_0


def test_tables_without_a_type_for_matrices_are_refused(work: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--dtype"):
        run_distill(replace(job_of(work, tmp_path / "out"), dtype=None))


def test_scales_of_a_file_of_the_type_are_taken_as_they_are() -> None:
    """Zero steps from another method's file: the same file, where a new search would differ."""
    decoder = parent()
    held = {name: encode(to_f32(t), DType.F32) for name, t in decoder.to_weights().items()}
    name = "layers.0.mlp.up.weight"
    grid = Grid(encode(to_f32(held[name]), DType.Q3_K))
    x = decoder.get_parameter(name).detach().view(-1, grid.part)
    held[name] = grid.store(x, grid.hold(grid.d * 0.8, None))  # scales that no search would find
    student = Decoder.from_weights(decoder.config, held)
    rounded = RoundedStudent(student, DType.Q3_K, DType.Q8_0, held)
    np.testing.assert_array_equal(rounded.weights.store()[name].data, held[name].data)
    searched = RoundedStudent(copy.deepcopy(student), DType.Q3_K, DType.Q8_0)
    assert not np.array_equal(searched.begun[name].data, held[name].data)


def test_a_sparse_form_of_the_type_keeps_its_numbers() -> None:
    decoder = parent()
    with torch.no_grad():
        for name, value in decoder.named_parameters():
            if value.dim() == 2 and name != "embed.weight":
                value[:, ::2] = 0.0
    held, _ = NearestRounding(DType.Q4_0).store(decoder)
    sparse = sparse_weights(SHAPE, held)
    assert any(tensor.dtype.sparse for tensor in sparse.values())
    for weights in (held, sparse):
        begun = RoundedStudent(copy.deepcopy(decoder), DType.Q4_0, DType.Q4_0, weights).begun
        for name, tensor in held.items():
            np.testing.assert_array_equal(to_f32(begun[name]), to_f32(tensor), err_msg=name)


def test_a_padded_vocabulary_is_measured_over_what_both_know() -> None:
    decoder, (rows, *_) = parent(), text()
    padded = Decoder(replace(SHAPE, vocab_size=96))
    padded.initialise(3)
    with torch.no_grad():
        for name, value in padded.named_parameters():
            own = dict(decoder.named_parameters())[name]
            value[: len(own)] = own
    given = held_text("test", decoder, [rows])
    with pytest.raises(ConfigError, match="vocabulary"):
        mean_kl(decoder, padded, given, given.length)
    assert mean_kl(decoder, padded, given, given.length, shared_vocab=64) < 1e-6
