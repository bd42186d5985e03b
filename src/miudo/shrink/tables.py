"""The tables of a search's report.

For: choosing and wording columns.
Not for: the page around them (`miudo.shrink.report`).
Read next: `miudo.shrink.report`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from miudo.records import Record
from miudo.report import Table
from miudo.shrink.budget import spearman
from miudo.shrink.result import Row, ShrinkResult
from miudo.shrink.scoring import Scored

__all__ = [
    "agreement",
    "agreement_table",
    "budget_table",
    "columns",
    "orders_table",
    "predictions_table",
    "rows_table",
    "seeds_table",
]

_SHOWN = 250

_T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Two-sided 95% of Student's t by the number of values; 1.96 beyond."""


def columns(result: ShrinkResult, row: Row) -> dict[str, Any]:
    """Returns one measured file as flat values: a line of the CSV file.

    `parent_*` are the teacher's own training, from its record; None where that says nothing.
    """
    own, speed = row.measured.row, row.measured.row.bench.speed
    found = result.figures(row)
    values: dict[str, Any] = {
        "name": row.name,
        "kind": row.kind,
        "order": row.order,
        "seed": row.seed,
        "chosen": row.name == result.outcome.chosen,
        "on_front": row.name in result.outcome.front,
        "size_bytes": own.size_bytes,
        "parameters": own.parameters,
        "bits_per_weight": own.bits_per_weight,
        "perplexity": own.quality.ppl,
        "perplexity_error": own.quality.ppl_error,
        "perplexity_increase": found.ppl_increase,
        "bits_per_byte": own.quality.bits_per_byte,
        "kl": None if own.divergence is None else own.divergence.kl,
        "same_top1": None if own.divergence is None else own.divergence.same_top1,
        "new_tokens_per_s": speed.new_tokens_per_s,
        "prompt_tokens_per_s": speed.prompt_tokens_per_s,
        "peak_memory_bytes": own.bench.peak_memory_bytes,
        "energy_per_token_j": speed.energy_per_token_j,
        "energy_is_estimate": speed.energy_estimate,
        "steps": row.steps,
        "tokens_learned": row.tokens,
        "epochs": row.tokens / max(1, result.unique_tokens),
        "tokens_per_parameter": row.tokens / own.parameters,
        "parent_epochs": _of_record(result.teacher, "epochs"),
        "parent_tokens_per_parameter": _of_record(result.teacher, "tokens_per_parameter"),
        "training_s": row.seconds,
    }
    for score in row.measured.scores:
        values[score.task] = score.value
        values[f"{score.task}_low"], values[f"{score.task}_high"] = score.low, score.high
    return values


def rows_table(result: ShrinkResult, what: str) -> Table:
    """Returns the candidates, or with `what` "control" the controls, the teacher above them."""
    tasks = [score.task for score in result.baseline.teacher.scores]
    headers = [
        "model", "order", "size", "bits/weight", "perplexity", "increase", "bits/byte",
        "KL (nats)", "same top-1", *tasks, "new tok/s", "memory", "energy / token",
        "tokens learned", "epochs", "tokens/param", "parent tokens/param",
    ]  # fmt: skip
    shown = [row for row in result.rows if _belongs(result, row, what)]
    cells = [_cells(result, row) for row in shown]
    caption = (
        "Candidates on the Pareto front of size, speed and quality are marked *. "
        "Task scores with their 95% interval. ~: an estimate."
    )
    return Table(headers, cells, caption=caption, text_columns=frozenset({0, 1}))


def budget_table(result: ShrinkResult) -> Table:
    """Returns every limit with what the chosen one has."""
    budget, found = result.job.budget, result.figures(result.chosen)
    broken = {short.limit for short in result.outcome.shortfalls}
    rows = []
    for limit, allowed, has in (
        ("--max-size", budget.max_size_bytes, f"{found.size_bytes / 1e6:,.2f} MB"),
        ("--min-speed", budget.min_tokens_per_s, f"{found.tokens_per_s:,.1f} tokens/s"),
        ("--max-ppl-increase", budget.max_ppl_increase, f"{found.ppl_increase:+.2%}"),
        ("--energy", budget.max_energy_j, f"{(found.energy_j or math.nan) * 1e3:.2f} mJ"),
    ):
        if allowed is not None:
            asked = {
                "--max-size": f"{allowed / 1e6:,.2f} MB",
                "--max-ppl-increase": f"{allowed:.2%}",
                "--energy": f"{allowed * 1e3:.2f} mJ",
            }.get(limit, f"{allowed:,.1f} tokens/s")
            rows.append([limit, asked, has, "no" if limit in broken else "yes"])
    return Table(["limit", "asked", "chosen", "kept"], rows, text_columns=frozenset({0, 3}))


