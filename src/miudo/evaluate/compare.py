"""Models side by side: size, quality, distance from the first, speed, memory, energy.

For: the one table that says what a smaller model gained and lost.
Not for: measuring itself; each column's module is named in `Row`.
Read next: `miudo.evaluate.perplexity`, `miudo.evaluate.divergence`, `miudo.evaluate.bench`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from miudo.errors import UsageError
from miudo.evaluate.bench import Bench, BenchSettings, bench_path
from miudo.evaluate.divergence import Divergence, divergence
from miudo.evaluate.loading import Activations, EngineKind, LoadedModel, load_model
from miudo.evaluate.perplexity import Perplexity, default_window, document_ids, perplexity
from miudo.formats.shards import weight_files
from miudo.meter import energy_basis
from miudo.report import Table
from miudo.tensors import parameter_count

__all__ = [
    "CompareSettings",
    "Row",
    "compare",
    "compare_one",
    "comparison_json",
    "comparison_table",
    "load_for",
    "rows_from_json",
    "size_on_disk",
]


@dataclass(frozen=True, slots=True)
class CompareSettings:
    """How to run every model; context and stride None take the smallest model's window.

    `adapter` is laid over each of them, beside its matrices.
    """

    engine: EngineKind = "native"
    threads: int | None = None
    activations: Activations = "int8"
    context: int | None = None
    stride: int | None = None
    adapter: Path | None = None
    bench: BenchSettings = field(default_factory=BenchSettings)


@dataclass(frozen=True, slots=True)
class Row:
    """One model. `divergence` is from the first model, or None for the reason in `note`.

    `parameters_inside` leaves out token and position tables and the head.
    `bits_per_weight` is of the stored tensors alone, `size_bytes` of what lies on disk; none of
    these counts the `adapter` that it ran with.
    """

    name: str
    path: str
    size_bytes: int
    parameters: int
    parameters_inside: int
    bits_per_weight: float
    quality: Perplexity
    divergence: Divergence | None
    note: str | None
    bench: Bench
    adapter: str | None = None


def compare(
    paths: Sequence[Path],
    documents: Sequence[str],
    settings: CompareSettings,
    *,
    names: Sequence[str] = (),
    progress: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Returns a row a model; the first is what the others are compared with.

    Without `names` a model goes by the end of its path. Every model runs its speed
    measurement in a process of its own. Raises what `open_model` raise,
    UsageError for no model at all.
    """
    if not paths:
        raise UsageError("no model to compare", remedy="Name one or more models")
    models = [load_for(path, settings) for path in paths]
    context = settings.context or min(default_window(m.engine.config)[0] for m in models)
    settings = dataclasses.replace(settings, context=context)
    names = names or _names(paths)
    return [
        compare_one(name, model, models[0], documents, settings, progress=progress)
        for name, model in zip(names, models, strict=True)
    ]


def load_for(path: Path, settings: CompareSettings) -> LoadedModel:
    """Returns the model at `path`, loaded as `settings` run it. Raises what `load_model` raises."""
    return load_model(
        path,
        engine=settings.engine,
        threads=settings.threads,
        activations=settings.activations,
        adapter=settings.adapter,
        context=settings.context,
    )


def compare_one(
    name: str,
    model: LoadedModel,
    first: LoadedModel,
    documents: Sequence[str],
    settings: CompareSettings,
    *,
    progress: Callable[[str], None] = lambda line: None,
) -> Row:
    """Returns the row of one model, whose divergence is from `first`; `compare` for several.

    Its speed is measured in a process of its own. Without a context that of `first` is taken.
    """
    context = settings.context or default_window(first.engine.config)[0]
    progress(f"{name}: perplexity")
    quality = perplexity(
        model.engine,
        model.tokenizer,
        documents,
        context=context,
        stride=settings.stride,
        adapter=model.adapter,
    )
    progress(f"{name}: divergence from the first")
    distance = _distance(first, model, documents, context)
    progress(f"{name}: speed")
    bench = bench_path(
        model.path,
        settings.bench,
        engine=settings.engine,
        threads=settings.threads,
        activations=settings.activations,
        adapter=settings.adapter,
    )
    row = _row(name, model, quality, distance, bench)
    used = None if settings.adapter is None else str(settings.adapter)
    return dataclasses.replace(row, adapter=used)


def comparison_json(rows: Sequence[Row]) -> dict[str, Any]:
    """Returns plain JSON values of all rows."""
    return {"schema": 1, "models": [dataclasses.asdict(row) for row in rows]}


def rows_from_json(values: Mapping[str, Any]) -> tuple[Row, ...]:
    """Returns the rows that `comparison_json` wrote."""
    return tuple(_row_from_json(row) for row in values["models"])


