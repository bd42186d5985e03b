"""A decoder that computes with weights as a file will hold them, while floats are trained.

For: quantisation-aware training: `shown` puts rounded values in the parameters' place for as long
as a step computes, so that the gradients they get there are the floats' (straight-through,
Bengio et al. 2013; BinaryConnect, Courbariaux et al. 2015); scales are learned (LSQ, Esser et
al. 2020) as factors of those found at the start.
Not for: which tensor gets which type (`miudo.formats.precision`), or the training itself
(`miudo.compress.quantize.trained`).
Read next: `miudo.decoder.grids`.

Shapes: m parts of a matrix, k values of a part.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from miudo.decoder.decoder import Decoder
from miudo.decoder.grids import GRIDS, Grid, Held, Scales
from miudo.errors import CheckFailedError, ConfigError
from miudo.formats.blocks import encode, to_f32
from miudo.formats.block_scales import blocks_of
from miudo.tensors import DType, StoredTensor, Weights

__all__ = ["RoundedWeights"]

_PLAIN = {DType.F16: torch.float16, DType.BF16: torch.bfloat16}


@dataclass(slots=True)
class _Matrix:
    """One matrix: its float parameter, its grid, the scales it began with, what is learned."""

    name: str
    dtype: DType
    value: nn.Parameter
    grid: Grid
    start: Scales
    factor: nn.Parameter  # m, the logarithm
    shift: nn.Parameter | None  # m, in scales

    def parts(self) -> Tensor:
        return self.value.detach().view(-1, self.grid.part)

    @torch.no_grad()
    def held(self) -> Held:
        scale, offset = self.start.scale * self.factor.exp(), self.start.offset
        if offset is not None and self.shift is not None:
            offset = offset + self.start.scale * self.shift
        return self.grid.hold(Scales(scale, offset))


class RoundedWeights:
    """The rounding of `decoder`'s parameters to the types of `begun`, a file's tensors by name.

    Scales are `begun`'s times learned factors, offsets `begun`'s plus learned shifts, until
    `frozen_from` of the run: from there on they stay, so that codes can settle. F32 tensors are
    not rounded. Raises ConfigError for a type that training cannot round to.
    """

    def __init__(
        self,
        decoder: Decoder,
        begun: Weights,
        *,
        frozen_from: float = 0.9,
    ) -> None:
        self._frozen_from = frozen_from
        self._decoder, self._dtypes = decoder, {name: t.dtype for name, t in begun.items()}
        self._matrices: list[_Matrix] = []
        self._plain: list[tuple[nn.Parameter, torch.dtype]] = []
        self.learned: dict[str, nn.Parameter] = {}
        """What is trained beside the weights, by name, each [m]."""
        for name, value in decoder.named_parameters():
            dtype = self._dtypes[name]
            if dtype in _PLAIN:
                self._plain.append((value, _PLAIN[dtype]))
            elif dtype is not DType.F32:
                self._matrices.append(self._matrix(name, begun[name], value))

    def to(self, device: torch.device | str) -> None:
        """Moves what is learned, and what it began with, to where the decoder is."""
        for matrix in self._matrices:
            start = matrix.start
            offset = None if start.offset is None else start.offset.to(device)
            matrix.start = Scales(start.scale.to(device), offset)
        for value in self.learned.values():
            value.data = value.data.to(device)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Inside, the decoder's parameters are the rounded values; after it the floats again."""
        kept = [(p, p.data) for p in self._decoder.parameters()]
        try:
            with torch.no_grad():
                for matrix in self._matrices:
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
        for matrix in self._matrices:
            gradient = matrix.value.grad
            if gradient is None:
                continue
            x, held = matrix.parts(), matrix.held()
            of_value = gradient.view_as(x)
            beyond = matrix.grid.beyond(x, held)
            if done < self._frozen_from:
                _scale_gradients(matrix, x, held, of_value, beyond)
            of_value.masked_fill_(beyond, 0.0)

    @torch.no_grad()
    def store(self) -> Weights:
        """Returns the tensors of a file whose values are, to the bit, those that are shown.

        Raises CheckFailedError naming the tensor for which that is not so.
        """
        matrices = {matrix.name: matrix for matrix in self._matrices}
        stored: dict[str, StoredTensor] = {}
        for name, plain in self._decoder.to_weights().items():
            matrix = matrices.get(name)
            if matrix is None:
                stored[name] = encode(to_f32(plain), self._dtypes[name])
                continue
            stored[name] = _stored(matrix)
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

    def _matrix(self, name: str, begun: StoredTensor, value: nn.Parameter) -> _Matrix:
        dtype = begun.dtype
        if dtype not in GRIDS:
            raise ConfigError(
                f"{name}: training cannot round to {dtype}",
                remedy=f"Known are {', '.join(GRIDS)}",
            )
        start, shift = GRIDS[dtype].scales(begun), None
        factor = self.learned[f"scale.{name}"] = nn.Parameter(torch.zeros_like(start.scale))
        if start.offset is not None:
            shift = self.learned[f"offset.{name}"] = nn.Parameter(torch.zeros_like(start.scale))
        return _Matrix(name, dtype, value, GRIDS[dtype], start, factor, shift)


def _scale_gradients(
    matrix: _Matrix, x: Tensor, held: Held, of_value: Tensor, beyond: Tensor
) -> None:
    """LSQ: inside, a value moves with its scale by what it was rounded by; beyond, by its level.

    With v = level * scale + offset and the level rounded straight-through, dv/dscale is
    (v - x) / scale inside and the end's level beyond, dv/doffset 0 and 1.
    """
    v = matrix.grid.values(x, held)
    # Gradients of sums of k values, brought to the size of a weight's (section 2.2 there).
    size = (matrix.grid.part * max(matrix.grid.high, 1.0)) ** -0.5
    outside = v if held.offset is None else v - held.offset
    of_log = torch.where(beyond, outside, v - x)  # scale * dv/dscale
    matrix.factor.grad = (of_value * of_log).sum(1) * size
    if matrix.shift is not None:
        of_shift = torch.where(beyond, of_value, 0.0).sum(1)
        matrix.shift.grad = of_shift * matrix.start.scale * size


def _stored(matrix: _Matrix) -> StoredTensor:
    x, held = matrix.parts(), matrix.held()
    codes = matrix.grid.codes(x, held).view(-1, matrix.grid.block)

    d, m, scales, offsets = (
        None if tensor is None else tensor.cpu().numpy()
        for tensor in (held.d, held.m, held.scale_steps, held.offset_steps)
    )
    data = blocks_of(matrix.dtype, codes.cpu().numpy(), d, m, scales, offsets)
    return StoredTensor(matrix.dtype, tuple(matrix.value.shape), data)
