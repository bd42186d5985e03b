"""The zeros of a pruned model: which they are, and that they stay.

For: every verb that goes on with a sparse model (recovery, fine-tuning, merging, rounding).
Not for: choosing what becomes zero (`miudo.compress.prune.sparse`).
Read next: `miudo.train.stepper`, which puts the zeros back after each step.

A mask is no file of its own: it is what is exactly zero in the matrices that the model's record
names as sparse. The record also says how many zeros each had, so that a model whose zeros were
lost on the way is refused, and so is one that is sparse and whose record knows nothing of it:
there the user says whether the zeros are meant.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from miudo.decoder.decoder import Decoder
from miudo.errors import CheckFailedError, ModelFileError
from miudo.formats.zeros import declared
from miudo.records import Record

__all__ = ["Masks", "masks_to_keep"]

_CLEARLY = 0.05
"""A share of zeros that no training leaves by itself."""


@dataclass(frozen=True)
class Masks:
    """Where each sparse matrix may be other than zero: bool [out, in] by canonical name."""

    live: Mapping[str, Tensor]

    @classmethod
    def of(cls, decoder: Decoder, names: Iterable[str] | None = None) -> Masks:
        """Returns where the matrices `names`, or all of the blocks that hold zeros, are not zero.

        Raises ModelFileError for a name that the decoder has not.
        """
        there = dict(_matrices(decoder))
        chosen = [n for n, w in there.items() if bool((w == 0).any())] if names is None else names
        if unknown := sorted(set(chosen) - set(there)):
            raise ModelFileError(
                f"its record names {unknown[0]} as sparse, which is no matrix of its blocks",
                remedy="Record and weights must be of one model",
            )
        return cls({name: there[name] != 0 for name in chosen})

    def zero_gradients(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Takes the masked weights' gradients out, so that no moment learns of them."""
        for name, live in self.live.items():
            gradient = parameters[name].grad
            if gradient is not None:
                gradient.mul_(live)

    @torch.no_grad()
    def put_back(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Sets the masked weights to zero: what moves all of a matrix (Muon) has moved them."""
        for name, live in self.live.items():
            parameters[name].mul_(live)

    def check(self, parameters: Mapping[str, Tensor], *, where: object = None) -> None:
        """Raises CheckFailedError naming the first matrix with a masked weight that is not zero."""
        for name, live in self.live.items():
            lost = int((parameters[name].detach()[~live] != 0).sum())
            if lost:
                raise CheckFailedError(
                    f"{name}: {lost} of {int((~live).sum())} pruned weights are no longer zero",
                    where=where,
                    remedy="Take an earlier checkpoint, and report it",
                )

    def zeros(self) -> dict[str, int]:
        """Returns how many weights of each matrix are masked, as a record keeps it."""
        return {name: int((~live).sum()) for name, live in self.live.items()}

    def to(self, device: torch.device) -> Masks:
        """Returns the masks on `device`."""
        return Masks({name: live.to(device) for name, live in self.live.items()})


def masks_to_keep(
    decoder: Decoder, record: Record | None, *, keep: bool | None = None, where: object = None
) -> Masks | None:
    """Returns the zeros that whoever trains on must keep, None where there are none.

    `keep` None goes by the record, and raises CheckFailedError where it and the weights disagree:
    fewer zeros than it names, or a sparse model that it does not know as one. True takes the
    weights' zeros as they are; False keeps none.
    """
    if keep is False:
        return None
    named = declared(record)
    if keep:
        found = Masks.of(decoder)
        return found if found.live else None
    if named:
        masks = Masks.of(decoder, named)
        for name, zeros in masks.zeros().items():
            if zeros < named[name]:
                raise CheckFailedError(
                    f"{name} has {zeros} zeros, its record names {named[name]}",
                    where=where,
                    remedy="Say whether the zeros that are left stay: --keep-zeros, --free-zeros",
                )
        return masks
    scattered = sum(_scattered(weight == 0) for _, weight in _matrices(decoder))
    weights = sum(weight.numel() for _, weight in _matrices(decoder))
    if scattered > _CLEARLY * weights:
        raise CheckFailedError(
            f"{scattered} of {weights} weights are zero, and no record says that it was pruned",
            where=where,
            remedy="Say whether the zeros are to stay: --keep-zeros, --free-zeros",
        )
    return None


def _scattered(zero: Tensor) -> int:
    """How many zeros lie outside rows and columns of nothing else: those may be padding."""
    rows, columns = int((~zero.all(1)).sum()), int((~zero.all(0)).sum())
    return rows * columns - int((~zero).sum())


def _matrices(decoder: Decoder) -> Iterable[tuple[str, Tensor]]:
    for name, module in decoder.layers.named_modules(prefix="layers"):
        if isinstance(module, nn.Linear):
            yield f"{name}.weight", module.weight.detach()
