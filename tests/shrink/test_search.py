"""Whole searches over a tiny teacher: what comes out, what a stop changes, what is refused."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from miudo.cli.options import parse_size
from miudo.errors import CheckFailedError, ConfigError, DataError, ResourceError, UsageError
from miudo.formats import open_model
from miudo.formats.blocks import to_f32
from miudo.formats.zeros import declared
from miudo.shrink.budget import Budget, Prefer
from miudo.shrink.candidates import LEARN, Order
from miudo.shrink.jobs import ShrinkJob
from miudo.shrink.plan import plan_shrink
from miudo.shrink.search import run_shrink
from miudo.train.progress import Silent, StepReport

Make = Callable[..., ShrinkJob]

pytestmark = pytest.mark.usefixtures("fast_bench")


def weights_of(path: Path) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(open_model(path).weights.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(np.ascontiguousarray(tensor.data).tobytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {}


@pytest.fixture
def unbroken(job: Make, kept: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One search for all tests that only look at it."""
    if "out" not in kept:
        out = tmp_path_factory.mktemp("search") / "out"
        run_shrink(dataclasses.replace(job(), out=out))
        kept["out"] = out
    return kept["out"]


def test_a_search_ends_in_a_file_within_the_budget_and_a_whole_report(unbroken: Path) -> None:
    report = json.loads((unbroken / "report.json").read_text())
    assert report["met"] is True
    model = unbroken / "model.gguf"
    assert model.stat().st_size <= 250_000
    chosen = next(row for row in report["rows"] if row["chosen"])
    assert chosen["size_bytes"] == model.stat().st_size
    assert report["chosen"] in report["front"]
    assert len(report["predicted"]) >= 10
    record = open_model(model).record
    assert record is not None
    assert (record.verb, record.parents[0].verb) == ("shrink", "train")
    kinds = {row["kind"] for row in report["rows"]}
    assert {"teacher", "candidate", "from nothing", "by text alone", "by magnitude"} <= kinds
    tokens = {row["kind"]: row["tokens_learned"] for row in report["rows"]}
    assert tokens["from nothing"] == tokens["by text alone"] == chosen["tokens_learned"] > 0
    assert all(row["parent_tokens_per_parameter"] > 0 for row in report["rows"])
    for name in (
        "the file's logits on the engine equal the decoder's",
        "the file's tokenizer is the teacher's",
        "tied embeddings stay tied",
        "calibration saw data",
        "the teacher is as it was",
    ):
        assert report["checks"][name] > 0
    orders = {scored["order"] for scored in report["scored"]}
    assert orders >= {Order.CUT_ROUND, Order.CUT_LEARN_ROUND, Order.STUDENT_LEARN_ROUND}


