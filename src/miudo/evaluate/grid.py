"""Speed over contexts and batches, each beside what the machine could do in the same moment.

For: `miudo bench`: prompts and new tokens, with the share of bandwidth and of arithmetic that
they reach, energy, and what other programs took meanwhile.
Not for: one figure a model (`miudo.evaluate.bench`), comparing with other programs.
Read next: `miudo.evaluate.timed`, `miudo.evaluate.roofline`, `miudo.evaluate.benched`.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from miudo.engine.probe import Peaks, measure_peaks
from miudo.errors import MiudoError, UsageError
from miudo.evaluate.roofline import Numbers, StepWork, bounds, step_work
from miudo.evaluate.timed import Conversations
from miudo.meter import DEFAULT_WATTS, Energy, Meter, resident_bytes
from miudo.protocol import Engine

__all__ = ["Cell", "Grid", "GridSettings", "Phase", "PhaseTimer", "measure_grid"]

_MOST_RUNS = 9
_WANTED_RUNS = 3  # of new tokens; where they take long, fewer are made at a time
_FEWEST_STEPS = 8


@dataclass(frozen=True, slots=True)
class GridSettings:
    """What to run: each context with one conversation, each batch with the first context.

    `new_tokens` are decoded at a time. `seconds` is about what all may take: what does not fit
    is left out and named. `watts` as in `miudo.meter.Meter`. With `phases` one more run of each
    tells where its time goes, for an engine that can (`PhaseTimer`).
    """

    contexts: tuple[int, ...] = (16, 128, 512, 2048, 8192)
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    new_tokens: int = 64
    seconds: float = 60.0
    watts: float = DEFAULT_WATTS
    phases: bool = False

    def __post_init__(self) -> None:
        if min((*self.contexts, *self.batches, self.new_tokens), default=0) < 1:
            raise UsageError(
                "contexts, batches and new tokens are numbers of at least 1",
                remedy="Write them as 16,512",
            )
        if not (self.contexts and self.batches):
            raise UsageError("no context or no batch to measure", remedy="Give at least one")
        if not self.seconds > 0 or not self.watts > 0:
            raise UsageError("seconds and watts are above 0")


@dataclass(frozen=True, slots=True)
class Phase:
    """Tokens a second of all conversations together: the median of `runs`, and their range.

    A run takes in or makes `tokens`. `of_bandwidth` is the share of its time in which the bytes
    that it needs could just be read, `of_arithmetic` that in which its operations could just be
    done; `ceiling_tokens_per_s` is where the larger of them would be 1. `foreign_cores` is what
    other programs had of the machine, None where the system does not say. `phases_s` are the
    seconds of a run by what they went to, empty where nobody asked.
    """

    tokens_per_s: float
    lowest: float
    highest: float
    runs: int
    tokens: int
    work: StepWork
    of_bandwidth: float
    of_arithmetic: float
    ceiling_tokens_per_s: float
    energy_per_token_j: float
    energy: Energy
    foreign_cores: float | None
    phases_s: Mapping[str, float] = field(default_factory=dict)


@runtime_checkable
class PhaseTimer(Protocol):
    """An engine that tells where its time goes: `miudo.engine.native.NativeEngine`."""

    def time_phases(self, wanted: bool) -> None:
        """Begins to sum the seconds of steps by phase, from none, or ceases."""
        ...

    def phase_seconds(self) -> dict[str, float]:
        """Returns the seconds of each phase so far."""
        ...


@dataclass(frozen=True, slots=True)
class Cell:
    """`batch` conversations of `context` tokens. `peaks` were measured before and after."""

    context: int
    batch: int
    prompt: Phase
    decode: Phase
    peaks: tuple[Peaks, Peaks]


@dataclass(frozen=True, slots=True)
class Grid:
    """What was measured, by context and batch, and what was not and why.

    `resident_bytes` is the most that was seen of the process.
    """

    cells: tuple[Cell, ...]
    left_out: Mapping[str, str]
    resident_bytes: float | None


class _Run:
    """One measurement of a grid: the model, the time that is left, what is known of speeds."""

    def __init__(
        self,
        engine: Engine,
        numbers: Numbers,
        settings: GridSettings,
        *,
        threads: int,
        adapter: str | None,
    ) -> None:
        self.engine, self.numbers, self.settings = engine, numbers, settings
        self.threads, self.adapter = threads, adapter
        self.end = time.monotonic() + settings.seconds
        self.prompt_token_s = 0.0
        self.resident: float | None = None

    def cell(self, context: int, batch: int, share_s: float) -> Cell:
        """Measures for about `share_s` seconds, at least once."""
        settings = self.settings
        steps = min(settings.new_tokens, self.engine.config.max_positions - context)
        reading = self._work([(context, 1)] * batch).bytes
        before = measure_peaks(self.threads, reading)
        with Conversations(self.engine, batch, adapter=self.adapter) as conversations:
            prompts, prompt_meter = self._prompts(conversations, context, share_s / 2)
            conversations.rewind(context)
            trial = min(2, steps)
            warm = conversations.decode(trial) / trial
            fitting = int(share_s / 2 / _WANTED_RUNS / max(warm, 1e-9))
            steps = min(steps, max(_FEWEST_STEPS, fitting))
            decodes, decode_meter = self._decodes(conversations, context, steps, share_s / 2)
            prompt_phases = self._phases(lambda: conversations.prompt(context, _MOST_RUNS))
            conversations.rewind(context)
            decode_phases = self._phases(lambda: conversations.decode(steps))
            self.resident = max(self.resident or 0.0, resident_bytes() or 0.0) or None
        peaks = before, measure_peaks(self.threads, reading)
        self.prompt_token_s = statistics.median(prompts) / (context * batch)
        return Cell(
            context,
            batch,
            prompt=_phase(prompts, self._work([(0, context)] * batch), 1, context * batch,
                          peaks, prompt_meter, prompt_phases),
            decode=_phase(decodes, self._work([(context + steps // 2, 1)] * batch), steps,
                          steps * batch, peaks, decode_meter, decode_phases),
            peaks=peaks,
        )  # fmt: skip

    def too_long(self, context: int, batch: int) -> str | None:
        """Returns why there is no time for a cell, None where there is."""
        expected = self.prompt_token_s * context * batch
        left = self.end - time.monotonic()
        if left <= 0 < self.prompt_token_s:  # one cell is always measured
            return f"the {self.settings.seconds:g} s were over"
        if expected > left:
            given = self.settings.seconds
            return f"a prompt takes about {expected:,.0f} s, more than was left of {given:g} s"
        return None

    def _phases(self, body: Callable[[], float]) -> dict[str, float]:
        """Runs `body` once more: its clocks are not to slow down what is measured."""
        if not (self.settings.phases and isinstance(self.engine, PhaseTimer)):
            return {}
        self.engine.time_phases(True)
        try:
            body()
            return self.engine.phase_seconds()
        finally:
            self.engine.time_phases(False)

    def _work(self, sequences: list[tuple[int, int]]) -> StepWork:
        return step_work(self.engine.config, self.numbers, sequences)

    def _prompts(
        self, conversations: Conversations, context: int, share_s: float
    ) -> tuple[list[float], Meter]:
        if not self.prompt_token_s:
            conversations.prompt(min(context, 16), run=_MOST_RUNS)  # the first one finds all cold
        with Meter(watts=self.settings.watts) as meter:
            seconds = _repeat(lambda run: conversations.prompt(context, run), share_s)
        return seconds, meter

    def _decodes(
        self, conversations: Conversations, context: int, steps: int, share_s: float
    ) -> tuple[list[float], Meter]:
        def decode(run: int) -> float:
            conversations.rewind(context)
            return conversations.decode(steps)

        with Meter(watts=self.settings.watts) as meter:
            seconds = _repeat(decode, share_s)
        return seconds, meter


def measure_grid(
    engine: Engine,
    numbers: Numbers,
    settings: GridSettings,
    *,
    threads: int,
    adapter: str | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Grid:
    """Returns the speeds of `engine`, which runs on `threads` threads and in `numbers`.

    As many threads measure the machine. A context beyond the model's positions becomes the
    longest that leaves room for new tokens. There is one cell at least: raises what the engine
    raises in it, UsageError where no context fits.
    """
    pairs = _pairs(engine.config.max_positions, settings)
    weights = [_weight(*pair) for pair in pairs]
    run = _Run(engine, numbers, settings, threads=threads, adapter=adapter)
    cells, left_out = [], {}
    for i, (context, batch) in enumerate(pairs):
        name = f"context {context:,}, batch {batch}"
        if (why := run.too_long(context, batch)) is not None:
            left_out[name] = why
            continue
        progress(name)
        share_s = max(0.0, run.end - time.monotonic()) * weights[i] / sum(weights[i:])
        try:
            cells.append(run.cell(context, batch, share_s))
        except MiudoError as error:  # as a rule the cache, which is as large as it was asked for
            if not cells:
                raise
            left_out[name] = str(error)
    cells.sort(key=lambda cell: (cell.context, cell.batch))
    return Grid(tuple(cells), left_out, run.resident)


def _pairs(positions: int, settings: GridSettings) -> list[tuple[int, int]]:
    """Returns (context, batch), dearest last: what time is too short for."""
    longest = positions - min(settings.new_tokens, max(2, positions // 2))
    if longest < 1:
        raise UsageError(f"the model has {positions} positions, too few to measure a speed")
    contexts = sorted({min(context, longest) for context in settings.contexts})
    pairs = [(contexts[0], n) for n in set(settings.batches)]
    pairs += [(context, 1) for context in contexts[1:]]
    return sorted(pairs, key=lambda pair: (pair[0] * pair[1], pair))


def _weight(context: int, batch: int) -> float:
    """Of the time: more for what takes longer, but not as much more."""
    return max(16.0, math.sqrt(context * batch))


def _repeat(body: Callable[[int], float], share_s: float) -> list[float]:
    """Returns the seconds of every run of `body`, of which there are as many as `share_s` takes."""
    end = time.monotonic() + share_s
    seconds = [body(0)]
    while len(seconds) < _MOST_RUNS and time.monotonic() + seconds[-1] < end:
        seconds.append(body(len(seconds)))
    return seconds


def _phase(
    seconds: list[float],
    work: StepWork,
    steps: int,
    tokens: int,
    peaks: tuple[Peaks, Peaks],
    meter: Meter,
    phases_s: Mapping[str, float],
) -> Phase:
    """`work` is that of each of `steps` steps, which together take one of `seconds`."""
    median = statistics.median(seconds)
    # The machine's rates drift; a run had what lies between before and after.
    moving, computing = (
        steps * statistics.mean(pair)
        for pair in zip(*(bounds(work, peak) for peak in peaks), strict=True)
    )
    return Phase(
        tokens_per_s=tokens / median,
        lowest=tokens / max(seconds),
        highest=tokens / min(seconds),
        runs=len(seconds),
        tokens=tokens,
        work=work,
        of_bandwidth=moving / median,
        of_arithmetic=computing / median,
        ceiling_tokens_per_s=tokens / max(moving, computing),
        energy_per_token_j=meter.energy.energy_j / (tokens * len(seconds)),
        energy=meter.energy,
        foreign_cores=meter.foreign_cores,
        phases_s=phases_s,
    )
