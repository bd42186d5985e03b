"""How fast a model runs, and what memory and energy that takes.

For: one figure each for prompt and generation, memory and energy, as a column of a comparison.
Not for: how speed goes with context and batch (`miudo.evaluate.grid`), other programs
(`benchmarks/`), or quality.
Read next: `miudo.evaluate.compare`, `miudo.evaluate.timed`.

`python -m miudo.evaluate.bench REQUEST`, REQUEST being JSON text, is the child process of
`bench_path`: a peak of memory belongs to a process, so each model gets one of its own.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miudo.errors import MiudoError, UsageError
from miudo.evaluate.loading import Activations, EngineKind, load_model
from miudo.evaluate.timed import Conversations
from miudo.meter import DEFAULT_WATTS, Meter, peak_memory
from miudo.protocol import Engine

__all__ = ["Bench", "BenchSettings", "Speed", "bench_path", "computes_on", "main", "speed"]


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """How much to run; both counts shrink to fit the model's positions."""

    prompt_tokens: int = 256
    new_tokens: int = 64
    repeats: int = 5
    watts: float = DEFAULT_WATTS

    def __post_init__(self) -> None:
        if min(self.prompt_tokens, self.new_tokens, self.repeats) < 1:
            raise UsageError(f"{self} measures nothing", remedy="Give numbers of at least 1")


@dataclass(frozen=True, slots=True)
class Speed:
    """Medians over `repeats` runs of one conversation, greedy."""

    prompt_tokens_per_s: float
    new_tokens_per_s: float
    prompt_tokens: int
    new_tokens: int
    repeats: int
    energy_per_token_j: float
    energy_method: str
    energy_estimate: bool


@dataclass(frozen=True, slots=True)
class Bench:
    """Speed with the loading time and the largest resident size of the process that ran it.

    `runs_on` says what computed: PyTorch, or the native engine's instruction set.
    """

    speed: Speed
    load_s: float
    peak_memory_bytes: float
    peak_memory_method: str
    runs_on: str
    threads: int

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Bench:
        """Returns the bench whose `dataclasses.asdict` is `values`."""
        return cls(**{**values, "speed": Speed(**values["speed"])})


def speed(engine: Engine, settings: BenchSettings, *, adapter: str | None = None) -> Speed:
    """Returns the speed of `engine` on ids drawn by a fixed rule.

    One run more than `repeats` warms up and is not counted; energy is that of generation, over
    all counted runs. `adapter` names one that the engine was given.
    """
    positions = engine.config.max_positions
    n_prompt = min(settings.prompt_tokens, max(1, positions // 2))
    n_new = min(settings.new_tokens, positions - n_prompt)
    if n_new < 1:
        raise UsageError(f"the model has {positions} positions, too few to measure a speed")
    runs = []
    for run in range(settings.repeats + 1):
        with Conversations(engine, adapter=adapter) as conversation:
            seconds = conversation.prompt(n_prompt, run)
            with Meter(watts=settings.watts) as meter:
                conversation.decode(n_new)
        runs.append((seconds, meter))
    del runs[0]
    energies = [meter.energy for _, meter in runs]
    return Speed(
        prompt_tokens_per_s=n_prompt / statistics.median(seconds for seconds, _ in runs),
        new_tokens_per_s=n_new / statistics.median(meter.elapsed_s for _, meter in runs),
        prompt_tokens=n_prompt,
        new_tokens=n_new,
        repeats=settings.repeats,
        energy_per_token_j=sum(e.energy_j for e in energies) / (n_new * len(runs)),
        energy_method=energies[0].method,
        energy_estimate=energies[0].estimate,
    )


def bench_path(
    path: Path,
    settings: BenchSettings,
    *,
    engine: EngineKind = "native",
    threads: int | None = None,
    activations: Activations = "int8",
    adapter: Path | None = None,
) -> Bench:
    """Returns the bench of the model at `path` with `adapter`, run in a process of its own.

    Raises MiudoError with what the process said if it failed.
    """
    request = {
        "path": str(path),
        "settings": dataclasses.asdict(settings),
        "engine": engine,
        "threads": threads,
        "activations": activations,
        "adapter": None if adapter is None else str(adapter),
    }
    command = [sys.executable, "-m", "miudo.evaluate.bench", json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - ours
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise MiudoError(f"the speed measurement failed ({last[0]})", where=path)
    return Bench.from_json(json.loads(done.stdout.splitlines()[-1]))


def main(arguments: Sequence[str]) -> None:
    """Runs one request of `bench_path` and writes the bench as a line of JSON."""
    request = json.loads(arguments[0])
    start = time.perf_counter()
    loaded = load_model(
        Path(request["path"]),
        engine=request["engine"],
        threads=request["threads"],
        activations=request["activations"],
        adapter=None if request["adapter"] is None else Path(request["adapter"]),
    )
    load_s = time.perf_counter() - start
    settings = BenchSettings(**request["settings"])
    measured = speed(loaded.engine, settings, adapter=loaded.adapter)
    peak = peak_memory()
    runs_on, used = computes_on(loaded.engine, request["engine"])
    bench = Bench(measured, load_s, peak.value, peak.method, runs_on, used)
    sys.stdout.write(json.dumps(dataclasses.asdict(bench)) + "\n")


def computes_on(engine: Engine, kind: EngineKind) -> tuple[str, int]:
    """Returns what computes, and on how many threads."""
    if kind == "torch":
        import torch

        return "torch", torch.get_num_threads()
    # The protocol does not know instruction sets; the native engine does.
    return f"native {getattr(engine, 'isa', '')}".strip(), int(getattr(engine, "threads", 1))


if __name__ == "__main__":
    main(sys.argv[1:])
