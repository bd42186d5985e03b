"""Block by block through a decoder: what each matrix is given, while what came before changes.

For: methods that decide a matrix by its inputs (GPTQ, SparseGPT, Wanda, AWQ, learned rounding,
least-squares repair). What such a method has done to a block, the next one's inputs show.
Not for: statistics of the unchanged model in one pass (a hook is enough for those).
Read next: `miudo.compress.station`.

Shapes: B batch, T positions, D d_model, I the inputs of a matrix.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from miudo.compress.method import check_seen
from miudo.compress.station import Station
from miudo.compress.stream import Stream
from miudo.decoder.decoder import Decoder

__all__ = ["walk"]


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
        station = Station(f"layers.{i}", block, weights, inputs, rests[i])
        yield station
        for at, x in enumerate(inputs):
            inputs[at] = station.run(x, at)
    for at, x in enumerate(inputs):
        inputs[at] = decoder.norm(x)
    name, head = ("embed.weight", decoder.embed.weight)
    if decoder.head is not None:
        name, head = ("head.weight", decoder.head.weight)
    yield Station("head", _Head(decoder), {name: head}, inputs, [()] * len(inputs))


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
        self.given: Tensor | None = None
        self._of_length: dict[int, tuple[Any, ...]] = {}

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        self.given = x
        self.seen.append(self._of_length.setdefault(x.shape[1], rest))
        return x


def _calls(decoder: Decoder, batches: list[Tensor]) -> tuple[Stream, list[list[tuple[Any, ...]]]]:
    """What the first block is given [B, T, D], and each block's other arguments, a batch each.

    Those are positions and rotations: they hang on T alone, and batches of one T share them.
    """
    calls = [_Call() for _ in decoder.layers]
    shell = copy.copy(decoder)
    shell._modules = {**decoder._modules, "layers": nn.ModuleList(calls)}

    def first(ids: Tensor) -> Tensor:
        shell(ids)
        assert calls[0].given is not None  # noqa: S101 - the shell calls every block
        return calls[0].given

    return Stream(map(first, batches)), [call.seen for call in calls]
