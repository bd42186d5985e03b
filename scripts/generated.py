"""Keeps generated text in the documentation current: writes it, or with --check compares.

For: the scripts beside this file, each of which makes one such text.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def keep(path: Path, text: str) -> None:
    """Writes `text` to `path`; with --check exits with 3 if it is not there already."""
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    if "--check" in sys.argv[1:]:
        if old != text:
            print(f"{path.relative_to(ROOT)} is out of date: run make docs", file=sys.stderr)
            sys.exit(3)
    elif old != text:
        path.write_text(text, encoding="utf-8")


def between_marks(path: Path, mark: str, body: str) -> str:
    """Returns the text of `path` with `body` between `<!-- mark -->` and `<!-- /mark -->`."""
    first, last = f"<!-- {mark} -->\n", f"<!-- /{mark} -->"
    text = path.read_text(encoding="utf-8")
    before, found, rest = text.partition(first)
    _, ended, after = rest.partition(last)
    if not found or not ended:
        sys.exit(f"{path.relative_to(ROOT)} lacks {first.strip()} or {last}")
    return f"{before}{first}{body}{last}{after}"
