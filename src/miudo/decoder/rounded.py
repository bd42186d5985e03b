"""A decoder that computes with weights as a file will hold them, while floats are trained.

For: quantisation-aware training: `shown` puts rounded values in the parameters' place for as long
as a step computes, so that the gradients they get there are the floats' (straight-through,
Bengio et al. 2013; BinaryConnect, Courbariaux et al. 2015); scales are learned (LSQ, Esser et
al. 2020) as factors of those that a file began with.
Not for: which tensor gets which type (`miudo.formats.precision`), or the training itself
(`miudo.compress.quantize.trained`).
Read next: `miudo.decoder.grids`.

Shapes: n blocks of a matrix, m parts, k values of a part.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from miudo.decoder.decoder import Decoder
from miudo.decoder.grids import Grid, Held, check_trainable
from miudo.errors import CheckFailedError
from miudo.formats.blocks import encode, to_f32
from miudo.tensors import DType, StoredTensor, Weights

__all__ = ["RoundedWeights"]

_PLAIN = {DType.F16: torch.float16, DType.BF16: torch.bfloat16}


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A float parameter, its grid, and what is learned of its blocks' scales [n].

    The scale is `grid.d` times e^factor, the offset `grid.m` plus `shift` scales.
    """

    value: nn.Parameter
    grid: Grid
    factor: nn.Parameter
    shift: nn.Parameter | None

    def parts(self) -> Tensor:
        return self.value.detach().view(-1, self.grid.part)  # m k

    def held(self) -> Held:
        grid, offset = self.grid, self.grid.m
        if offset is not None and self.shift is not None:
            offset = offset + grid.d * self.shift.detach()
        return grid.hold(grid.d * self.factor.detach().exp(), offset)

    def learn(self, of_value: Tensor, beyond: Tensor) -> None:
        """Gives the scales their gradients, of those of the values shown [m, k] (LSQ).

        With v = level * s + o and the level's rounding taken straight through, a value moves
        with log s by v - x, and not with o; beyond the levels by v - o, and with o.
        """
        x, held = self.parts(), self.held()
        v = self.grid.values(x, held)
        outside = v if held.offset is None else v - held.offset
        size = _size(self.grid)
        moved = (of_value * torch.where(beyond, outside, v - x)).sum(1)  # m
        self.factor.grad = self.grid.by_block(moved) * size
        down = self.grid.steps_down()
        if self.shift is not None and down is not None:
            pushed = torch.where(beyond, of_value, 0.0).sum(1, keepdim=True) * down  # m 1
            self.shift.grad = self.grid.by_block(pushed) * self.grid.d * size


class RoundedWeights:
    """The rounding of `decoder`'s parameters to the types of `begun`, a file's tensors by name.

    Scales begin as `begun`'s and are learned until `frozen_from` of the run: from there on they
    stay, so that codes can settle. F32 tensors are not rounded. Raises ConfigError for a type
    that training cannot round to.
    """

    def __init__(self, decoder: Decoder, begun: Weights, *, frozen_from: float = 0.9) -> None:
        self._decoder, self._begun, self._frozen_from = decoder, begun, frozen_from
        self._matrices: dict[str, _Matrix] = {}
        self._plain: list[tuple[nn.Parameter, torch.dtype]] = []
        self.learned: dict[str, nn.Parameter] = {}
        """What is trained beside the weights, by name, each [n]."""
        for name, value in decoder.named_parameters():
            dtype = begun[name].dtype
            if dtype in _PLAIN:
                self._plain.append((value, _PLAIN[dtype]))
            elif dtype is not DType.F32:
                check_trainable(name, dtype)
                self._matrices[name] = self._matrix(name, value)

    def to(self, device: torch.device | str) -> None:
        """Moves what is learned, and what it began with, to where the decoder is."""
        for matrix in self._matrices.values():
            matrix.grid.to(device)
        for value in self.learned.values():
            value.data = value.data.to(device)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Inside, the decoder's parameters are the rounded values; after it the floats again."""
        kept = [(p, p.data) for p in self._decoder.parameters()]
        try:
            with torch.no_grad():
                for matrix in self._matrices.values():
                    value = matrix.grid.values(matrix.parts(), matrix.held())
                    matrix.value.data = value.view_as(matrix.value)
                for parameter, dtype in self._plain:
                    parameter.data = parameter.data.to(dtype).float()
            yield
        finally:
            for parameter, data in kept:
                parameter.data = data

    @torch.no_grad()
    def share_gradients(self, done: float) -> None:
        """Makes of the gradients of rounded weights those of floats and scales.

        A weight beyond its levels gets none. `done` is the share of the run that is over.
        """
        for matrix in self._matrices.values():
            gradient = matrix.value.grad
            if gradient is None:
                continue
            of_value = gradient.view(-1, matrix.grid.part)  # m k
            beyond = matrix.grid.beyond(matrix.parts(), matrix.held())
            if done < self._frozen_from:
                matrix.learn(of_value, beyond)
            of_value.masked_fill_(beyond, 0.0)

    @torch.no_grad()
    def store(self) -> Weights:
        """Returns the tensors of a file whose values are, to the bit, those that are shown.

        Raises CheckFailedError naming the tensor for which that is not so.
        """
        stored: dict[str, StoredTensor] = {}
        for name, plain in self._decoder.to_weights().items():
            matrix = self._matrices.get(name)
            if matrix is None:
                stored[name] = encode(to_f32(plain), self._begun[name].dtype)
            else:
                stored[name] = matrix.grid.store(matrix.parts(), matrix.held())
        with self.shown():
            trained = self._decoder.to_weights()
        for name, tensor in stored.items():
            wrong = int((to_f32(tensor) != to_f32(trained[name])).sum())
            if wrong:
                raise CheckFailedError(
                    f"{wrong} values of the file are not those that training saw",
                    where=name,
                    remedy="Report this: a type's grid and its bits disagree",
                )
        return stored

    def _matrix(self, name: str, value: nn.Parameter) -> _Matrix:
        grid = Grid(self._begun[name])
        factor = self.learned[f"scale.{name}"] = nn.Parameter(torch.zeros_like(grid.d))
        shift = None
        if grid.m is not None:
            shift = self.learned[f"offset.{name}"] = nn.Parameter(torch.zeros_like(grid.m))
        return _Matrix(value, grid, factor, shift)


def _size(grid: Grid) -> float:
    """Brings a sum over a block to the size of a weight's gradient (LSQ, section 2.2)."""
    values = grid.part * grid.parts
    return float((values * max(grid.high, 1.0)) ** -0.5)
