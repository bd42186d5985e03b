"""What is predicted of every candidate before any training: bytes, speed, loss, cost.

For: choosing which candidates are worth a short training.
Not for: what is measured (`miudo.shrink.measure`); the report holds both against each other.
Read next: `miudo.shrink.halving`.

Bytes are counted in the tensor table, plus what the teacher's file has besides tensors. Speed
is the time in which a token's bytes could be read and its products done here, times the factor
by which the rounded teacher was slower than that. Loss is that right after cutting, plus what
the rounding alone, and zeros alone, added to the teacher's.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from miudo.config import ModelConfig
from miudo.decoder.grids import holds_zero
from miudo.engine.probe import Peaks
from miudo.errors import CheckFailedError, UsageError
from miudo.evaluate.roofline import Numbers, bounds, step_work
from miudo.formats.blocks import CODECS
from miudo.formats.precision import stored_dtype
from miudo.shrink.budget import Figures, enough_for
from miudo.shrink.candidates import (
    NEAREST,
    Candidate,
    Step,
    ends_sparse,
    propose,
)
from miudo.shrink.damage import Cuts, rounding_damage
from miudo.shrink.ground import Baseline, Ground
from miudo.shrink.halving import Round, plan_rounds, rounds_of_steps
from miudo.shrink.jobs import ShrinkSettings
from miudo.tensors import DType, Role, StoredTensor, parameter_count, tensor_table

__all__ = [
    "MOST_LATE",
    "Forecast",
    "Guess",
    "controls_step_s",
    "forecast",
    "predicted_bytes",
    "predicted_speed",
    "stored_types",
]

MOST_LATE = 2
"""So many of the best are rounded by a method that is too slow for all."""

_LATE = "slow, for the best alone"

_PRUNED = (Role.ATTENTION, Role.MLP)

_NO_ZERO = "no exact zero"
"""Why a sparse model is not stored in a type with offsets: what was pruned would come back."""

_NO_VALUES = StoredTensor.from_f32(np.zeros(1, dtype=np.float32))
"""A tensor whose values need no wider type: shapes decide."""


@dataclass(frozen=True, slots=True)
class Guess:
    """What is predicted of a candidate. `out` says why it is not tried, empty if it may be.

    One that is `late` is tried where the same trunk in the same type is among the best.
    """

    candidate: Candidate
    parameters: int
    size_bytes: float
    tokens_per_s: float
    loss: float
    step_s: float
    out: str = ""

    @property
    def late(self) -> bool:
        """Whether it is tried only where its trunk and type lead."""
        return self.out == _LATE

    def figures(self, teacher_loss: float) -> Figures:
        """Returns the figures to rank by."""
        increase = math.expm1(min(50.0, self.loss - teacher_loss))
        return Figures(self.size_bytes, self.tokens_per_s, increase)


@dataclass(frozen=True, slots=True)
class Forecast:
    """All guesses, the trunks to be tried in order, and the rounds of those that learn.

    `last_steps` is how long the last round's learn; the others' share grows to that.
    """

    guesses: tuple[Guess, ...]
    trunks: tuple[str, ...]
    rounds: tuple[Round, ...]
    seconds: float

    def of(self, group: str) -> list[Guess]:
        """Returns the guesses of one trunk that may be tried."""
        return [g for g in self.guesses if g.candidate.group == group and not g.out]

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values; `from_json` gives back an equal forecast."""
        return {
            "schema": 1,
            "guesses": [
                {
                    **{f.name: getattr(g, f.name) for f in dataclasses.fields(g)},
                    "candidate": g.candidate.to_json(),
                }
                for g in self.guesses
            ],
            "trunks": list(self.trunks),
            "rounds": [dataclasses.asdict(r) for r in self.rounds],
            "seconds": self.seconds,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Forecast:
        """Returns the forecast that `to_json` wrote."""
        guesses = [
            Guess(**{**g, "candidate": Candidate.from_json(g["candidate"])})
            for g in values["guesses"]
        ]
        rounds = tuple(Round(**r) for r in values["rounds"])
        return cls(tuple(guesses), tuple(values["trunks"]), rounds, values["seconds"])


def forecast(ground: Ground, baseline: Baseline) -> Forecast:
    """Returns the forecast of every candidate for the ground's budget and time.

    Raises CheckFailedError where no candidate is small enough, naming the smallest, and
    UsageError where the time is too short for one step, or for every method that is given.
    """
    settings = ground.job.settings
    candidates = propose(ground.teacher.decoder.config, settings.order, settings.methods)
    if not candidates:
        raise UsageError(
            "this teacher has no candidate of that order and those methods",
            where="--order, methods",
            remedy="Leave them out: all are tried",
        )
    started = time.perf_counter()
    damage, slow, late = rounding_damage(ground, baseline, candidates)
    guesses, waiting = list[Guess](), list[Guess]()
    trunks: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        trunks.setdefault(candidate.group, []).append(candidate)
    cuts = Cuts(ground, baseline.loss)
    configs: dict[str, ModelConfig] = {}
    for members in trunks.values():
        config, loss = cuts.of(members[0])
        configs[members[0].trunk_name] = config
        for candidate in members:
            method = candidate.rounding.method
            if method in slow and method not in late:
                continue
            told = loss + damage[candidate.rounding]
            guess = _guess(ground, baseline, candidate, config, told)
            if method not in late:
                guesses.append(guess)
            elif not guess.out:
                waiting.append(dataclasses.replace(guess, out=_LATE))
    for method, why in slow.items():
        ground.progress.note(f"{'for the best alone' if method in late else 'not tried'}: {why}")
    guesses = _without_doubles(guesses, configs)
    _check_possible(ground, guesses, slow)
    tried = _ranked_trunks(ground, baseline, guesses)
    spent_s = baseline.elapsed_s + time.perf_counter() - started
    spent_s += MOST_LATE * max(late.values(), default=0.0)
    seconds = _seconds_to_learn(ground, baseline, spent_s)
    rounds = _rounds(ground, baseline, guesses, tried, seconds)
    learning = [name for name in tried if _learns(guesses, name)]
    kept = set(learning[: rounds[0].candidates] if rounds else ())
    free = [name for name in tried if name not in learning]
    # Without learning most cuts are worth nothing: a few show what learning gives.
    few = free[: max(2, settings.trunks // 3)]
    chosen = tuple(name for name in tried if name in kept or name in few)
    return Forecast((*guesses, *waiting), chosen, rounds, seconds)


def stored_types(config: ModelConfig, rounding: Step) -> dict[str, DType]:
    """Returns the type of every tensor by name, as `rounding` will store it by its shape."""
    settings = getattr(rounding.build(), "tables", None)
    dtype = DType(str(rounding.values["dtype"]))
    found = {}
    for spec in tensor_table(config):
        table = spec.role in (Role.EMBED, Role.HEAD) and settings is not None
        wanted = DType(settings) if table and settings is not None else dtype
        found[spec.name] = stored_dtype(spec, _NO_VALUES, wanted)[0]
    return found


def predicted_bytes(config: ModelConfig, dtypes: Mapping[str, DType]) -> int:
    """Returns the bytes of a model's tensors in these types."""
    return sum(dtypes[s.name].size_bytes(s.shape) for s in tensor_table(config))


def controls_step_s(settings: ShrinkSettings, baseline: Baseline, costs: Iterable[float]) -> float:
    """Returns what a step of all controls together costs at most, in seconds.

    From nothing and by text alone are trained for every seed, that by magnitude once, and the
    chosen one again for every further seed.
    """
    return 2 * settings.seeds * baseline.plain_step_s + settings.seeds * max(costs, default=0.0)


def predicted_speed(config: ModelConfig, dtypes: Mapping[str, DType], baseline: Baseline) -> float:
    """Returns new tokens a second of a model in these types, by the baseline's machine."""
    numbers = Numbers(dtypes, int8=True, cache="f16")
    speed = baseline.eight_bit.row.bench.speed
    work = step_work(config, numbers, [(speed.prompt_tokens + speed.new_tokens // 2, 1)])
    peaks = Peaks(0, baseline.read_bytes_per_s, baseline.int8_ops_per_s, baseline.float_ops_per_s)
    return 1.0 / (max(bounds(work, peaks)) * baseline.slowness)


def _guess(
    ground: Ground, baseline: Baseline, candidate: Candidate, config: ModelConfig, loss: float
) -> Guess:
    dtypes = stored_types(config, candidate.rounding)
    size = predicted_bytes(config, dtypes) + baseline.extra_bytes
    limit = ground.job.budget.max_size_bytes
    out = "" if limit is None or size <= limit else f"{size / 1e6:,.2f} MB, too large"
    if ends_sparse(candidate.trunk, begins=ground.sparse) and not _hold_zeros(config, dtypes):
        out = _NO_ZERO
    share = _products(config) / _products(ground.teacher.decoder.config)
    # The teacher reads along; a student's own share goes with its products.
    teaching = baseline.full_step_s - baseline.plain_step_s
    step_s = max(0.0, teaching) + baseline.plain_step_s * share if candidate.learns else 0.0
    return Guess(
        candidate=candidate,
        parameters=parameter_count(config),
        size_bytes=size,
        tokens_per_s=predicted_speed(config, dtypes, baseline),
        loss=loss,
        step_s=step_s,
        out=out,
    )


def _hold_zeros(config: ModelConfig, dtypes: Mapping[str, DType]) -> bool:
    """Whether every matrix of the blocks is of a type in which 0 is 0."""
    matrices = [s for s in tensor_table(config) if s.role in _PRUNED and len(s.shape) > 1]
    return all(dtypes[s.name] not in CODECS or holds_zero(dtypes[s.name]) for s in matrices)


def _without_doubles(guesses: Sequence[Guess], configs: Mapping[str, ModelConfig]) -> list[Guess]:
    """Marks as out what would be the same file: rows that fit no blocks of 256 fall to others.

    `configs` are the trunks' by name. Types count, not bytes: Q4_K, Q4_0 and IQ4_NL are of one
    size.
    """
    seen: dict[tuple[str, str, frozenset[tuple[str, DType]]], str] = {}
    found = []
    for guess in guesses:
        candidate = guess.candidate
        types = stored_types(configs[candidate.trunk_name], candidate.rounding)
        key = candidate.trunk_name, candidate.rounding.method, frozenset(types.items())
        first = seen.setdefault(key, candidate.name)
        if first != candidate.name and not guess.out:
            guess = dataclasses.replace(guess, out=f"the same types as {first}")
        found.append(guess)
    return found


def _products(config: ModelConfig) -> float:
    """Counts of a token: every matrix, the head too."""
    inside = parameter_count(config, embeddings=False)
    return inside + config.vocab_size * config.d_model


def _check_possible(ground: Ground, guesses: Sequence[Guess], slow: Mapping[str, str]) -> None:
    """Raises CheckFailedError where no candidate is small enough: no training makes it smaller.

    Raises UsageError where methods that are too slow or types without a zero left none at all.
    """
    if any(not guess.out for guess in guesses):
        return
    if not guesses:
        raise UsageError(
            f"every method is too slow for {ground.job.settings.minutes:g} minutes: "
            f"{'; '.join(slow.values())}",
            where="methods",
            remedy=f"Give more --minutes, or {NEAREST} among the methods",
        )
    sound = [guess for guess in guesses if guess.out != _NO_ZERO]
    if not sound:
        raise UsageError(
            "the model is sparse, and no type that these methods round to has an exact zero",
            where="methods",
            remedy=f"Give {NEAREST} among the methods",
        )
    smallest = min(sound, key=lambda guess: guess.size_bytes)
    (short, *_) = ground.job.budget.shortfalls(
        Figures(smallest.size_bytes, math.inf, -math.inf, 0.0)
    )
    raise CheckFailedError(
        f"the budget cannot be met: the smallest of {len(guesses)} candidates, "
        f"{smallest.candidate.name}, takes {short.text}",
        where=short.limit,
        remedy=f"Give --max-size {enough_for(smallest.size_bytes)} or more, or a smaller teacher",
    )


def _ranked_trunks(ground: Ground, baseline: Baseline, guesses: Sequence[Guess]) -> list[str]:
    """Returns the trunks that may be tried, best first, the best of every order at the top."""
    job = ground.job
    best: dict[str, tuple[tuple[float, float], Guess]] = {}
    for guess in guesses:
        if guess.out:
            continue
        key = job.budget.rank(guess.figures(baseline.loss), job.settings.prefer)
        name = guess.candidate.group
        if name not in best or key < best[name][0]:
            best[name] = key, guess
    ranked = sorted(best, key=lambda name: best[name][0])
    firsts: dict[str, str] = {}
    for name in ranked:
        firsts.setdefault(best[name][1].candidate.order, name)
    top = [name for name in ranked if name in firsts.values()]
    return [*top, *(name for name in ranked if name not in top)]


def _learns(guesses: Sequence[Guess], group: str) -> bool:
    return any(g.candidate.learns for g in guesses if g.candidate.group == group)


def _seconds_to_learn(ground: Ground, baseline: Baseline, spent_s: float) -> float:
    """Returns what is left of the time beside `spent_s` and measuring, but never under a third."""
    settings = ground.job.settings
    files = settings.measured + 4 * settings.seeds
    total = 60.0 * settings.minutes
    return max(total / 3.0, total - spent_s - files * baseline.measure_s)


def _rounds(
    ground: Ground,
    baseline: Baseline,
    guesses: Sequence[Guess],
    tried: Sequence[str],
    seconds: float,
) -> tuple[Round, ...]:
    """Returns the rounds of the trunks that learn."""
    settings = ground.job.settings
    costs = {g.candidate.group: g.step_s for g in guesses if not g.out}
    learning = [costs[name] for name in tried if costs[name] > 0.0][: settings.trunks]
    if not learning:
        return ()
    if settings.steps is not None:
        return rounds_of_steps(len(learning), settings.steps)
    rounds = plan_rounds(learning, seconds, extra=controls_step_s(settings, baseline, learning))
    if not rounds:
        raise UsageError(
            f"{settings.minutes:g} minutes are too short for one step of learning "
            f"({learning[0]:.1f} s) and its controls",
            where="--minutes",
            remedy="Give more minutes, or a smaller --batch-size",
        )
    return rounds
