"""Tables for a terminal, plots, and one self-contained HTML page.

For: showing measured rows to people: text, SVG, HTML without any network.
Not for: measuring, or choosing what to show (`miudo.evaluate.compare`, `miudo.shrink.demo`).
Read next: `miudo.evaluate.compare`.

matplotlib is imported when a plot is drawn: only the extra `make` installs it.
"""

from __future__ import annotations

import html
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miudo.files import atomic_write

__all__ = [
    "Line",
    "Point",
    "Section",
    "Table",
    "html_report",
    "line_plot",
    "loss_plot",
    "loss_svg",
    "scatter_plot",
    "svg_plot",
    "text_table",
]

_INK = "#010203"
"""Drawn by matplotlib, replaced by `currentColor`: a plot then follows the page's light or dark."""
_FEW_POINTS = 12
_COLOURS = ("#2f81f7", "#e5743b", "#22a06b", "#a371f7", "#d4a72c", "#e0529c")


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells; columns named in `text_columns` are left-aligned, the rest are numbers."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    text_columns: frozenset[int] = frozenset({0})


@dataclass(frozen=True, slots=True)
class Section:
    """One part of a page: paragraphs, then table, plot, samples (label, text), and `code`.

    `svg` must come from `svg_plot`: it alone is not escaped.
    """

    title: str
    paragraphs: Sequence[str] = ()
    table: Table | None = None
    svg: str | None = None
    samples: Sequence[tuple[str, str]] = ()
    code: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One curve of a plot; `low` and `high`, where given, are shaded as its range."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    thin: bool = False
    dashed: bool = False
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Point:
    """One mark of a scatter plot; those of a `group` share a colour, `ring` draws one around it."""

    x: float
    y: float
    group: str
    label: str = ""
    ring: bool = False


