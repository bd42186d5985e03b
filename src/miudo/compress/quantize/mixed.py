"""A type for every tensor, chosen so that a budget of bytes does the least harm.

For: files of a wanted size: what matters less is stored in fewer bits.
Not for: the rounding itself (`miudo.compress.quantize.gptq`).
Read next: `miudo.compress.quantize.plan`.

The harm of a tensor in a type is measured: KL(model || model with this tensor alone rounded) on
calibration text. That harms add up is an approximation, good where each is small.

Shapes: B batch, T positions.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from miudo.compress.method import Report, in_range
from miudo.compress.quantize.gptq import Outcome, Rounding
from miudo.compress.quantize.importance import ImportanceRounding
from miudo.compress.quantize.order import round_in_order
from miudo.compress.quantize.plan import (
    Calibration,
    Plan,
    Sequential,
    check_calibrated,
    check_enum,
    check_type,
    put,
)
from miudo.compress.quantize.propagation import STRENGTH
from miudo.decoder.decoder import Decoder
from miudo.errors import ConfigError
from miudo.formats.blocks import encode
from miudo.tensors import DType, Weights, tensor_table

__all__ = ["Choice", "MixedTypes", "cheapest_harm", "measure_harm"]

_TYPES = ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K")
# KL of one tensor is a mean over positions: a few thousand tell large harms from small ones.
_HARM_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Choice:
    """What one tensor in one type takes, and the KL in nats a position that it costs."""

    dtype: DType
    size_bytes: int
    harm: float


def cheapest_harm(choices: Mapping[str, Sequence[Choice]], budget: int) -> dict[str, Choice]:
    """Returns a choice a tensor whose bytes are at most `budget`, with little harm in sum.

    Greedy: all begin with their largest choice, and the step down that costs the least harm a
    byte is taken until the sum fits (the classic bound for a knapsack of several choices, Sinha
    and Zoltners 1979). Raises ConfigError where even the smallest choices do not fit.
    """
    taken = {name: max(some, key=lambda c: c.size_bytes) for name, some in choices.items()}
    while (size := sum(c.size_bytes for c in taken.values())) > budget:
        best: tuple[float, str, Choice] | None = None
        for name, some in choices.items():
            held = taken[name]
            for choice in some:
                saved = held.size_bytes - choice.size_bytes
                if saved > 0:
                    rate = (choice.harm - held.harm) / saved
                    if best is None or rate < best[0]:
                        best = (rate, name, choice)
        if best is None:
            raise _too_small(size, budget)
        taken[best[1]] = best[2]
    return taken


@torch.no_grad()
def measure_harm(
    decoder: Decoder, batches: Sequence[Tensor], types: Sequence[DType]
) -> dict[str, list[Choice]]:
    """Returns every tensor's choices: the types that it can have, by measured KL.

    Types that a tensor cannot have are not chosen for another that stands in: each distinct
    type that `precision.stored_dtype` gives is one choice. Norms and biases have one, F32.
    """
    given = _first(batches, _HARM_TOKENS)
    weighed = ImportanceRounding().calibrate(decoder, given)
    reference = [_log_probs(decoder, ids) for ids in given]
    work = copy.deepcopy(decoder)
    parameters = dict(work.named_parameters())
    plans = [Plan.of(decoder, dtype) for dtype in types]
    choices: dict[str, list[Choice]] = {}
    for spec in tensor_table(decoder.config):
        weight = parameters[spec.name]
        whole = weight.detach().clone()
        found = dict.fromkeys(plan.dtypes[spec.name] for plan in plans)
        choices[spec.name] = []
        for dtype in found:
            harm = 0.0
            if dtype is not DType.F32:
                put(weight, encode(whole.numpy(), dtype, weighed.get(spec.name)))
                harm = _divergence(work, given, reference)
            choices[spec.name].append(Choice(dtype, dtype.size_bytes(spec.shape), harm))
        weight.copy_(whole)
    return choices


@dataclass(frozen=True, slots=True)
class MixedTypes(Sequential):
    """Stores each tensor in one of `types` so that all weights take at most `max_bytes`.

    What is chosen is rounded by `rounding`, after `propagation` as for GPTQ. Raises ConfigError
    for a type without a rounding rule or a value out of range.
    """

    name: ClassVar[str] = "mixed"

    max_bytes: int = 1 << 40
    types: tuple[str, ...] = _TYPES
    rounding: Rounding = Rounding.GPTQ
    propagation: float = STRENGTH

    def __post_init__(self) -> None:
        in_range("propagation", self.propagation, 0.0, 1.0)
        in_range("max_bytes", self.max_bytes, 1, 1 << 60, whole=True)
        check_enum("rounding", self.rounding, Rounding)
        if type(self.types) is not tuple or not self.types:
            raise ConfigError(f"types is {self.types!r}", remedy=f"Give names as {_TYPES}")
        for name in self.types:
            if name not in tuple(DType):
                raise ConfigError(f"types holds {name!r}", remedy=f"Give names as {_TYPES}")
            check_type(DType(name))

    def store(
        self, decoder: Decoder, statistics: Calibration | None = None
    ) -> tuple[Weights, Report]:
        """Returns the file's tensors and the report, which says what each type holds.

        Raises ConfigError where the budget is too small for the smallest types.
        """
        batches = check_calibrated(self, statistics)
        types = [DType(name) for name in self.types]
        # Measuring takes minutes: what nothing fits into is said before.
        if (least := _least_bytes(decoder, types)) > self.max_bytes:
            raise _too_small(least, self.max_bytes)
        choices = measure_harm(decoder, batches, types)
        taken = cheapest_harm(choices, self.max_bytes)
        outcome = Outcome()
        plan = Plan.of(decoder, {name: choice.dtype for name, choice in taken.items()})
        rule = self.rounding.rule(outcome)
        stored = round_in_order(decoder, batches, plan, rule, propagation=self.propagation)
        notes = (*_held(taken), *outcome.notes())
        return stored, plan.report(self, decoder, f"type by harm, {self.rounding}", notes)


def _least_bytes(decoder: Decoder, types: Sequence[DType]) -> int:
    plans = [Plan.of(decoder, dtype) for dtype in types]
    return sum(
        min(plan.dtypes[spec.name].size_bytes(spec.shape) for plan in plans)
        for spec in tensor_table(decoder.config)
    )


def _too_small(least: int, budget: int) -> ConfigError:
    return ConfigError(
        f"weights take at least {least} bytes, {budget} are allowed",
        where="max_bytes",
        remedy="Allow more, or give smaller types (--set types=...)",
    )


def _held(taken: Mapping[str, Choice]) -> tuple[str, ...]:
    """Returns a note a type: how many tensors and bytes, which add up to the file's weights."""
    found: dict[DType, list[int]] = {}
    for choice in taken.values():
        found.setdefault(choice.dtype, []).append(choice.size_bytes)
    harm = sum(choice.harm for choice in taken.values())
    sizes = [f"{dtype}: {len(each)} tensors, {sum(each)} B" for dtype, each in found.items()]
    return (*sizes, f"measured harms add up to KL {harm:.5f}")


def _first(batches: Sequence[Tensor], tokens: int) -> list[Tensor]:
    """Returns batches from all of the text that hold about so many tokens, one at least."""
    total = sum(ids.numel() for ids in batches)
    every = max(1, total // tokens)
    return list(batches[::every])


def _log_probs(decoder: Decoder, ids: Tensor) -> Tensor:
    return decoder.logits(decoder(ids)).log_softmax(-1)


def _divergence(decoder: Decoder, batches: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """Returns mean KL(reference || decoder) in nats a position, never negative."""
    total, positions = 0.0, 0
    for ids, p in zip(batches, reference, strict=True):
        q = _log_probs(decoder, ids)
        total += float((p.exp() * (p - q)).sum(dtype=torch.float64))
        positions += ids.numel()
    return max(total / positions, 0.0)