def test_the_page_and_the_table_hold_what_the_json_holds(unbroken: Path) -> None:
    report = json.loads((unbroken / "report.json").read_text())
    page = (unbroken / "report.html").read_text()
    for word in ("<svg", "Controls", "from nothing", "Spearman", "Orders", report["chosen"]):
        assert word in page
    assert not re.search(r"""(?:src|href)=["']?https?:""", page)  # loads nothing from anywhere
    with (unbroken / "report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [row["name"] for row in report["rows"]]
    assert float(rows[0]["perplexity"]) == report["rows"][0]["perplexity"]


def test_bytes_are_predicted_nearly_and_in_the_right_order(unbroken: Path) -> None:
    report = json.loads((unbroken / "report.json").read_text())
    predicted = {guess["name"]: guess["size_bytes"] for guess in report["predicted"]}
    files = [row for row in report["rows"] if row["kind"] == "candidate"]
    for row in files:
        assert row["size_bytes"] == pytest.approx(predicted[row["name"]], rel=0.02)


class _Stops(Silent):
    """Breaks off at the n-th line or step, as a killed process does: nothing is saved for it."""

    def __init__(self, after: int) -> None:
        self.left = after

    def report(self, step: StepReport) -> None:
        self._count()

    def note(self, text: str) -> None:
        self._count()

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise _KilledError


class _KilledError(BaseException):
    pass


def test_stopped_again_and_again_it_ends_in_the_same_model(job: Make, unbroken: Path) -> None:
    stops = 0
    while True:
        try:
            # More each time: what is left must be done in the end.
            run_shrink(job(), _Stops(12 + 5 * stops))
            break
        except _KilledError:
            stops += 1
    assert stops >= 4
    out = job().out
    assert weights_of(out / "model.gguf") == weights_of(unbroken / "model.gguf")
    mine, theirs = (json.loads((p / "rounds.json").read_text()) for p in (out, unbroken))
    losses = [[(s["candidate"]["name"], s["round"], s["loss"]) for s in r["scored"]]
              for r in (mine, theirs)]  # fmt: skip
    assert losses[0] == losses[1]


def test_a_search_that_is_done_is_not_done_again(unbroken: Path, job: Make) -> None:
    before = (unbroken / "stages.json").read_text()
    again = run_shrink(dataclasses.replace(job(), out=unbroken))
    assert (unbroken / "stages.json").read_text() == before
    assert again.outcome.shortfalls == ()
    with pytest.raises(UsageError, match="other settings"):
        run_shrink(dataclasses.replace(job(seed=5), out=unbroken))


def test_a_size_that_no_candidate_has_is_told_before_any_training(job: Make) -> None:
    wanted = job(budget=Budget(max_size_bytes=30_000))
    with pytest.raises(CheckFailedError, match=r"smallest of \d+ candidates.*over the") as error:
        run_shrink(wanted)
    assert not (wanted.out / "work").exists()
    advised = str(error.value).split("Give --max-size ")[-1].split()[0]
    limit = Budget(max_size_bytes=parse_size(advised, "--max-size"))
    assert any(not guess.out for guess in plan_shrink(job(budget=limit)).forecast.guesses)


def test_methods_that_are_all_too_slow_are_told(job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("miudo.shrink.damage._SLOW", 0.0)
    monkeypatch.setattr("miudo.shrink.damage._TOO_SLOW", 0.0)
    with pytest.raises(UsageError, match="every method is too slow for 20 minutes: gptq took"):
        plan_shrink(job(steps=None, order=Order.CUT_ROUND, methods=("gptq",)))


def test_what_is_dearer_than_a_method_that_is_too_slow_is_not_measured(
    job: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_SLOW", "_TOO_SLOW"):
        monkeypatch.setattr(f"miudo.shrink.damage.{name}", 0.0)
    lines: list[str] = []
    watcher = Silent()
    monkeypatch.setattr(watcher, "note", lines.append)
    methods = ("nearest", "importance", "gptq", "awq")
    plan_shrink(job(steps=None, order=Order.CUT_ROUND, methods=methods), watcher)
    assert any(line.startswith("rounding the teacher: importance") for line in lines)
    assert "not tried: gptq takes longer than importance" in lines
    assert not any("teacher: gptq" in line or "teacher: awq" in line for line in lines)


def test_zeros_are_found_in_the_teacher_alone(job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    watcher = Silent()
    monkeypatch.setattr(watcher, "note", lines.append)
    plan = plan_shrink(job(methods=("nearest", "depth", "sparse")), watcher)
    cuts = [line for line in lines if line.startswith("cut: ")]
    assert any(line.startswith("cut: sparse") for line in cuts)
    assert any(line.startswith("cut: depth") for line in cuts)
    assert not any("_sparse" in line for line in cuts)
    assert len(set(cuts)) == len(cuts)
    losses = {}
    for guess in plan.forecast.guesses:
        steps = tuple(s.label() for s in guess.candidate.trunk if s.method != LEARN)
        losses[steps, guess.candidate.rounding] = guess.loss
    both = [(steps, rounding) for steps, rounding in losses if len(steps) == 2]
    assert both
    for (cut, zeros), rounding in both:
        added = losses[(zeros,), rounding] - losses[(), rounding]
        wanted = pytest.approx(losses[(cut,), rounding] + added)
        assert losses[(cut, zeros), rounding] == wanted


def test_a_slow_method_rounds_the_best_alone(job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("miudo.shrink.damage._SLOW", 0.0)
    order = Order.CUT_ROUND
    wanted = job(steps=None, minutes=20.0, order=order, methods=("nearest", "gptq"), measured=6)
    plan = plan_shrink(wanted)
    late = {g.candidate.name for g in plan.forecast.guesses if g.late}
    assert late
    assert not any(g.candidate.rounding.method == "gptq" for g in plan.forecast.of("whole"))
    result = run_shrink(wanted)
    slow = [s for s in result.scored if s.candidate.rounding.method == "gptq"]
    assert 1 <= len(slow) <= 2
    assert {s.candidate.name for s in slow} <= late
    plain = {s.candidate.dtype: s.loss for s in result.scored if s not in slow}
    for scored in slow:  # the very file's loss, not what was promised
        assert scored.loss != plain[scored.candidate.dtype]
    assert {s.candidate.name for s in slow} & {row.name for row in result.rows}


def test_a_speed_that_none_has_ends_with_the_nearest_and_what_would_do(job: Make) -> None:
    budget = Budget(max_size_bytes=250_000, min_tokens_per_s=1e6)
    wanted = job(budget=budget, order=Order.CUT_ROUND, measured=2)
    with pytest.raises(CheckFailedError, match="no candidate meets the budget") as error:
        run_shrink(wanted)
    assert error.value.exit_code == 3
    assert "under the 1,000,000.0 that --min-speed asks for" in str(error.value)
    report = json.loads((wanted.out / "report.json").read_text())
    assert report["met"] is False
    assert not (wanted.out / "model.gguf").exists()
    limit = float(str(error.value).split("It would do with --min-speed ")[-1].split(";")[0])
    chosen = next(row for row in report["rows"] if row["chosen"])
    assert chosen["new_tokens_per_s"] >= limit
    fastest = max(row["new_tokens_per_s"] for row in report["rows"] if row["kind"] == "candidate")
    assert chosen["new_tokens_per_s"] == fastest  # the nearest to the limit
    assert "learned nothing" in " ".join(report["notes"])


def test_a_dry_run_changes_nothing(job: Make, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    plan = plan_shrink(job())
    assert sorted(tmp_path.rglob("*")) == before
    assert len(plan.forecast.guesses) >= 10
    text = plan.text()
    for word in ("round 1:", "memory of learning", "basis", "measured"):
        assert word in text
    assert plan.to_json()["seconds"]["learning"]["estimate"] > 0
    whole = {g.candidate.dtype: g for g in plan.forecast.guesses if not g.candidate.trunk}
    assert whole["Q4_0"].size_bytes == whole["IQ4_NL"].size_bytes  # and yet two types
    assert whole["Q4_0"].out == whole["IQ4_NL"].out == ""
    assert whole["Q3_K"].out == "the same types as whole_IQ4_NL"  # 64 values are no 256


def test_energy_without_a_counter_is_refused(job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("miudo.shrink.search.read_counters", dict)
    for call in (run_shrink, plan_shrink):
        with pytest.raises(UsageError, match="no energy counter"):
            call(job(budget=Budget(max_energy_j=1.0)))


def test_too_little_text_is_told(job: Make, tmp_path: Path) -> None:
    for name, content in (("empty.txt", ""), ("short.txt", "The robot found a leaf. " * 3)):
        (tmp_path / name).write_text(content)
        wanted = dataclasses.replace(job(f"out-{name}"), inputs=(str(tmp_path / name),))
        with pytest.raises(DataError):
            run_shrink(wanted)
        assert not (wanted.out / "baseline.json").exists()


def test_text_that_the_teacher_does_not_know_is_warned_of(job: Make, tmp_path: Path) -> None:
    letters = np.random.default_rng(1).integers(0x4E00, 0x4F00, size=(600, 40))
    lines = ["".join(map(chr, row)) for row in letters]
    path = tmp_path / "other.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    wanted = dataclasses.replace(job(), inputs=(str(path),))
    plan = plan_shrink(wanted)
    assert any("another language" in warning for warning in plan.baseline.warnings)


def test_its_own_text_is_not_warned_of(unbroken: Path) -> None:
    report = json.loads((unbroken / "report.json").read_text())
    assert not any("another language" in warning for warning in report["warnings"])


def test_a_full_disk_stops_it_and_it_goes_on(job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise ResourceError("cannot be written (No space left on device)")

    wanted = job(order=Order.CUT_ROUND, measured=2)
    with monkeypatch.context() as patch:
        patch.setattr("miudo.shrink.search.write_candidate", full)
        with pytest.raises(ResourceError, match="No space left"):
            run_shrink(wanted)
    assert not (wanted.out / "model.gguf").exists()
    assert run_shrink(wanted).outcome.shortfalls == ()


def test_a_file_whose_logits_differ_stops_it_by_name(
    job: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("miudo.shrink.stored.REFERENCE_PATH", 0.0)
    with pytest.raises(CheckFailedError, match="the file's logits on the engine equal"):
        run_shrink(job(order=Order.CUT_ROUND, measured=1))


@pytest.mark.parametrize(
    ("order", "methods", "control"),
    [
        (Order.CUT_SPARSIFY_LEARN_ROUND, ("sparse", "nearest"), "by magnitude"),
        (Order.CUT_LEARN_TRAINED_ROUND, ("depth", "trained"), "nearest"),
    ],
)
def test_zeros_are_kept_and_rounding_is_trained(
    job: Make, order: Order, methods: tuple[str, ...], control: str
) -> None:
    wanted = job(order=order, methods=methods, steps=4, trunks=1, measured=1)
    run_shrink(wanted)
    report = json.loads((wanted.out / "report.json").read_text())
    rows = {row["kind"]: row for row in report["rows"]}
    assert control in rows
    assert rows["from nothing"]["tokens_learned"] == rows["candidate"]["tokens_learned"] > 0
    if order is Order.CUT_SPARSIFY_LEARN_ROUND:
        assert report["checks"]["zeros of pruned matrices stay zeros"] > 0
        weights = open_model(wanted.out / "model.gguf").weights
        values = to_f32(weights["layers.0.mlp.up.weight"])
        assert np.mean(values == 0) >= 0.5
        zeros = declared(open_model(wanted.out / "model.gguf").record)
        assert zeros == {name: int(np.sum(to_f32(weights[name]) == 0)) for name in zeros}
        assert len(zeros) >= 7  # of a block
        dense = wanted.out / "work" / "files" / "control_from-nothing-0.gguf"
        assert declared(open_model(dense).record) == {}
    else:
        learned = json.loads((wanted.out / "work/controls/by-magnitude-0/made.json").read_text())
        assert rows["by magnitude"]["training_s"] > learned["seconds"]  # rounding learned too


def test_seeds_train_the_chosen_one_and_its_controls_again(job: Make) -> None:
    wanted = job(seeds=2, steps=2, trunks=1, measured=2, order=Order.CUT_LEARN_ROUND)
    run_shrink(wanted)
    report = json.loads((wanted.out / "report.json").read_text())
    kinds = [row["kind"] for row in report["rows"]]
    assert kinds.count("from nothing") == kinds.count("by text alone") == 2
    assert kinds.count("chosen again") == 1
    assert "Over seeds" in (wanted.out / "report.html").read_text()


def test_what_is_preferred_needs_a_limit_on_quality(job: Make) -> None:
    with pytest.raises(ConfigError, match="any quality"):
        job(prefer=Prefer.SIZE)
