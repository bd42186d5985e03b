"""Least-squares repair: what writes to the residual stream is fitted anew, without training.

For: after any pruning, `o` and `down` of each block, so that what they give is as near as can be
to what they gave before, on the inputs that they are given now.
Not for: learning again (`miudo.compress.prune.recover`), which repair goes before.
Read next: `miudo.compress.prune.recover`.

Shapes: B batch, T positions, D d_model, I inputs of a matrix, O its outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from miudo.compress.method import check_finite
from miudo.compress.station import Station
from miudo.compress.walk import walk
from miudo.decoder.decoder import Decoder
from miudo.errors import CheckFailedError

__all__ = ["RIDGE", "Fit", "Origin", "Repaired", "repair"]

RIDGE = 0.01
"""Share of the inputs' mean square by which a weight is held where it is."""
_PARTS = ("attn.o", "mlp.down")
_STEPS = 200
_CLOSE = 1e-10
# Of the target's whole square: what rounding to float32 may add.
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Origin:
    """Which layers and channels of the model before are still there; None: all of them."""

    layers: tuple[int, ...] | None = None
    channels: tuple[int, ...] | None = None

    def then(self, later: Origin) -> Origin:
        """Returns where both changes together leave what stays, counted in the first's before."""
        return Origin(_chosen(self.layers, later.layers), _chosen(self.channels, later.channels))


@dataclass(frozen=True, slots=True)
class Repaired:
    """The repaired decoder; output errors by matrix, as shares of the output: before, after."""

    decoder: Decoder
    errors: dict[str, tuple[float, float]]

    @property
    def note(self) -> str:
        """What a report says of it."""
        before, after = (
            sum(pair[i] for pair in self.errors.values()) / len(self.errors) for i in (0, 1)
        )
        return (
            f"least-squares repair of {len(self.errors)} matrices: output error "
            f"{before:.3%} became {after:.3%}, mean over matrices"
        )