def orders_table(result: ShrinkResult) -> Table:
    """Returns the best of each order by its last loss on the text that chooses."""
    best: dict[str, Scored] = {}
    job, loss = result.job, result.baseline.loss
    newest = {s.candidate.name: s for s in result.scored}
    for scored in newest.values():
        order = scored.candidate.order.value
        key = job.budget.rank(scored.figures(loss), job.settings.prefer)
        kept = best.get(order)
        if kept is None or key < job.budget.rank(kept.figures(loss), job.settings.prefer):
            best[order] = scored
    measured = {row.name: row for row in result.rows}
    rows = []
    for order, s in sorted(best.items(), key=lambda pair: pair[1].loss):
        row = measured.get(s.candidate.name)
        ppl = "not measured" if row is None else f"{row.measured.row.quality.ppl:.3f}"
        rows.append(
            [order, s.candidate.name, f"{s.size_bytes / 1e6:,.2f} MB", f"{s.loss:.4f}",
             str(s.round), f"{s.steps:,}", f"{s.tokens:,}", ppl]
        )  # fmt: skip
    return Table(
        ["order", "its best", "size", "loss that chose", "round", "steps", "tokens", "perplexity"],
        rows,
        caption="Losses of different rounds come of different steps: compare within a round.",
        text_columns=frozenset({0, 1}),
    )


def predictions_table(result: ShrinkResult) -> Table:
    """Returns all proposals with what was predicted, and the last loss of those that were tried."""
    newest = {s.candidate.name: s for s in result.scored}
    rows = []
    shown = [g for g in result.forecast.guesses if not g.out or g.candidate.name in newest]
    shown = [g for g in shown if g.candidate.group in result.forecast.trunks][:_SHOWN]
    for g in sorted(shown, key=lambda g: g.size_bytes):
        s = newest.get(g.candidate.name)
        tried = g.out or ("not tried" if s is None else f"round {s.round}")
        rows.append(
            [g.candidate.name, g.candidate.order.value, f"{g.size_bytes / 1e6:,.2f} MB",
             f"{g.tokens_per_s:,.0f}", f"{g.loss:.3f}", "" if s is None else f"{s.loss:.3f}", tried]
        )  # fmt: skip
    headers = ["candidate", "order", "size", "tok/s", "loss before learning", "last loss", "tried"]
    rest = len(result.forecast.guesses) - len(rows)
    caption = f"{rest:,} more that were not tried, or too large, are in report.json."
    return Table(headers, rows, caption=caption, text_columns=frozenset({0, 1, 6}))


def seeds_table(result: ShrinkResult) -> Table:
    """Returns perplexity over seeds: the chosen one, and every control that was repeated."""
    groups: dict[str, list[float]] = {"chosen": [result.chosen.measured.row.quality.ppl]}
    for row in result.rows:
        if row.kind not in ("teacher", "candidate"):
            name = "chosen" if row.kind == "chosen again" else row.kind
            groups.setdefault(name, []).append(row.measured.row.quality.ppl)
    rows = []
    for name, values in groups.items():
        mean = statistics.mean(values)
        spread = "n/a"
        if len(values) > 1:
            half = _T95.get(len(values), 1.96) * statistics.stdev(values) / len(values) ** 0.5
            spread = f"± {half:.3f}"
        rows.append(
            [name, str(len(values)), f"{mean:.3f}", spread, f"{min(values):.3f}",
             f"{max(values):.3f}"]
        )  # fmt: skip
    return Table(
        ["trained", "seeds", "perplexity", "95% interval", "lowest", "highest"],
        rows,
        caption="The interval is Student's t over seeds.",
    )


def agreement(result: ShrinkResult) -> list[dict[str, Any]]:
    """Returns what was predicted against what was found: Spearman's coefficient and pairs."""
    return [
        {"predicted": predicted, "found": found, "spearman": spearman(x, y), "pairs": len(x)}
        for predicted, found, x, y in _pairs(result)
    ]


