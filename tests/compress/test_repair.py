"""Least-squares repair against NumPy's solver, and its effect on whole models."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from miudo.compress.prune import repair as module
from miudo.compress.prune.depth import DepthPruning
from miudo.compress.prune.heads import HeadPruning
from miudo.compress.prune.hidden import HiddenPruning
from miudo.compress.prune.pattern import Pattern
from miudo.compress.prune.recover import Pruner, prune_and_recover
from miudo.compress.prune.repair import Fit, Origin, repair
from miudo.compress.prune.scores import magnitude
from miudo.compress.prune.sparse import SparseMethod, SparsePruning
from miudo.compress.prune.width import WidthPruning
from miudo.compress.quantize.nearest import NearestRounding
from miudo.decoder.decoder import Decoder
from miudo.errors import CheckFailedError, ConfigError

Make = Callable[[str], Decoder]
PRUNERS: dict[str, Pruner] = {
    "groups": HeadPruning(),
    "hidden": HiddenPruning(),
    "width": WidthPruning(),
    "depth": DepthPruning(),
    "magnitude": SparsePruning(method=SparseMethod.MAGNITUDE),
    "sparsegpt 2:4": SparsePruning("2:4"),
}


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem() -> tuple[Tensor, Tensor, Tensor, Fit]:
    x, start = drawn(60, 9, seed=1) @ drawn(9, 9, seed=2), drawn(4, 9, seed=3)
    y = x @ drawn(4, 9, seed=4).T + 0.1 * drawn(60, 4, seed=5)
    fit = Fit(4, 9)
    for rows in (slice(0, 25), slice(25, 60)):
        fit.add(x[rows], y[rows])
    return x, y, start, fit


@pytest.mark.parametrize("sparse", [False, True])
def test_it_is_lstsq_with_rows_for_the_penalty(sparse: bool) -> None:
    x, y, start, fit = problem()
    if sparse:
        start = magnitude(start, Pattern(0.4))
    penalty = np.sqrt(0.01 * x.square().sum(0).mean().item())
    made = fit.solve(start).numpy()
    for row, (target, held) in enumerate(zip(y.T.numpy(), start.numpy(), strict=True)):
        live = held != 0
        rows = np.vstack([x.numpy()[:, live], penalty * np.eye(int(live.sum()))])
        wanted = np.concatenate([target, penalty * held[live]])
        expected = np.linalg.lstsq(rows, wanted, rcond=None)[0]
        np.testing.assert_allclose(made[row][live], expected, rtol=1e-4, atol=1e-6)
        assert (made[row][~live] == 0).all()


def test_error_is_the_squared_difference() -> None:
    x, y, start, fit = problem()
    assert fit.error(start) == pytest.approx(float((x @ start.T - y).square().sum()))
    assert fit.error(fit.solve(start)) < fit.error(start)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen", "neox", "gemma"])
@pytest.mark.parametrize("pruner", PRUNERS)
def test_no_output_gets_worse_and_the_logits_better(
    pruner: str, kind: str, tiny: Make, batches: list[Tensor]
) -> None:
    decoder, method = tiny(kind), PRUNERS[pruner]
    statistics = method.calibrate(decoder, batches)
    pruned, _ = method.apply(decoder, statistics)
    before = {n: p.clone() for n, p in pruned.named_parameters()}
    made = repair(decoder, pruned, batches, method.origin(decoder, statistics))
    assert len(made.errors) == 2 * pruned.config.n_layers
    assert all(now <= was + 1e-6 for was, now in made.errors.values())
    assert sum(now for _, now in made.errors.values()) < 0.999 * sum(
        was for was, _ in made.errors.values()
    )
    for name, value in made.decoder.named_parameters():
        assert torch.equal(dict(pruned.named_parameters())[name], before[name])
        if not name.endswith(("o.weight", "down.weight")):
            assert torch.equal(value, before[name]), name
        if isinstance(method, SparsePruning):
            assert bool((value[before[name] == 0] == 0).all()), name


def test_a_head_whose_output_others_hold_is_made_up_for(tiny: Make, batches: list[Tensor]) -> None:
    # Two heads of one group that see the same: one of them can say what both did.
    decoder = tiny("llama")
    with torch.no_grad():
        for layer in decoder.layers:
            q = layer.get_submodule("attn.q").get_parameter("weight").view(4, 16, 64)
            q[1], q[3] = q[0], q[2]
    method = HeadPruning(groups=1.0, heads=0.5)
    statistics = method.calibrate(decoder, batches)
    pruned, _ = method.apply(decoder, statistics)
    made = repair(decoder, pruned, batches, Origin(), ridge=1e-6)
    with torch.no_grad():
        whole, cut, mended = (d.logits(d(batches[0])) for d in (decoder, pruned, made.decoder))
    assert float((mended - whole).norm()) < 0.01 * float((cut - whole).norm())


def test_a_worse_fit_is_refused(
    tiny: Make, batches: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.Fit, "solve", lambda _self, weight, _ridge: -2 * weight)
    with pytest.raises(CheckFailedError, match=r"layers\.0\.attn\.o.*would rise"):
        repair(tiny("llama"), tiny("llama"), batches, Origin())


def test_a_chain_is_repaired_against_the_whole_model(tiny: Make, batches: list[Tensor]) -> None:
    decoder = tiny("llama")
    methods = (
        DepthPruning(), HiddenPruning(keep=0.75, multiple=16), HeadPruning(), WidthPruning(),
        SparsePruning("2:4"),
    )  # fmt: skip
    made = prune_and_recover(decoder, methods, batches, ridge=0.01)
    assert [r.method for r in made.reports] == ["depth", "hidden", "heads", "width", "sparse"]
    assert all("repair" in r.notes[-1] for r in made.reports)
    assert made.decoder.config.d_model == 48
    assert made.masks is not None
    assert all(
        z * 2 == live.numel()
        for (_, live), z in zip(made.masks.live.items(), made.masks.zeros().values(), strict=True)
    )
    plain = prune_and_recover(decoder, methods[:4], batches)
    assert plain.masks is None


def test_origins_add_up() -> None:
    first = Origin(layers=(0, 2, 5), channels=None)
    assert first.then(Origin(channels=(3, 4))) == Origin((0, 2, 5), (3, 4))
    assert first.then(Origin(layers=(1, 2))) == Origin((2, 5), None)


def test_what_is_no_pruning_is_not_repaired(tiny: Make, batches: list[Tensor]) -> None:
    with pytest.raises(ConfigError, match="nothing to repair"):
        prune_and_recover(tiny("llama"), (NearestRounding(),), batches, ridge=0.01)
