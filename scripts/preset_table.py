"""Writes docs/presets.md from the preset files: sizes are counted, not copied."""

from __future__ import annotations

from collections.abc import Iterable

from generated import ROOT, keep

from miudo.config import ModelConfig
from miudo.presets import load_preset, preset_names
from miudo.tensors import parameter_count

HEAD = """\
# Presets

Shapes that `miudo train --preset NAME` knows. Written by `scripts/preset_table.py` from
`src/miudo/presets/`; `make docs` writes it anew. Parameters count the token table once; the
number without it is what does the work in a small model.

"""
COLUMNS = ("preset", "parameters", "without the token table", "layers", "width", "heads", "keys",
           "feed-forward", "vocabulary", "positions")  # fmt: skip


def main() -> None:
    """Writes the page, or with --check compares it."""
    rows = [(name, load_preset(name)) for name in preset_names()]
    rows.sort(key=lambda row: parameter_count(row[1]))
    lines = [line(COLUMNS), line(["---"] + ["---:"] * (len(COLUMNS) - 1))]
    lines += [line(cells(name, config)) for name, config in rows]
    keep(ROOT / "docs" / "presets.md", HEAD + "\n".join(lines) + "\n")


def cells(name: str, config: ModelConfig) -> list[str]:
    """Returns one preset's row; a preset's layers are all alike."""
    layer = config.layers[0]
    sizes = (
        parameter_count(config),
        parameter_count(config, embeddings=False),
        config.n_layers,
        config.d_model,
        layer.n_heads,
        layer.n_kv_heads,
        layer.d_ff,
        config.vocab_size,
        config.max_positions,
    )
    return [f"`{name}`", *(f"{size:,}" for size in sizes)]


def line(values: Iterable[str]) -> str:
    """Returns one line of a Markdown table."""
    return "| " + " | ".join(values) + " |"


if __name__ == "__main__":
    main()
