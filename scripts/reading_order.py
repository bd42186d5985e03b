"""Writes the reading order into README.md: what to read first, with counted lines.

A newcomer should know the house after at most 1,500 lines; this fails when they are more.
"""

from __future__ import annotations

import sys

from generated import ROOT, between_marks, keep

MOST = 1500
ORDER = [
    ("src/miudo/config/model.py", "what a model is, as plain values"),
    ("src/miudo/tensors.py", "every tensor of a model, from those values"),
    ("src/miudo/protocol.py", "the contracts: ids in, ids and numbers out"),
    ("src/miudo/decoder/decoder.py", "the model in PyTorch: the truth that the engine equals"),
    ("src/miudo/decoder/attention.py", "attention with its cache"),
    ("src/miudo/decoder/feedforward.py", "the other half of a block"),
    ("src/miudo/engine/generate.py", "the loop that turns steps into text"),
    ("src/miudo/compress/method.py", "what every way to make a model smaller is"),
]


def main() -> None:
    """Writes the table, or with --check compares it."""
    counts = [len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name, _ in ORDER]
    total = sum(counts)
    if total > MOST:
        sys.exit(f"the reading order has {total} lines, more than {MOST}")
    rows = [
        f"| {place} | [{name.removeprefix('src/miudo/')}]({name}) | {count} | {what} |"
        for place, ((name, what), count) in enumerate(zip(ORDER, counts, strict=True), start=1)
    ]
    table = ["| | file | lines | what it is |", "| --- | --- | ---: | --- |", *rows]
    table += [f"| | in all | {total} | |", ""]
    readme = ROOT / "README.md"
    keep(readme, between_marks(readme, "reading-order", "\n".join(table)))


if __name__ == "__main__":
    main()