def comparison_table(rows: Sequence[Row]) -> Table:
    """Returns the rows as a table for people, with the conditions in its caption."""
    headers = (
        "model", "size", "parameters", "bits/weight", "perplexity", "bits/byte",
        "KL (nats)", "same top-1", "prompt tok/s", "new tok/s", "peak memory", "energy / token",
    )  # fmt: skip
    cells = [
        (
            row.name,
            _megabytes(row.size_bytes),
            _count(row.parameters),
            f"{row.bits_per_weight:.2f}",
            f"{row.quality.ppl:.3f} ± {row.quality.ppl_error:.3f}",
            f"{row.quality.bits_per_byte:.4f}",
            "n/a" if row.divergence is None else f"{row.divergence.kl:.2e}",
            "n/a" if row.divergence is None else f"{row.divergence.same_top1:.2%}",
            f"{row.bench.speed.prompt_tokens_per_s:,.0f}",
            f"{row.bench.speed.new_tokens_per_s:,.0f}",
            _megabytes(row.bench.peak_memory_bytes),
            _millijoules(row),
        )
        for row in rows
    ]
    return Table(headers, cells, caption=_caption(rows))


def size_on_disk(path: Path) -> int:
    """Returns the bytes of a model file, or of a folder's weights and tokenizer."""
    if path.is_file():
        return path.stat().st_size
    parts = [*weight_files(path), path / "tokenizer.json"]
    return sum(part.stat().st_size for part in parts if part.is_file())


def _row_from_json(values: Mapping[str, Any]) -> Row:
    distance = values["divergence"]
    return Row(
        **{
            **values,
            "quality": Perplexity(**values["quality"]),
            "divergence": None if distance is None else Divergence(**distance),
            "bench": Bench.from_json(values["bench"]),
        }
    )


def _distance(
    first: LoadedModel, model: LoadedModel, documents: Sequence[str], context: int
) -> tuple[Divergence | None, str | None]:
    if first.tokenizer.fingerprint != model.tokenizer.fingerprint:
        return None, "its tokenizer is not the first model's"
    sizes = first.model.config.vocab_size, model.model.config.vocab_size
    if sizes[0] != sizes[1]:
        return None, f"its vocabulary has {sizes[1]} ids, the first model's {sizes[0]}"
    ids = (document_ids(text, model.tokenizer, model.model.config) for text in documents)
    if model is first:  # itself: two passes over the text would tell nothing
        return Divergence(0.0, 0.0, 1.0, positions=sum(map(len, ids))), None
    engines = first.engine, model.engine
    return divergence(*engines, ids, context=context, adapter=model.adapter), None


def _row(
    name: str,
    loaded: LoadedModel,
    quality: Perplexity,
    distance: tuple[Divergence | None, str | None],
    bench: Bench,
) -> Row:
    config, tensors = loaded.model.config, loaded.model.weights.values()
    stored_bits = 8 * sum(tensor.size_bytes for tensor in tensors)
    stored_values = sum(math.prod(tensor.shape) for tensor in tensors)
    return Row(
        name=name,
        path=str(loaded.path),
        size_bytes=size_on_disk(loaded.path),
        parameters=parameter_count(config),
        parameters_inside=parameter_count(config, embeddings=False),
        bits_per_weight=stored_bits / stored_values,
        quality=quality,
        divergence=distance[0],
        note=distance[1],
        bench=bench,
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """Returns the shortest endings of `paths` that tell them apart."""
    for depth in range(1, 8):
        names = ["/".join(path.resolve().parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _caption(rows: Sequence[Row]) -> str:
    first = rows[0]
    quality, speed = first.quality, first.bench.speed
    parts = [
        f"Perplexity: context {quality.context}, stride {quality.stride}, "
        f"{quality.tokens} tokens of {quality.documents} documents, ± one standard error. "
        f"KL and same top-1: against {first.name}. "
        f"Speed: median of {speed.repeats}, {speed.prompt_tokens} prompt and {speed.new_tokens} "
        f"new tokens, {first.bench.runs_on}, {first.bench.threads} threads. "
        f"Peak memory: {first.bench.peak_memory_method}, one process a model. "
        f"Energy: {energy_basis(first.bench.speed.energy_method)}."
    ]
    if first.adapter is not None:
        parts.append(f"With the adapter {first.adapter}, which size and parameters leave out.")
    parts += [f"{row.name}: no divergence, {row.note}." for row in rows if row.note]
    return " ".join(parts)


def _millijoules(row: Row) -> str:
    mark = "~" if row.bench.speed.energy_estimate else ""
    return f"{mark}{row.bench.speed.energy_per_token_j * 1e3:.2f} mJ"


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.2f} MB"


def _count(number: int) -> str:
    return f"{number / 1e6:,.2f} M" if number >= 100_000 else f"{number:,}"
