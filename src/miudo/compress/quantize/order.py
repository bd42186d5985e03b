"""The order of rounding: block after block, each matrix on what the rounded ones give it.

For: methods that decide a matrix by its inputs; they only say how one is rounded.
Not for: which tensor gets which type (`miudo.compress.quantize.plan`).
Read next: `miudo.compress.walk`; then `miudo.compress.quantize.propagation`.

Shapes: O outputs and I inputs of a matrix.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from miudo.compress.quantize.plan import Calibration, Plan, put
from miudo.compress.quantize.propagation import corrected, moments, solver
from miudo.compress.quantize.tables import table_gram
from miudo.compress.station import Gram, Station
from miudo.compress.walk import walk
from miudo.decoder.decoder import Decoder
from miudo.formats.blocks import encode
from miudo.meter import give_back
from miudo.tensors import DType, StoredTensor

__all__ = ["Rule", "round_in_order"]

Rule = Callable[[str, Tensor, Gram, DType], StoredTensor]
"""Given a matrix's name, its weight [O, I], its inputs and its type, returns it rounded."""


def round_in_order(
    decoder: Decoder,
    batches: Calibration,
    plan: Plan,
    rule: Rule,
    before: Callable[[Station], None] = lambda _: None,
    *,
    propagation: float = 0.0,
) -> dict[str, StoredTensor]:
    """Returns the file's tensors: each matrix rounded by `rule` on the inputs that it will get.

    Those are made by what was rounded before it, in the same block too. The token table comes
    first, since everything is made from it (`tables.table_gram`). `before` may change a block
    that is about to be rounded (its float function must stay), where there is no `propagation`:
    with it a matrix makes up for what was rounded before it (`propagation.corrected`). What has
    no inputs, norms and positions, is stored as the plan says.
    """
    work = _own_tables(decoder)
    stored: dict[str, StoredTensor] = {}

    def settle(name: str, weight: Tensor, gram: Gram, wanted: Tensor) -> None:
        give_back()
        stored[name] = rule(name, wanted, gram, plan.dtypes[name])
        put(weight, stored[name])

    def settle_plain(name: str, weight: Tensor) -> None:
        stored[name] = encode(weight.detach().numpy(), plan.dtypes[name])
        put(weight, stored[name])

    if plan.dtypes["embed.weight"].block > 1:
        table = work.embed.weight
        settle("embed.weight", table, table_gram(decoder, batches), table.detach())
    else:  # its curvature takes longer than all the rest, and would not be asked for
        settle_plain("embed.weight", work.embed.weight)
    if work.position is not None:
        settle_plain("position.weight", work.position.weight)
    whole: Iterator[Station | None] = itertools.repeat(None)
    if propagation:
        whole = walk(decoder, batches)
    for station, aim in zip(walk(work, batches, apart=True), whole, strict=False):
        before(station)
        own = dict(station.module.named_parameters(prefix=station.name)) | {**station.weights}
        for name, value in own.items():
            if name not in stored and plan.dtypes[name].block == 1:  # no input says how
                settle_plain(name, value)
        for group in station.groups():
            if group[0].startswith(f"{station.name}.mlp."):
                for stop in (station, aim) if aim is not None else (station,):
                    stop.keep_attention()
            left = [name for name in group if name not in stored]
            if aim is None:
                for name, gram in station.grams(left).items():
                    settle(name, station.weights[name], gram, station.weights[name].detach())
                continue
            if left:
                weights = {name: station.weights[name] for name in left}
                gram, aims = _aims(weights, station, aim, propagation)
                for name, wanted in aims.items():
                    settle(name, weights[name], gram, wanted)
                del weights, gram, aims  # before the next ones are found
    for name, value in work.named_parameters():
        if name not in stored:  # the decoder's own norms: nothing is put
            stored[name] = encode(value.detach().numpy(), plan.dtypes[name])
    return {name: stored[name] for name in plan.dtypes}


def _aims(
    weights: Mapping[str, Tensor], station: Station, aim: Station, strength: float
) -> tuple[Gram, dict[str, Tensor]]:
    """Returns the Gram of matrices that share their inputs, and what each is to be instead."""
    first = next(iter(weights))
    give_back()
    gram, missing = moments(station, aim, first)
    give_back()
    factor = solver(first, gram)
    if factor is None:
        return gram, {name: weight.detach() for name, weight in weights.items()}
    return gram, {
        name: corrected(weight.detach(), factor, gram, missing, strength)
        for name, weight in weights.items()
    }


def _own_tables(decoder: Decoder) -> Decoder:
    """Returns a decoder of the same blocks, whose table, positions and head are copies."""
    work = copy.copy(decoder)
    work._modules = dict(decoder._modules)
    work.embed, work.position = copy.deepcopy(decoder.embed), copy.deepcopy(decoder.position)
    work.head = copy.deepcopy(decoder.head)
    return work
