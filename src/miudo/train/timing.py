"""From "train for 20 minutes" to a number of steps, once.

For: measuring steps on the run's own weights, which are put back after.
Not for: benchmarks (`benchmarks/train_speed.py`).
Read next: `miudo.train.loop`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from miudo.train.plan import Plan, make_plan, wants_compile
from miudo.train.settings import Compile
from miudo.train.speed import planned_steps
from miudo.train.stepper import Stepper

__all__ = ["decide", "trial_step_s"]

_WARM, _TIMED = 1, 2
_PLAN_STEPS = 1 << 20
"""Steps that a trial's schedule is told: its learning rate is thrown away with its weights."""
_OVERHEAD = 0.97
"""Share of the time that is left to steps, besides evaluation and saving."""


def decide(stepper: Stepper) -> Plan:
    """Returns the plan of a new run; weights, moments and gradients are left as they were."""
    s = stepper.settings
    if s.minutes is None:
        steps = s.steps if s.steps is not None else -(-(s.tokens or 0) // s.step_tokens)
        compiled = wants_compile(s.compile, steps * s.step_tokens, stepper.device.type)
        return make_plan(s, steps=steps, compiled=compiled, device=stepper.device.type)
    started = time.perf_counter()
    with _put_back(stepper):
        seconds, compiled = _measure(stepper, s.minutes * 60.0)
    left = s.minutes * 60.0 - (time.perf_counter() - started)
    steps = max(1, int(_OVERHEAD * left / seconds))
    return make_plan(s, steps=steps, compiled=compiled, device=stepper.device.type)


def trial_step_s(stepper: Stepper, *, compiled: bool) -> float:
    """Returns the seconds of a step, measured on a few that are taken back."""
    with _put_back(stepper):
        return _seconds_a_step(stepper, compiled=compiled)


@contextmanager
def _put_back(stepper: Stepper) -> Iterator[None]:
    weights = stepper.weights()
    before = {name: value.detach().clone() for name, value in weights.items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in weights.items():
                value.copy_(before[name])
        stepper.optimizers.restore({})
        stepper.optimizers.forget_gradients()


def _measure(stepper: Stepper, seconds_in_all: float) -> tuple[float, bool]:
    """Returns seconds a step, and whether that was compiled."""
    s = stepper.settings
    if s.compile is not Compile.ON:
        eager = _seconds_a_step(stepper, compiled=False)
        tokens = seconds_in_all / eager * s.step_tokens
        if not wants_compile(s.compile, tokens, stepper.device.type):
            return eager, False
    return _seconds_a_step(stepper, compiled=True), True


def _seconds_a_step(stepper: Stepper, *, compiled: bool) -> float:
    plan = make_plan(
        stepper.settings, steps=_PLAN_STEPS, compiled=compiled, device=stepper.device.type
    )
    with planned_steps(stepper, plan):
        for step in range(_WARM):
            stepper.take(step, plan)
        started = time.perf_counter()
        for step in range(_WARM, _WARM + _TIMED):
            stepper.take(step, plan)
        return (time.perf_counter() - started) / _TIMED