@dataclass
class Fit:
    """The sums that a least-squares fit of targets [N, O] on inputs [N, I] hangs on, in float64."""

    outputs: int
    inputs: int
    gram: Tensor = field(init=False)
    cross: Tensor = field(init=False)
    square: float = 0.0

    def __post_init__(self) -> None:
        self.gram = torch.zeros(self.inputs, self.inputs, dtype=torch.float64)
        self.cross = torch.zeros(self.outputs, self.inputs, dtype=torch.float64)

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Counts rows of inputs [N, I] and of what should come out [N, O]."""
        x, y = inputs.detach().double(), targets.detach().double()
        self.gram += x.T @ x
        self.cross += y.T @ x
        self.square += float(y.square().sum())

    def error(self, weight: Tensor) -> float:
        """Returns the squared error of `weight` [O, I], summed over rows."""
        w = weight.detach().double()
        return float(((w @ self.gram) * w).sum() - 2 * (w * self.cross).sum()) + self.square

    def solve(self, weight: Tensor, ridge: float = RIDGE) -> Tensor:
        """Returns the W [O, I] in float64 of least error, a ridge holding it near `weight`.

        Minimises |X W^T - Y|^2 + lam |W - weight|^2, lam being `ridge` of the mean of the Gram's
        diagonal: held to the weights, not to zero as Minitron's formula would have it, so that no
        error can rise. Where `weight` has scattered zeros they stay, and each row is fitted on
        the others alone, by conjugate gradients on all rows at once (Hestenes and Stiefel 1952).
        """
        start = weight.detach().double()
        held = ridge * float(self.gram.diagonal().mean())
        damped = self.gram.clone()
        damped.diagonal().add_(held)
        wanted = self.cross + held * start
        live = start != 0
        if bool(live.all()):
            solved: Tensor = torch.linalg.solve(damped, wanted.T)
            return solved.T
        return _on_live(damped, wanted, start, live)


def repair(
    before: Decoder,
    after: Decoder,
    batches: Sequence[Tensor],
    origin: Origin,
    *,
    ridge: float = RIDGE,
) -> Repaired:
    """Returns `after` with `o` and `down` fitted to what they gave in `before`, on ids [B, T].

    Block by block, each on what the repaired ones before it give. Biases stay. Raises
    CheckFailedError where a fit would be worse than what was there.
    """
    check_finite(after)
    made = Decoder.from_weights(after.config, after.to_weights())
    errors: dict[str, tuple[float, float]] = {}
    for old, new in _pairs(before, made, batches, origin):
        for part in _PARTS:
            errors[f"{new.name}.{part}.weight"] = _refit(old, new, part, origin, ridge)
    check_finite(made)
    return Repaired(made, errors)


def _pairs(
    before: Decoder, after: Decoder, batches: Sequence[Tensor], origin: Origin
) -> Iterator[tuple[Station, Station]]:
    """Each block with the one that it was."""
    kept = origin.layers or tuple(range(before.config.n_layers))
    news = walk(after, batches)
    for i, old in enumerate(walk(before, batches)):
        if i in kept:
            yield old, next(news)


@torch.no_grad()
def _refit(
    old: Station, new: Station, part: str, origin: Origin, ridge: float
) -> tuple[float, float]:
    linear = new.module.get_submodule(part)
    assert isinstance(linear, nn.Linear)  # noqa: S101 - blocks have these two
    fit = Fit(linear.out_features, linear.in_features)
    for i in range(len(new.inputs)):
        targets = _outputs(old, part, i)  # B T D
        if origin.channels is not None:
            targets = targets[..., list(origin.channels)]
        if linear.bias is not None:
            targets = targets - linear.bias
        fit.add(_inputs(new, part, i).flatten(0, -2), targets.flatten(0, -2))
    weight = fit.solve(linear.weight, ridge).to(linear.weight.dtype)
    was, now = fit.error(linear.weight), fit.error(weight)
    if not now <= was + _ROUNDING * fit.square:
        raise CheckFailedError(
            f"repaired, the output error would rise from {was:.4g} to {now:.4g}",
            where=f"{new.name}.{part}.weight",
            remedy="Calibrate on more text, or leave out --repair",
        )
    linear.weight.copy_(weight)
    whole = fit.square or 1.0
    return max(was, 0.0) / whole, max(now, 0.0) / whole


def _chosen(first: tuple[int, ...] | None, then: tuple[int, ...] | None) -> tuple[int, ...] | None:
    if first is None or then is None:
        return then if first is None else first
    return tuple(first[i] for i in then)


def _outputs(station: Station, part: str, index: int) -> Tensor:
    seen: list[Tensor] = []
    handle = station.module.get_submodule(part).register_forward_hook(
        lambda _module, _given, out: seen.append(out)
    )
    try:
        station.run(station.inputs[index], index)
    finally:
        handle.remove()
    return seen[0]


def _inputs(station: Station, part: str, index: int) -> Tensor:
    seen: list[Tensor] = []
    handle = station.module.get_submodule(part).register_forward_pre_hook(
        lambda _module, given: seen.append(given[0])
    )
    try:
        station.run(station.inputs[index], index)
    finally:
        handle.remove()
    return seen[0]


def _on_live(damped: Tensor, wanted: Tensor, start: Tensor, live: Tensor) -> Tensor:
    """Every row's own normal equations on its live inputs, from `start`."""
    scale = damped.diagonal()  # preconditioner [I]
    x = start.clone()
    residual = (wanted - x @ damped) * live
    goal = _CLOSE * (wanted * live).square().sum(1)  # O
    z = residual / scale
    step, energy = z.clone(), (residual * z).sum(1)  # O I, O
    for _ in range(_STEPS):
        if bool((residual.square().sum(1) <= goal).all()):
            break
        along = (step @ damped) * live
        curve = (step * along).sum(1)
        length = torch.where(curve > 0, energy / curve.clamp(min=1e-300), 0.0)
        x += length[:, None] * step
        residual -= length[:, None] * along
        z = residual / scale
        fresh = (residual * z).sum(1)
        turn = torch.where(energy > 0, fresh / energy.clamp(min=1e-300), 0.0)
        step, energy = z + turn[:, None] * step, fresh
    return x