def text_table(table: Table) -> str:
    """Returns `table` with aligned columns for a terminal."""
    lines = [list(table.headers), *(list(row) for row in table.rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.headers))]
    texts = [
        "  ".join(
            cell.ljust(width) if i in table.text_columns else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    texts.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(texts)


def loss_plot(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Writes training and held-out loss over tokens as a PNG or SVG, by `path`'s ending.

    `rows` are those of metrics.jsonl: `tokens` with `loss` or `held_out_loss`.
    """
    figure = _figure(_loss_lines("", rows), "tokens", "loss (nats per token)")
    atomic_write(path, lambda file: figure.savefig(file, format=path.suffix[1:], dpi=120))


def loss_svg(runs: Mapping[str, Iterable[Mapping[str, Any]]]) -> str:
    """Returns the loss curves of several runs, by name, as inline SVG."""
    lines = [line for name, rows in runs.items() for line in _loss_lines(name, rows)]
    return line_plot(lines, x="tokens", y="loss (nats per token)")


def line_plot(lines: Sequence[Line], *, x: str, y: str, doubling: bool = False) -> str:
    """Returns curves as inline SVG with axis labels `x` and `y`.

    With `doubling` the x axis is one of powers of two, marked where a curve has its points, and
    the y axis begins at 0.
    """
    figure = _figure(lines, x, y)
    if doubling:
        _double(figure.axes[0], sorted({value for line in lines for value in line.x}))
    return svg_plot(figure)


def scatter_plot(
    points: Sequence[Point], *, x: str, y: str, joined: Sequence[tuple[float, float]] = ()
) -> str:
    """Returns marks as inline SVG with axis labels `x` and `y`; `joined` is a line through some.

    Where the greatest is more than ten times the least, the upright axis is logarithmic.
    """
    figure = _figure([], x, y)
    axes = figure.axes[0]
    if joined:
        across, up = zip(*joined, strict=True)
        axes.plot(across, up, color=_INK, linewidth=1.0, alpha=0.5, zorder=1)
    groups = list(dict.fromkeys(point.group for point in points))
    for number, group in enumerate(groups):
        own = [point for point in points if point.group == group]
        colour = _COLOURS[number % len(_COLOURS)]
        axes.scatter([p.x for p in own], [p.y for p in own], s=28, color=colour, label=group)
    for point in points:
        if point.ring:
            axes.scatter([point.x], [point.y], s=120, facecolors="none", edgecolors=_INK)
    heights = [point.y for point in points]
    if heights and 0.0 < 10.0 * min(heights) < max(heights):
        _logarithmic(axes)
    _label(figure, [point for point in points if point.label])
    if points:
        axes.legend(frameon=False, labelcolor=_INK, fontsize="small")
    return svg_plot(figure)


def svg_plot(figure: Any) -> str:
    """Returns a matplotlib figure as SVG to stand inside a page, in the page's own colour."""
    import matplotlib as mpl

    # Text stays text; ids hang on the content alone, so that two runs write the same bytes.
    out = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "miudo"}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    drawn = out.getvalue()
    return drawn[drawn.index("<svg") :].replace(_INK, "currentColor")


def html_report(title: str, sections: Sequence[Section], path: Path, *, subtitle: str = "") -> None:
    """Writes one page that loads nothing from anywhere: style, tables and plots inside it."""
    parts = [f"<h1>{_text(title)}</h1>"]
    if subtitle:
        parts.append(f'<p class="subtitle">{_text(subtitle)}</p>')
    parts += [_section(section) for section in sections]
    page = _PAGE.format(title=_text(title), style=_STYLE, body="\n".join(parts))
    atomic_write(path, lambda file: file.write(page.encode()))


def _loss_lines(name: str, rows: Iterable[Mapping[str, Any]]) -> list[Line]:
    listed = list(rows)
    lines = []
    for key, label in (("loss", "training"), ("held_out_loss", "held-out")):
        points = [
            (float(row["tokens"]), float(row[key]))
            for row in listed
            if row.get(key) is not None and math.isfinite(row[key])
        ]
        if points:
            x, y = zip(*points, strict=True)
            lines.append(Line(f"{name} {label}".strip(), x, y, thin=key == "loss"))
    return lines


def _figure(lines: Sequence[Line], x: str, y: str) -> Any:
    # Figure, not pyplot: no window system, no global state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    names = sorted({_base(line.label) for line in lines}, key=[_base(v.label) for v in lines].index)
    for line in lines:
        colour = _COLOURS[names.index(_base(line.label)) % len(_COLOURS)]
        if line.low:
            axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(
            line.x,
            line.y,
            label=line.label,
            color=colour,
            linestyle="--" if line.dashed else "-",
            linewidth=0.9 if line.thin else 1.8,
            alpha=0.6 if line.thin else 1.0,
            # A short run has few points, perhaps one: a line alone would not be seen.
            marker="o" if len(line.x) <= _FEW_POINTS else None,
            markersize=3.5,
        )
    axes.set_xlabel(x, color=_INK)
    axes.set_ylabel(y, color=_INK)
    axes.tick_params(colors=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_INK)
    axes.grid(visible=True, color=_INK, alpha=0.12)
    axes.xaxis.set_major_formatter(_thousands)
    if lines:
        axes.legend(frameon=False, labelcolor=_INK, fontsize="small")
    return figure


def _logarithmic(axes: Any) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(_thousands)


def _label(figure: Any, points: Sequence[Point]) -> None:
    """Writes each point's label beside it, above those that are there already."""
    axes = figure.axes[0]
    figure.draw_without_rendering()  # limits, and so places, are known from here on
    to_points = 72.0 / figure.dpi
    taken: list[tuple[float, float]] = []
    for point in points:
        across, up = (float(v) * to_points for v in axes.transData.transform((point.x, point.y)))
        raised = 5.0
        while any(abs(across - a) < 70.0 and abs(up + raised - b) < 9.0 for a, b in taken):
            raised += 3.0
        taken.append((across, up + raised))
        axes.annotate(
            point.label,
            (point.x, point.y),
            xytext=(6, raised),
            textcoords="offset points",
            fontsize="x-small",
            color=_INK,
        )


def _double(axes: Any, marks: Sequence[float]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(marks, [f"{mark:,.0f}" for mark in marks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(_thousands)


def _base(label: str) -> str:
    return label.removesuffix(" training").removesuffix(" held-out")


def _thousands(value: float, position: object) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _section(section: Section) -> str:
    parts = [f"<h2>{_text(section.title)}</h2>"]
    parts += [f"<p>{_text(paragraph)}</p>" for paragraph in section.paragraphs]
    if section.table is not None:
        parts.append(_table(section.table))
    if section.svg is not None:
        parts.append(f"<figure>{section.svg}</figure>")
    for label, sample in section.samples:
        parts.append(f"<h3>{_text(label)}</h3><blockquote>{_text(sample)}</blockquote>")
    if section.code:
        parts.append(f"<pre>{_text(section.code)}</pre>")
    return f"<section>{''.join(parts)}</section>"


def _table(table: Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        marks = ("" if i in table.text_columns else ' class="number"' for i in range(len(cells)))
        inside = (f"<{tag}{m}>{_text(c)}</{tag}>" for m, c in zip(marks, cells, strict=True))
        return f"<tr>{''.join(inside)}</tr>"

    caption = f'<p class="caption">{_text(table.caption)}</p>' if table.caption else ""
    body = "".join(row(cells, "td") for cells in table.rows)
    head = row(table.headers, "th")
    inside = f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{inside}</div>{caption}'


def _text(value: str) -> str:
    return html.escape(value, quote=True)


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2128; --soft: #59636e; --page: #fdfdfc;
  --line: #d8dee4; --band: #f3f5f7; --accent: #2f81f7; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa5b1; --page: #14171c;
  --line: #333a44; --band: #1d2229; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-bottom: .3rem;
  border-bottom: 1px solid var(--line); }
h3 { font-size: .95rem; margin: 1.25rem 0 .25rem; color: var(--soft); font-weight: 600; }
p { margin: .5rem 0; max-width: 52rem; }
.subtitle, .caption { color: var(--soft); }
.caption { font-size: .85rem; }
.scroll { overflow-x: auto; margin: 1rem 0 .5rem; }
table { border-collapse: collapse; font-size: .85rem; min-width: 100%; }
th, td { padding: .45rem .5rem; text-align: left; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { font-weight: 600; background: var(--band); white-space: normal; vertical-align: bottom; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
tbody tr:hover { background: var(--band); }
figure { margin: 1rem 0; }
figure svg { width: 100%; height: auto; max-width: 52rem; }
pre { margin: 1rem 0; padding: .75rem .9rem; background: var(--band); overflow-x: auto;
  border-radius: 6px; font: .8rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
blockquote { margin: .25rem 0; max-width: 52rem; padding: .6rem .9rem; background: var(--band);
  border-left: 3px solid var(--accent); border-radius: 0 6px 6px 0; white-space: pre-wrap;
  overflow-wrap: anywhere; }
"""
