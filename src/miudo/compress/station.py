"""One stop of a walk: a block or the head, what comes into it, and what its matrices are given.

For: sums over a matrix's inputs (`Gram`), and a block run with other weights or other inputs.
Not for: going from block to block (`miudo.compress.walk`).
Read next: `miudo.compress.walk`.

Shapes: B batch, T positions, D d_model, I the inputs of a matrix.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from miudo.compress.stream import Stream
from miudo.errors import CheckFailedError

__all__ = ["Gram", "Station", "check_saw"]


@dataclass
class Gram:
    """The inputs of a matrix, summed up: `outer` is sum x x^T [I, I] in float64."""

    outer: Tensor
    tokens: int = 0

    def add(self, x: Tensor) -> None:
        """Counts the inputs x [..., I]."""
        rows = x.detach().flatten(0, -2).float()
        self.outer += rows.T @ rows
        self.tokens += len(rows)

    @property
    def mean_square(self) -> Tensor:
        """E[x^2] of each input [I], in float64."""
        return self.outer.diagonal() / max(self.tokens, 1)


@dataclass
class Station:
    """One stop of a walk: a block, or at the end the head.

    `weights` are the module's own parameters [out, I], by canonical name: a change in place
    holds, for the decoder too unless the walk is `apart`. `inputs` are the tensors [B, T, D] that
    come in, changed blocks before it included; when the walk goes on, the next stop's take their
    place.
    """

    name: str
    module: nn.Module
    weights: Mapping[str, Tensor]
    inputs: Stream
    _rest: list[tuple[Any, ...]] = field(repr=False)
    _attended: Stream | None = field(default=None, repr=False)

    @torch.no_grad()
    def outputs(self, inputs: Iterable[Tensor] | None = None) -> list[Tensor]:
        """Returns what the module, as it is now, makes of `inputs` [B, T, D] or its own."""
        given = self.inputs if inputs is None else inputs
        return [self.run(x, i) for i, x in enumerate(given)]

    def run(self, x: Tensor, index: int, instead: Mapping[str, Tensor] | None = None) -> Tensor:
        """Returns what the module makes of x [B, T, D] in the place of batch `index`.

        `instead` holds weights, by the names of `weights`, that a block is to have this once.
        """
        if self._attended is not None and instead is None:
            with _replaced(self.module, "attn", _Kept(self._attended[index])):
                kept: Tensor = self.module(x, *self._rest[index])
            return kept
        if instead is None:
            out: Tensor = self.module(x, *self._rest[index])
            return out
        inner = {name.removeprefix(f"{self.name}."): w for name, w in instead.items()}
        replaced: Tensor = functional_call(self.module, inner, (x, *self._rest[index]))
        return replaced

    @torch.no_grad()
    def keep_attention(self) -> None:
        """Computes what a block's attention gives for the last time; its own inputs are run then.

        From here on no matrix of it may change, and what comes after it costs what it costs
        alone: half of a walk's time goes into attention that was computed before.
        """
        if self._attended is None:
            self._attended = Stream(map(self._attention, range(len(self.inputs))))

    def _attention(self, index: int) -> Tensor:
        seen: list[Tensor] = []

        def see(*call: Any) -> None:
            seen.append(call[2])
            raise _SeenAll

        handle = self.module.get_submodule("attn").register_forward_hook(see)
        try:
            with contextlib.suppress(_SeenAll):
                self.run(self.inputs[index], index)
        finally:
            handle.remove()
        return seen[0]

    @torch.no_grad()
    def groups(self) -> list[list[str]]:
        """Returns the names of `weights` in the order they are used, those of one input together.

        To round one group changes what the groups after it are given.
        """
        if self.name == "head":
            return [list(self.weights)]
        calls: list[tuple[str, Tensor]] = []
        with _seeing(self, self.weights, lambda name, x: calls.append((name, x))):
            self.run(self.inputs[0], 0)
        groups: list[list[str]] = []
        last: Tensor | None = None
        for name, x in calls:
            if x is not last:
                groups.append([])
            groups[-1].append(name)
            last = x
        return groups

    @torch.no_grad()
    def grams(self, names: Collection[str] | None = None) -> dict[str, Gram]:
        """Returns what each matrix of `weights` is given; those of one input share a Gram.

        With `names` only theirs are found, and nothing is computed that comes after them.
        Raises CheckFailedError for a matrix that was never called, missed tokens, or saw zeros
        alone: its calibration would be worth nothing.
        """
        wanted = [name for name in self.weights if names is None or name in names]
        grams = _head_grams if self.name == "head" else _block_grams
        found = grams(self, wanted)
        for name in wanted:
            check_saw(name, found.get(name), self.tokens)
        return found

    @property
    def tokens(self) -> int:
        """How many tokens come in."""
        return self.inputs.tokens

    @torch.no_grad()
    def given(self, name: str, index: int) -> Tensor:
        """Returns what the matrix `name` is given [B, T, I] in the place of batch `index`.

        Nothing is computed that comes after it.
        """
        if self.name == "head":
            return self.inputs[index]
        seen: list[Tensor] = []

        def see(_: str, x: Tensor) -> None:
            seen.append(x)
            raise _SeenAll

        with _seeing(self, (name,), see), contextlib.suppress(_SeenAll):
            self.run(self.inputs[index], index)
        return seen[0]


def check_saw(name: str, gram: Gram | None, tokens: int) -> None:
    """Raises CheckFailedError for a matrix that was never called, missed tokens, or saw zeros."""
    trace = 0.0 if gram is None else float(gram.outer.trace())
    if gram is None or gram.tokens != tokens or not 0.0 < trace < float("inf"):
        seen = 0 if gram is None else gram.tokens
        raise CheckFailedError(
            f"calibration saw {seen} of {tokens} tokens, their squares sum to {trace}",
            where=name,
            remedy="Check that the model is trained and the text is its kind of text",
        )


class _Kept(nn.Module):
    """In the place of attention: gives what that gave."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self._value = value

    def forward(self, *_: Any) -> Tensor:
        return self._value


