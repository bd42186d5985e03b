"""Distillation on the training loop: projections, schedules and points through a broken run."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from miudo.compress.distill.divergence import Divergence
from miudo.compress.distill.lesson import Lesson, distill
from miudo.compress.distill.method import HeldText
from miudo.compress.distill.terms import (
    DistillSettings,
    Feature,
    FeatureTerm,
    Relation,
    RelationTerm,
    ResponseTerm,
    Schedule,
    TextTerm,
)
from miudo.compress.prune.depth import DepthPruning, with_layers
from miudo.compress.prune.recover import Recovery, prune_and_recover
from miudo.config import ModelConfig
from miudo.decoder.decoder import Decoder
from miudo.errors import CheckpointError, ConfigError
from miudo.files import sha256_file
from miudo.train.metrics import read_metrics
from miudo.train.settings import Compile, FitSettings, Optimizer, Precision

VOCAB = 96
FIT = FitSettings(
    steps=6,
    batch_size=2,
    accumulate=2,
    length=8,
    seed=3,
    save_every=1,
    keep=100,
    log_every=1,
    precision=Precision.F32,
    compile=Compile.OFF,
)
TERMS = DistillSettings(
    (
        ResponseTerm(Divergence.SKEW_KL, 2.0, weight=0.5, schedule=Schedule.RISE),
        TextTerm(weight=0.5, normalise=True),
        FeatureTerm(Feature.HIDDEN, schedule=Schedule.FALL, until=0.6, normalise=True),
        RelationTerm(Relation.DISTANCE, points=5),
    )
)


def student(seed: int) -> Decoder:
    made = Decoder(
        ModelConfig.uniform(
            n_layers=2, d_model=32, n_heads=2, d_ff=32, vocab_size=VOCAB, max_positions=16,
            tie_embeddings=False,
        )
    )  # fmt: skip
    made.initialise(seed)
    return made


@pytest.fixture
def lesson() -> Lesson:
    rows = np.random.Generator(np.random.Philox(1)).integers(0, VOCAB, (11, 9), dtype=np.int32)
    return Lesson(HeldText(rows), FIT, TERMS)


def hashes(out: Path) -> dict[str, str]:
    folder = out / "checkpoints" / f"step-{FIT.steps:08d}"
    return {path.name: sha256_file(path) for path in folder.glob("*.safetensors")}


def forget_after(out: Path, step: int) -> None:
    for folder in (out / "checkpoints").iterdir():
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)


def log(out: Path) -> list[dict[str, float]]:
    times = ("tokens_per_s", "elapsed_s")
    rows = read_metrics(out / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in times} for row in rows]


@pytest.mark.parametrize("broken", [0, 1, 3, 5])
def test_resuming_gives_the_same_bits(
    tiny: Callable[[str], Decoder], lesson: Lesson, tmp_path: Path, broken: int
) -> None:
    """Projections, first values, weights and points of a step: all as in the unbroken run."""
    distill([tiny("llama")], student(1), lesson, tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    forget_after(tmp_path / "b", broken)
    distill([tiny("llama")], student(9), lesson, tmp_path / "b", resume=True)
    assert hashes(tmp_path / "b") == hashes(tmp_path / "a")
    assert log(tmp_path / "b") == log(tmp_path / "a")


def test_projections_learn_are_saved_and_are_no_part_of_the_student(
    tiny: Callable[[str], Decoder], lesson: Lesson, tmp_path: Path
) -> None:
    made = student(1)
    names = set(dict(made.named_parameters()))
    distill([tiny("llama")], made, lesson, tmp_path)
    first, last = (
        load_file(tmp_path / "checkpoints" / f"step-{step:08d}" / "weights.safetensors")
        for step in (0, FIT.steps)
    )
    extra = {name for name in first if name not in names}
    assert extra == {"loss.2.0.weight", "loss.2.1.weight", "loss.initial"}
    assert first["loss.2.0.weight"].shape == (64, 32)
    assert all(not torch.equal(first[name], last[name]) for name in extra)
    assert float(first["loss.initial"].sum()) == 0.0
    # Only of the terms that are normalised.
    assert (last["loss.initial"] > 0).tolist() == [False, True, True, False]
    assert set(dict(made.named_parameters())) == names


def test_each_terms_value_is_in_the_log_while_it_weighs(
    tiny: Callable[[str], Decoder], lesson: Lesson, tmp_path: Path
) -> None:
    distill([tiny("llama")], student(1), lesson, tmp_path)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert {"skew_kl", "cross_entropy", "hidden", "distance"} <= set(rows[0])
    assert ["hidden" in row for row in rows] == [True] * 4 + [False] * 2  # 0.6 of 6 steps
    weights = [0.5 * min(1.0, step / 6 / 0.5) for step in range(6)]
    first_text = rows[0]["cross_entropy"]
    step = 5  # no features any more: all can be added up from the log
    expected = weights[step] * rows[step]["skew_kl"] + rows[step]["distance"]
    found = rows[step]["loss"] - expected
    # The text's first value is that of the first batch, of two that the first step has.
    assert found == pytest.approx(0.5 * rows[step]["cross_entropy"] / first_text, rel=0.05)


def test_a_loss_without_distributions_trains_what_it_reaches(
    tiny: Callable[[str], Decoder], lesson: Lesson, tmp_path: Path
) -> None:
    """The head has no gradient, so no moments, and the run still goes on to the bit."""
    alone = dataclasses.replace(lesson, loss=DistillSettings((FeatureTerm(Feature.HIDDEN),)))
    made = student(1)
    before = made.layers[0].mlp.up.weight.detach().clone()
    distill([tiny("llama")], made, alone, tmp_path / "a")
    assert not torch.equal(made.layers[0].mlp.up.weight, before)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    forget_after(tmp_path / "b", 2)
    distill([tiny("llama")], student(9), alone, tmp_path / "b", resume=True)
    assert hashes(tmp_path / "b") == hashes(tmp_path / "a")


def test_accumulated_batches_learn_what_one_large_batch_does(
    tiny: Callable[[str], Decoder], lesson: Lesson, tmp_path: Path
) -> None:
    terms = DistillSettings((*DistillSettings.of().terms, FeatureTerm(schedule=Schedule.FALL)))
    made = []
    for batch_size, accumulate in ((4, 1), (1, 4)):
        fit = dataclasses.replace(
            FIT,
            batch_size=batch_size,
            accumulate=accumulate,
            optimizer=Optimizer.ADAMW,
            save_every=0,
        )
        told = dataclasses.replace(lesson, loss=terms, fit=fit)
        made.append(student(1))
        distill([tiny("llama")], made[-1], told, tmp_path / f"{accumulate}")
    first = read_metrics(tmp_path / "1" / "metrics.jsonl")
    other = read_metrics(tmp_path / "4" / "metrics.jsonl")
    for a, b in zip(first, other, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["forward_kl"] == pytest.approx(b["forward_kl"], rel=1e-4)


def test_bf16_products_give_nearly_the_same_parts(
    tiny: Callable[[str], Decoder], lesson: Lesson, tmp_path: Path
) -> None:
    terms = tuple(FeatureTerm(kind) for kind in (Feature.HIDDEN, Feature.ATTENTION))
    terms += tuple(RelationTerm(kind) for kind in Relation)  # type: ignore[assignment]
    found = []
    for precision in (Precision.F32, Precision.BF16):
        fit = dataclasses.replace(FIT, steps=1, precision=precision)
        told = dataclasses.replace(
            lesson, fit=fit, loss=DistillSettings((*DistillSettings.of().terms, *terms))
        )
        distill([tiny("llama")], student(1), told, tmp_path / precision)
        found.append(read_metrics(tmp_path / precision / "metrics.jsonl")[0])
    names = ["forward_kl", "cross_entropy", *(str(t.kind).replace("-", "_") for t in terms)]
    for name in names:  # 8 bits of mantissa in the products that made the streams
        assert found[1][name] == pytest.approx(found[0][name], rel=0.1, abs=1e-4), name
    assert found[1]["forward_kl"] != found[0]["forward_kl"]


def test_resuming_with_other_projections_is_refused(
    tiny: Callable[[str], Decoder], lesson: Lesson, tmp_path: Path
) -> None:
    distill([tiny("llama")], student(1), lesson, tmp_path)
    forget_after(tmp_path, 3)
    other = dataclasses.replace(lesson, loss=DistillSettings.of())
    with pytest.raises(CheckpointError, match="weights do not fit"):
        distill([tiny("llama")], student(1), other, tmp_path, resume=True)


def test_a_run_in_minutes_leaves_first_values_unmeasured_until_it_begins(
    tiny: Callable[[str], Decoder], lesson: Lesson, tmp_path: Path
) -> None:
    """Trial steps, which are taken back, must not leave their first values behind."""
    timed = dataclasses.replace(
        lesson, fit=dataclasses.replace(FIT, steps=None, minutes=0.002, save_every=0)
    )
    distill([tiny("llama")], student(1), timed, tmp_path)
    first = load_file(tmp_path / "checkpoints" / "step-00000000" / "weights.safetensors")
    assert float(first["loss.initial"].abs().sum()) == 0.0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler warns while it traces
def test_compiled_and_checkpointed_runs_learn_the_same(
    tiny: Callable[[str], Decoder], lesson: Lesson, tmp_path: Path
) -> None:
    terms = (*TERMS.terms, FeatureTerm(Feature.ATTENTION))
    found = []
    for name, changes in (
        ("eager", {}),
        ("compiled", {"compile": Compile.ON}),
        ("checkpointed", {"checkpoint_activations": True}),
    ):
        fit = dataclasses.replace(FIT, steps=2, **changes)
        told = dataclasses.replace(lesson, fit=fit, loss=DistillSettings(terms))
        distill([tiny("llama")], student(1), told, tmp_path / name)
        found.append([row["loss"] for row in read_metrics(tmp_path / name / "metrics.jsonl")])
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert found[2] == pytest.approx(found[0], rel=1e-6)


def test_after_pruning_each_layer_learns_from_the_one_it_was(
    tiny: Callable[[str], Decoder], lesson: Lesson, tmp_path: Path
) -> None:
    """Layers that nothing was taken out before are still those of the teacher: no distance."""
    teacher = tiny("llama")
    rows = torch.randint(0, VOCAB, (4, 9), generator=torch.Generator().manual_seed(0))
    terms = DistillSettings.from_json(
        {"terms": [{"kind": "hidden", "layers": "surviving"}, {"kind": "cross-entropy"}]}
    )
    fit = dataclasses.replace(FIT, steps=1, lr=0.0, muon_lr=0.0)
    told = dataclasses.replace(lesson, loss=terms, fit=fit)
    made = prune_and_recover(teacher, (DepthPruning(drop=1),), [rows], Recovery(told, tmp_path))
    (report,) = made.reports
    assert report.layers is not None
    gone = ({0, 1, 2} - set(report.layers)).pop()
    assert report.layers == tuple(i for i in range(3) if i != gone)
    value = read_metrics(tmp_path / "metrics.jsonl")[0]["hidden"]
    twin = with_layers(teacher, report.layers)
    shutil.rmtree(tmp_path)
    distill([teacher], twin, told, tmp_path, surviving=report.layers)
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["hidden"] == value
    shutil.rmtree(tmp_path)
    with pytest.raises(ConfigError, match="not known which"):
        distill([teacher], with_layers(teacher, report.layers), told, tmp_path)


@pytest.mark.parametrize("layers", [(), (2, 0), (0, 0), (0, 3), (-1,)])
def test_layers_that_are_not_there_make_no_student(
    tiny: Callable[[str], Decoder], layers: tuple[int, ...]
) -> None:
    with pytest.raises(ConfigError, match="blocks"):
        with_layers(tiny("llama"), layers)
