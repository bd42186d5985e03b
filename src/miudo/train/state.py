"""What of a run is saved, and whether a saved run is the one that is being resumed.

For: counters beside the tensors, and refusing to go on with other data, model or settings.
Not for: how it lies on disk (`miudo.train.checkpoint`).
Read next: `miudo.train.loop`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from miudo.decoder.sparsity import Masks
from miudo.errors import CheckpointError, DataError, UsageError
from miudo.train.checkpoint import Checkpoint
from miudo.train.plan import Plan
from miudo.train.settings import FitSettings, Precision
from miudo.train.stepper import Stepper

__all__ = ["Counters", "capture_state", "check_same_run", "restore_state"]

_FREE_SETTINGS = frozenset(
    {"eval_every", "eval_tokens", "save_every", "keep", "log_every", "max_bad_steps"}
)
"""Settings that may differ on resume: no weight hangs on them."""
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(FitSettings)}


@dataclass(slots=True)
class Counters:
    """Where a run stands. `step` steps are done; they are the data's cursor too.

    `bad_steps` were not applied, `bad_in_row` of them just now. `losses` are those since the
    last logged step. `elapsed_s` counts all sittings.
    """

    step: int = 0
    bad_steps: int = 0
    bad_in_row: int = 0
    elapsed_s: float = 0.0
    losses: list[float] = field(default_factory=list)


def capture_state(stepper: Stepper, plan: Plan, counters: Counters) -> Checkpoint:
    """Returns all that the next step hangs on; tensors are shared, not copied.

    Frozen weights are not in it: whoever resumes brings them. Raises CheckFailedError where a
    pruned weight is no longer zero.
    """
    if stepper.masks is not None:
        stepper.masks.check(stepper.optimizers.named, where=f"step {counters.step}")
    return Checkpoint(
        weights=stepper.weights(),
        optimizer=stepper.optimizers.tensors(),
        random=_random_states(stepper.device),
        state={
            "counters": dataclasses.asdict(counters),
            "plan": dataclasses.asdict(plan),
            "settings": stepper.settings.to_json(),
            "config": stepper.decoder.config.to_json(),
            "data": stepper.data.sha256,
            "sparse": stepper.zeros,
        },
    )


def restore_state(
    stepper: Stepper, saved: Checkpoint, *, where: object = None
) -> tuple[Plan, Counters]:
    """Puts weights, moments, masks and random state back; returns plan and counters.

    Masks are the zeros of the saved weights. Raises CheckpointError if the tensors are not
    those of this decoder, or zeros were lost.
    """
    parameters = stepper.weights()
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    if {name: tuple(t.shape) for name, t in saved.weights.items()} != shapes:
        raise CheckpointError("weights do not fit the config", where=where)
    try:
        plan = Plan(**saved.state["plan"])
        counters = Counters(**saved.state["counters"])
        plan = dataclasses.replace(plan, precision=Precision(plan.precision))
        random = saved.random["torch"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"state cannot be read ({error})", where=where) from error
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved.weights[name])
    stepper.optimizers.restore(saved.optimizer, where=where)
    _restore_masks(stepper, saved.state.get("sparse", {}), where)
    torch.set_rng_state(random)
    if stepper.device.type == "cuda" and "cuda" in saved.random:
        torch.cuda.set_rng_state(saved.random["cuda"], stepper.device)
    return plan, counters


def _random_states(device: torch.device) -> dict[str, torch.Tensor]:
    """Returns the states that dropout on `device` draws from."""
    states = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _restore_masks(stepper: Stepper, sparse: Mapping[str, int], where: object) -> None:
    masks = Masks.of(stepper.decoder, sparse) if sparse else None
    found = {} if masks is None else masks.zeros()
    for name, zeros in sparse.items():
        if found[name] < zeros:
            raise CheckpointError(f"{name} has {found[name]} zeros, not {zeros}", where=where)
    if stepper.masks is not None and set(stepper.zeros) != set(sparse):
        raise UsageError(
            "the run keeps other zeros than those asked for",
            where=where,
            remedy="Resume with the model it was started with, or start a new run",
        )
    stepper.masks = masks


def check_same_run(stepper: Stepper, state: Mapping[str, Any], *, where: object) -> None:
    """Raises DataError, UsageError or CheckpointError for another data, setting or model."""
    # Through JSON, as the saved values went: tuples became lists.
    settings = json.loads(json.dumps(stepper.settings.to_json()))
    config = json.loads(json.dumps(stepper.decoder.config.to_json()))
    if state.get("data") != stepper.data.sha256:
        raise DataError(
            f"the packed text changed: SHA-256 {stepper.data.sha256[:16]}, the run began with "
            f"{str(state.get('data'))[:16]}",
            where=where,
            remedy="Pack the same text again, or start a new run in another folder",
        )
    if state.get("config") != config:
        raise UsageError(
            "the run trains a model of another shape",
            where=where,
            remedy="Resume with the preset it was started with",
        )
    saved = state.get("settings")
    if not isinstance(saved, dict):
        raise CheckpointError("has no settings", where=where)
    for name in sorted(set(settings) - _FREE_SETTINGS):
        begun = saved.get(name, _DEFAULTS[name])  # a setting that an older miudo had not
        if settings[name] != begun:
            raise UsageError(
                f"{name} is {settings[name]}, the run was started with {begun}",
                where=where,
                remedy="Resume with the same settings, or start a new run in another folder",
            )
