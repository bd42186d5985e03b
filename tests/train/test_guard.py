"""NaN and infinity in loss, gradient, weights and moments; memory; the log of what was skipped."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from miudo.errors import ResourceError, TrainingError
from miudo.train.checkpoint import load_checkpoint
from miudo.train.loop import fit
from miudo.train.loss import cross_entropy
from miudo.train.metrics import read_metrics
from miudo.train.plan import make_plan
from miudo.train.stepper import Stepper


class BadAt:
    """Cross-entropy, but for the calls in `calls`, where loss or gradient is not finite."""

    def __init__(self, calls: set[int], kind: str) -> None:
        self.calls, self.kind, self.made = calls, kind, 0

    def __call__(self, decoder: Any, ids: Any) -> Any:
        loss, _ = cross_entropy(decoder, ids)
        self.made += 1
        if self.made - 1 in self.calls:
            if self.kind == "loss":
                return loss * float("nan"), {}
            # sqrt at 0: the value is finite, its slope is not.
            return loss + torch.sqrt(decoder.norm.weight.sum() * 0.0), {}
        return loss, {"twice": 2.0 * float(loss.detach())}


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_bad_step_is_skipped_counted_and_logged(small: Any, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "run"
    decoder = small.decoder()
    loss = BadAt({2, 3}, kind)
    result = fit(decoder, small.tokens(), small.settings(save_every=1), out, loss=loss)
    assert result.bad_steps == 2
    assert [r["bad_steps"] for r in read_metrics(out / "metrics.jsonl")] == [0, 0, 1, 2, 2, 2, 2, 2]
    weights = [load_checkpoint(out / "checkpoints", s).weights for s in (2, 3, 4, 5)]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name])
        assert torch.equal(value, weights[2][name])
    assert any(not torch.equal(v, weights[3][n]) for n, v in weights[0].items())
    assert all(bool(torch.isfinite(p).all()) for p in decoder.parameters())
    assert "NaN" not in (out / "metrics.jsonl").read_text()


def test_skipped_steps_resume_to_the_same_bits(small: Any, tmp_path: Path) -> None:
    for name, broken in (("a", False), ("b", True)):
        out = tmp_path / name
        fit(small.decoder(), small.tokens(), small.settings(), out, loss=BadAt({2, 3}, "loss"))
        if broken:
            small.forget_after(out, 4)
            assert small.go_on(out, loss=BadAt(set(), "loss")).bad_steps == 2
    assert small.hashes(tmp_path / "a", 8) == small.hashes(tmp_path / "b", 8)


@pytest.mark.parametrize("bad", [{6, 7}, set(range(8))])
def test_a_run_whose_last_steps_were_skipped_has_a_record(
    small: Any, tmp_path: Path, bad: set[int]
) -> None:
    settings = small.settings(log_every=6)
    result = fit(
        small.decoder(), small.tokens(), settings, tmp_path / "run", loss=BadAt(bad, "loss")
    )
    found = {m.name: m.value for m in result.measurements(settings)}
    assert result.bad_steps == len(bad)
    assert ("training_loss" in found) == (len(bad) == 2)
    assert all(math.isfinite(value) for value in found.values())


def test_too_many_bad_steps_in_a_row_stop_the_run(small: Any, tmp_path: Path) -> None:
    loss = BadAt(set(range(4, 100)), "loss")
    settings = small.settings(max_bad_steps=3)
    with pytest.raises(TrainingError, match="3 steps in a row were not finite"):
        fit(small.decoder(), small.tokens(), settings, tmp_path / "run", loss=loss)
    newest = small.steps(tmp_path / "run")[-1]
    saved = load_checkpoint(tmp_path / "run" / "checkpoints", newest)
    assert all(bool(torch.isfinite(v).all()) for v in saved.weights.values())


def test_a_run_that_explodes_leaves_a_finite_state(small: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(TrainingError, match="not finite"):
        small.begin(out, optimizer="adamw", lr=10.0, weight_decay=10.0, steps=300, save_every=1)
    newest = small.steps(out)[-1]
    saved = load_checkpoint(out / "checkpoints", newest)
    assert all(bool(torch.isfinite(v).all()) for v in saved.weights.values())


def test_a_moment_gone_bad_is_not_saved(small: Any, tmp_path: Path) -> None:
    settings = small.settings(optimizer="adamw")
    run = Stepper(small.decoder(), small.tokens(), settings, cross_entropy)
    plan = make_plan(settings, steps=8, compiled=False)
    run.take(0, plan)
    moments = run.optimizers.tensors()
    moments["adamw/layers.0.attn.q.weight/exp_avg"][0, 0] = float("inf")
    with pytest.raises(TrainingError, match="weights are not finite"):
        run.take(1, plan)


def test_a_huge_gradient_is_clipped(small: Any) -> None:
    settings = small.settings(clip=0.5, optimizer="adamw")
    run = Stepper(
        small.decoder(),
        small.tokens(),
        settings,
        lambda d, ids: (cross_entropy(d, ids)[0] * 1e6, {}),
    )
    result = run.take(0, make_plan(settings, steps=8, compiled=False))
    assert result.applied
    assert result.norm > 1e5
    first = run.optimizers.tensors()
    squares = sum(
        float((v / 0.1).square().sum()) for n, v in first.items() if n.endswith("exp_avg")
    )
    # After one step exp_avg is (1 - 0.9) times the clipped gradient, whose norm is `clip`.
    assert math.sqrt(squares) == pytest.approx(0.5, rel=1e-4)


def test_too_little_memory_says_what_to_make_smaller(small: Any, tmp_path: Path) -> None:
    def hungry(decoder: Any, ids: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 10 TB")

    with pytest.raises(ResourceError, match="too little memory for 2 rows of 8 tokens"):
        fit(small.decoder(), small.tokens(), small.settings(), tmp_path / "run", loss=hungry)
    assert small.steps(tmp_path / "run") == [0]