def agreement_table(result: ShrinkResult) -> Table:
    """Returns `agreement` for people."""
    rows = [
        [a["predicted"], a["found"], "n/a" if a["spearman"] is None else f"{a['spearman']:+.3f}",
         str(a["pairs"])]
        for a in agreement(result)
    ]  # fmt: skip
    return Table(
        ["predicted by", "found", "Spearman", "pairs"],
        rows,
        caption="n/a: fewer than three pairs, or all alike.",
        text_columns=frozenset({0, 1}),
    )


def _pairs(result: ShrinkResult) -> Iterator[tuple[str, str, list[float], list[float]]]:
    guesses = {g.candidate.name: g for g in result.forecast.guesses}
    newest = {s.candidate.name: s for s in result.scored}
    files = [row for row in result.rows if row.kind == "candidate"]
    first = {s.candidate.name: s for s in result.scored if s.round == 1}
    last_round = max((s.round for s in result.scored), default=0)
    last = {s.candidate.name: s for s in result.scored if s.round == last_round}

    def of(names: Sequence[str], value: Callable[[str], float]) -> list[float]:
        return [value(name) for name in names]

    names = [row.name for row in files]
    rows = {row.name: row.measured.row for row in files}
    yield (
        "bytes of the tensor table",
        "bytes of the file",
        of(names, lambda n: guesses[n].size_bytes),
        of(names, lambda n: rows[n].size_bytes),
    )
    yield (
        "bytes and measured bandwidth",
        "new tokens a second",
        of(names, lambda n: guesses[n].tokens_per_s),
        of(names, lambda n: rows[n].bench.speed.new_tokens_per_s),
    )
    yield (
        "loss right after cutting",
        "loss after the first round",
        of(list(first), lambda n: guesses[n].loss),
        of(list(first), lambda n: first[n].loss),
    )
    yield (
        "loss right after cutting",
        "measured loss of the file",
        of(names, lambda n: guesses[n].loss),
        of(names, lambda n: rows[n].quality.nll),
    )
    if last_round > 1:
        both = [name for name in last if name in first]
        yield (
            "loss after the first round",
            "loss after the last round",
            of(both, lambda n: first[n].loss),
            of(both, lambda n: last[n].loss),
        )
    yield (
        "last loss on the text that chose",
        "measured loss of the file",
        of(names, lambda n: newest[n].loss),
        of(names, lambda n: rows[n].quality.nll),
    )


def _belongs(result: ShrinkResult, row: Row, what: str) -> bool:
    if row.kind == "teacher":
        return True
    if what == "candidate":
        return row.kind == "candidate"
    return row.kind != "candidate" or row.name == result.outcome.chosen


def _cells(result: ShrinkResult, row: Row) -> list[str]:
    own, found = row.measured.row, result.figures(row)
    distance, speed = own.divergence, own.bench.speed
    mark = "*" if row.name in result.outcome.front else ""
    mark += " (chosen)" if row.name == result.outcome.chosen else ""
    parent = _of_record(result.teacher, "tokens_per_parameter")
    learned = row.tokens / max(1, result.unique_tokens)
    return [
        row.name + mark,
        row.order,
        f"{own.size_bytes / 1e6:,.2f} MB",
        f"{own.bits_per_weight:.2f}",
        f"{own.quality.ppl:.3f} ± {own.quality.ppl_error:.3f}",
        f"{found.ppl_increase:+.2%}",
        f"{own.quality.bits_per_byte:.4f}",
        "n/a" if distance is None else f"{distance.kl:.2e}",
        "n/a" if distance is None else f"{distance.same_top1:.2%}",
        *(f"{s.value:.1%} ({s.low:.1%}–{s.high:.1%})" for s in row.measured.scores),  # noqa: RUF001
        f"{speed.new_tokens_per_s:,.0f}",
        f"{own.bench.peak_memory_bytes / 1e6:,.1f} MB",
        f"{'~' if speed.energy_estimate else ''}{speed.energy_per_token_j * 1e3:.2f} mJ",
        f"{row.tokens:,}",
        f"{learned:.2f}",
        f"{row.tokens / own.parameters:.2f}",
        "unknown" if parent is None else f"{parent:.1f}",
    ]


def _of_record(record: Record | None, name: str) -> float | None:
    """Returns a measurement of the nearest record in the line that has it."""
    level = [] if record is None else [record]
    while level:
        for one in level:
            for measurement in one.measurements:
                if measurement.name == name:
                    return measurement.value
        level = [parent for one in level for parent in one.parents]
    return None
