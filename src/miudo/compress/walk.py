"""Block by block through a decoder: what each matrix is given, while what came before changes.

For: methods that decide a matrix by its inputs (GPTQ, SparseGPT, Wanda, AWQ, learned rounding,
least-squares repair). What such a method has done to a block, the next one's inputs show.
Not for: statistics of the unchanged model in one pass (a hook is enough for those).
Read next: `miudo.compress.method`.

Shapes: B batch, T positions, D d_model, I the inputs of a matrix.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from miudo.compress.method import check_seen
from miudo.decoder.decoder import Decoder
from miudo.errors import CheckFailedError

__all__ = ["Gram", "Station", "check_saw", "walk"]


@dataclass
class Gram:
    """The inputs of a matrix, summed up: `outer` is sum x x^T [I, I] in float64."""

    outer: Tensor
    tokens: int = 0

    def add(self, x: Tensor) -> None:
        """Counts the inputs x [..., I]."""
        rows = x.detach().flatten(0, -2).float()
        self.outer += (rows.T @ rows).double()
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
    inputs: list[Tensor]
    _rest: list[tuple[Any, ...]] = field(repr=False)
    _grams: Callable[[Station, Collection[str]], dict[str, Gram]] = field(repr=False)

    @torch.no_grad()
    def outputs(self, inputs: Iterable[Tensor] | None = None) -> list[Tensor]:
        """Returns what the module, as it is now, makes of `inputs` [B, T, D] or its own."""
        given = self.inputs if inputs is None else inputs
        return [self.run(x, i) for i, x in enumerate(given)]

    def run(self, x: Tensor, index: int, instead: Mapping[str, Tensor] | None = None) -> Tensor:
        """Returns what the module makes of x [B, T, D] in the place of batch `index`.

        `instead` holds weights, by the names of `weights`, that a block is to have this once.
        """
        if instead is None:
            out: Tensor = self.module(x, *self._rest[index])
            return out
        inner = {name.removeprefix(f"{self.name}."): w for name, w in instead.items()}
        replaced: Tensor = functional_call(self.module, inner, (x, *self._rest[index]))
        return replaced

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
        found = self._grams(self, wanted)
        for name in wanted:
            check_saw(name, found.get(name), self.tokens)
        return found

    @property
    def tokens(self) -> int:
        """How many tokens come in."""
        return sum(x.shape[0] * x.shape[1] for x in self.inputs)

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


@torch.no_grad()
def walk(decoder: Decoder, batches: Iterable[Tensor], *, apart: bool = False) -> Iterator[Station]:
    """Yields `decoder`'s blocks in order, then its head, on ids [B, T].

    When the walk goes on, the block as it was left makes the next one's inputs. With `apart` each
    block is a copy that is let go then: the decoder keeps its own, and there are never two of all.
    Raises DataError if there was no token.
    """
    given = list(batches)
    check_seen("calibration", sum(ids.numel() for ids in given))
    inputs, rests = _calls(decoder, given)
    for i, layer in enumerate(decoder.layers):
        block = copy.deepcopy(layer) if apart else layer
        weights = {
            f"layers.{i}.{name}.weight": module.weight
            for name, module in block.named_modules()
            if isinstance(module, nn.Linear)
        }
        station = Station(f"layers.{i}", block, weights, inputs, rests[i], _block_grams)
        yield station
        for at, x in enumerate(inputs):  # one by one: never two streams of all tokens
            inputs[at] = station.run(x, at)
    for at, x in enumerate(inputs):
        inputs[at] = decoder.norm(x)
    name, head = ("embed.weight", decoder.embed.weight)
    if decoder.head is not None:
        name, head = ("head.weight", decoder.head.weight)
    yield Station("head", _Head(decoder), {name: head}, inputs, [()] * len(inputs), _head_grams)


class _Head(nn.Module):
    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self._logits = decoder.logits

    def forward(self, x: Tensor) -> Tensor:
        return self._logits(x)


class _Call(nn.Module):
    """In the place of a block: keeps what it is called with, and computes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, ...]] = []
        self.stream: list[Tensor] = []

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        self.stream.append(x)
        self.seen.append(rest)
        return x


def _calls(
    decoder: Decoder, batches: list[Tensor]
) -> tuple[list[Tensor], list[list[tuple[Any, ...]]]]:
    """What the first block is given [B, T, D], and each block's other arguments, a batch each.

    Those are positions and rotations: they hang on T alone, not on what blocks compute.
    """
    calls = [_Call() for _ in decoder.layers]
    shell = copy.copy(decoder)
    shell._modules = {**decoder._modules, "layers": nn.ModuleList(calls)}
    for ids in batches:
        shell(ids)
    return calls[0].stream, [call.seen for call in calls]


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
