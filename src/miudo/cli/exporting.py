"""`miudo export`.

For: a model as one GGUF file, or as a Hugging Face folder; its adapter as a GGUF file.
Not for: fewer bits with an account of it (`miudo quantize`).
Read next: `miudo.formats.export`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import click

from miudo.cli.options import BLOCK_TYPES, complete_model, emit, verb
from miudo.errors import UsageError
from miudo.hub.resolve import model_path

__all__ = ["export"]


@verb("export")
@click.argument("model", shell_complete=complete_model)
@click.option(
    "--to",
    type=click.Choice(["hf", "gguf"]),
    help="A folder (hf) or a file; default: what --out ends in says.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder, or .gguf file."
)
@click.option(
    "--dtype",
    type=click.Choice(["F32", "F16", "BF16", *BLOCK_TYPES], case_sensitive=False),
    help="How numbers lie; default: as they are (gguf), F32 (hf).",
)
@click.option(
    "--adapter",
    type=click.Path(path_type=Path),
    help="Write this LoRA adapter of MODEL, not MODEL itself.",
)
@click.option("--force", is_flag=True, help="Replace what is at --out.")
def export(
    model: str,
    *,
    to: Any,
    out: Path,
    dtype: str | None,
    adapter: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write MODEL as a folder, which transformers loads, or as a GGUF file, which llama.cpp runs.

    An --out that ends in .gguf is a file, any other a folder.
    """
    from miudo.files import refuse_inputs
    from miudo.formats.export import export as export_model
    from miudo.formats.export import export_adapter
    from miudo.tensors import DType

    path = model_path(model)
    to = to or ("gguf" if out.suffix == ".gguf" else "hf")
    refuse_inputs(out, path, adapter)
    if out.exists() and not force:
        raise UsageError("is there already", where=out, remedy="Give another --out, or --force")
    kind = "model" if adapter is None else "adapter"
    if adapter is None:
        made = export_model(path, out, to=to, dtype=None if dtype is None else DType(dtype))
    elif dtype is not None:
        raise UsageError("an adapter's numbers stay F32", where="--dtype", remedy="Leave it out")
    else:
        made = export_adapter(adapter, path, out, to=to)
    lines = [f"{kind:<7} {made.path}"]
    value: dict[str, Any] = {"schema": 1, kind: str(made.path), "notes": made.notes}
    if made.gguf is not None:
        counts = dict(Counter(str(dtype) for dtype in made.gguf.dtypes.values()))
        held = ", ".join(f"{count} tensors {dtype}" for dtype, count in counts.items())
        lines.append(f"holds   {made.gguf.bits_per_weight:.3f} bits per weight: {held}")
        value |= {"bits_per_weight": made.gguf.bits_per_weight, "dtypes": counts}
    lines += [f"note    {note}" for note in made.notes]
    emit(value, "\n".join(lines), as_json=as_json)
