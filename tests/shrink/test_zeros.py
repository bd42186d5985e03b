"""Zeros of pruned models: types that lose them are not tried, and those that are left are named."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from miudo.compress.distill.lesson import distill
from miudo.decoder.decoder import Decoder
from miudo.decoder.sparsity import Masks, masks_to_keep
from miudo.errors import CheckFailedError
from miudo.formats.zeros import declared
from miudo.shrink.candidates import LEARN, SPARSE, STUDENT, Order, Step, ends_sparse
from miudo.shrink.forecast import Forecast
from miudo.shrink.jobs import ShrinkJob
from miudo.shrink.plan import plan_shrink
from miudo.shrink.search import run_shrink
from miudo.train.artefact import open_decoder
from miudo.train.loop import FitResult

Make = Callable[..., ShrinkJob]

pytestmark = pytest.mark.usefixtures("fast_bench")

# Rows of 64 and 128 fit no blocks of 256: Q3_K falls to IQ4_NL, Q4_K to Q5_0, Q5_K to Q5_1.
LOSES = {"IQ4_NL", "Q3_K", "Q5_K", "Q2_K"}
KEEPS = {"Q8_0", "Q6_K", "Q5_0", "Q4_K", "Q4_0", "TQ2_0"}


def zeroless(forecast: Forecast, trunk: str) -> set[str | None]:
    found = [g for g in forecast.guesses if g.candidate.trunk_name == trunk]
    assert {g.candidate.dtype for g in found} == LOSES | KEEPS
    return {g.candidate.dtype for g in found if g.out == "no exact zero"}


def test_what_is_stored_decides_whether_a_type_has_a_zero(job: Make, pruned_teacher: Path) -> None:
    cut = {"order": Order.CUT_SPARSIFY_LEARN_ROUND, "methods": ("sparse", "nearest")}
    found = plan_shrink(job(**cut)).forecast  # a dense teacher, pruned on the way
    assert zeroless(found, "sparse-0.5_learn") == LOSES

    wanted = dataclasses.replace(job(methods=("nearest",)), teacher=pruned_teacher)
    found = plan_shrink(wanted).forecast
    assert zeroless(found, "whole") == LOSES
    assert zeroless(found, "student-0.5_learn") == set()  # drawn at random: dense


@pytest.mark.parametrize(
    ("order", "methods"),
    [
        (Order.CUT_ROUND, ("depth", "nearest")),
        (Order.CUT_LEARN_ROUND, ("depth", "nearest")),
        (Order.CUT_TRAINED_ROUND, ("depth", "trained")),
    ],
)
def test_a_pruned_teachers_zeros_stay_and_the_record_names_them(
    job: Make,
    pruned_teacher: Path,
    order: Order,
    methods: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def watched(teachers: list[Decoder], student: Decoder, *rest: Any, **more: Any) -> FitResult:
        found = distill(teachers, student, *rest, **more)
        if "control" not in str(rest[1]):  # one of them begins dense
            up = student.get_parameter("layers.0.mlp.up.weight")
            assert float((up == 0).double().mean()) >= 0.5  # unrounded too: rounding makes zeros
        return found

    monkeypatch.setattr("miudo.shrink.making.distill", watched)
    wanted = job(order=order, methods=methods, steps=4, trunks=1, measured=8)
    wanted = dataclasses.replace(wanted, teacher=pruned_teacher)
    run_shrink(wanted)
    report = json.loads((wanted.out / "report.json").read_text())
    assert report["checks"]["zeros of pruned matrices stay zeros"] > 0
    check_sparse(wanted.out / "model.gguf")


def check_sparse(path: Path) -> None:
    made = open_decoder(path, "model")
    zeros = declared(made.file.record)
    assert len(zeros) >= 7  # of each block
    assert zeros == Masks.of(made.decoder, zeros).zeros()
    values = made.decoder.get_parameter("layers.0.mlp.up.weight").detach().numpy()
    assert np.mean(values == 0) >= 0.5
    assert masks_to_keep(made.decoder, made.file.record) is not None  # what goes on from it


def test_a_zero_that_is_lost_stops_it_by_name(
    job: Make, pruned_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("miudo.shrink.forecast.holds_zero", lambda _: True)
    wanted = job(order=Order.CUT_ROUND, methods=("nearest",), measured=10)
    with pytest.raises(CheckFailedError, match="zeros of pruned matrices stay zeros"):
        run_shrink(dataclasses.replace(wanted, teacher=pruned_teacher))


def test_zeros_end_where_a_student_begins() -> None:
    sparse, learn = Step.of(SPARSE, pattern="0.5"), Step.of(LEARN, loss="teacher")
    student = Step.of(STUDENT, ratio=0.5)
    assert ends_sparse((sparse, learn), begins=False)
    assert ends_sparse((learn,), begins=True)
    assert not ends_sparse((learn,), begins=False)
    assert not ends_sparse((student, learn), begins=True)
