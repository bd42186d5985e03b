"""The log of a run: one JSON object a line, without gaps or repeats after a resume.

For: `metrics.jsonl`, from which the loss plot and reports are drawn.
Not for: what is shown live (`miudo.train.progress`).
Read next: `miudo.report.loss_plot`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from miudo.files import atomic_write, translated_disk_errors

__all__ = ["append_metrics", "read_metrics", "truncate_metrics"]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of `path`; none if it is absent. A line torn by a crash ends them."""
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            break
        rows.append(row)
    return rows


def append_metrics(path: Path, row: Mapping[str, Any]) -> None:
    """Adds one row. Raises ResourceError when the disk is full."""
    with translated_disk_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def truncate_metrics(path: Path, step: int) -> None:
    """Forgets rows after `step`, which a resumed run will write again."""
    kept = [json.dumps(row) + "\n" for row in read_metrics(path) if row["step"] <= step]
    atomic_write(path, lambda file: file.write("".join(kept).encode()))