@contextlib.contextmanager
def _replaced(module: nn.Module, name: str, other: nn.Module) -> Iterator[None]:
    own = getattr(module, name)
    setattr(module, name, other)
    try:
        yield
    finally:
        setattr(module, name, own)


class _SeenAll(Exception):  # noqa: N818 - no error: the rest of a block is not wanted
    pass


def _block_grams(station: Station, names: Collection[str]) -> dict[str, Gram]:
    found: dict[str, Gram] = {}
    last: list[Any] = [None, None]  # the input seen last, and its Gram
    left: list[str] = []  # of this batch

    def see(name: str, x: Tensor) -> None:
        left.remove(name)
        count(name, x)
        if not left:
            raise _SeenAll

    def count(name: str, x: Tensor) -> None:
        if x is last[0]:  # q, k and v, or gate and up
            found.setdefault(name, last[1])
            return
        size = x.shape[-1]
        gram = found.setdefault(name, Gram(torch.zeros(size, size, dtype=torch.float64)))
        gram.add(x)
        last[:] = [x, gram]

    with _seeing(station, names, see):
        for i, x in enumerate(station.inputs):
            left[:] = names
            with contextlib.suppress(_SeenAll):
                station.run(x, i)
    return found


@contextlib.contextmanager
def _seeing(
    station: Station, names: Collection[str], see: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """While it holds, `see` is told what each matrix of `names` in a block is given."""
    handles = []
    for name, module in station.module.named_modules():
        key = f"{station.name}.{name}.weight"
        if isinstance(module, nn.Linear) and key in names:
            handles.append(
                module.register_forward_pre_hook(lambda _, args, key=key: see(key, args[0]))
            )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _head_grams(station: Station, names: Collection[str]) -> dict[str, Gram]:
    if not names:
        return {}
    (name,) = station.weights
    size = station.inputs[0].shape[-1]
    gram = Gram(torch.zeros(size, size, dtype=torch.float64))
    for x in station.inputs:
        gram.add(x)
    return {name: gram}
