"""A model on this machine: opened, its grid of speeds measured, memory and loading told.

For: `miudo bench`, which gets a path and shows what comes back.
Not for: showing (`miudo.evaluate.grid_report`) or the grid itself (`miudo.evaluate.grid`).
Read next: `miudo.evaluate.grid`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from miudo.engine.native import CacheType, NativeEngine
from miudo.engine.probe import Peaks, beyond_cache_bytes, measure_peaks, probe_isa
from miudo.evaluate.grid import Grid, GridSettings, measure_grid
from miudo.evaluate.loading import Activations, load_model
from miudo.evaluate.roofline import Numbers
from miudo.meter import peak_memory

__all__ = ["BenchedModel", "bench_model"]


@dataclass(frozen=True, slots=True)
class BenchedModel:
    """What ran on what, and how fast. `load_s` is from the path to an engine that could begin.

    `weight_bytes` are those that the engine keeps, `peak_load_bytes` is the largest resident size
    until it had loaded. `memory` tells of reading beyond every cache.
    """

    name: str
    path: str
    isa: str
    threads: int
    activations: Activations
    cache: CacheType
    adapter: str | None
    load_s: float
    weight_bytes: int
    peak_load_bytes: float
    machine_isa: str
    memory: Peaks
    grid: Grid


def bench_model(  # noqa: PLR0913 - as load_model
    path: Path,
    settings: GridSettings,
    *,
    name: str | None = None,
    threads: int | None = None,
    activations: Activations = "int8",
    cache: CacheType | None = None,
    adapter: Path | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> BenchedModel:
    """Returns the speeds of the model at `path` with `adapter` on the native engine.

    Keys and values are kept as `cache`, by default as the engine does.

    Raises what `load_model` and `measure_grid` raise.
    """
    start = time.perf_counter()
    loaded = load_model(
        path, threads=threads, activations=activations, cache=cache, adapter=adapter
    )
    load_s = time.perf_counter() - start
    peak = peak_memory().value  # before the probes, which take memory of their own
    engine = loaded.engine
    assert isinstance(engine, NativeEngine)  # noqa: S101 - the kind that load_model makes by itself
    return BenchedModel(
        name=path.name if name is None else name,
        path=str(path),
        isa=engine.isa,
        threads=engine.threads,
        activations=activations,
        cache=engine.cache,
        adapter=None if adapter is None else str(adapter),
        load_s=load_s,
        weight_bytes=engine.weight_bytes,
        peak_load_bytes=peak,
        machine_isa=probe_isa(),
        memory=measure_peaks(engine.threads, beyond_cache_bytes()),
        grid=measure_grid(
            engine,
            Numbers.of(loaded.model.weights, int8=activations == "int8", cache=engine.cache),
            settings,
            threads=engine.threads,
            adapter=loaded.adapter,
            progress=progress,
        ),
    )
