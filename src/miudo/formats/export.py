"""From one form of a model to the other, with a record of it.

For: `miudo export`: a Hugging Face folder or a GGUF file out of either; adapters too.
Not for: making a model smaller (`miudo.compress`): a type given here is only how numbers lie.
Read next: `miudo.formats.hf`, `miudo.formats.gguf`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from miudo.adapter import base_fingerprint, check_adapter
from miudo.errors import UsageError
from miudo.files import refuse_inputs, sha256_file
from miudo.formats.adapter import adapter_record, adapter_template, open_adapter
from miudo.formats.gguf import GgufReport, write_gguf
from miudo.formats.gguf_adapter import write_gguf_adapter
from miudo.formats.hf import write_folder
from miudo.formats.opening import open_model
from miudo.formats.peft import write_peft
from miudo.formats.precision import held_as, type_notes
from miudo.formats.shards import weight_files
from miudo.formats.zeros import carried
from miudo.records import Artefact, Record
from miudo.tensors import DType

__all__ = ["Exported", "Form", "export", "export_adapter", "weights_sha256"]

Form = Literal["hf", "gguf"]


@dataclass(frozen=True, slots=True)
class Exported:
    """Where it lies, and notes on what another program would not expect.

    `gguf` says what a model's GGUF file holds; folders and adapters have none.
    """

    path: Path
    notes: tuple[str, ...]
    gguf: GgufReport | None = None


def export(model: Path, out: Path, *, to: Form, dtype: DType | None = None) -> Exported:
    """Writes the model at `model` to `out` as a folder ("hf") or one file ("gguf").

    Without `dtype` a GGUF file keeps each tensor's type, a folder holds float32. Raises
    UsageError for a name or type that does not fit the form or an `out` that is `model` itself,
    and what the readers and writers raise.
    """
    _check_name(out, to)
    if to == "hf" and dtype is not None and dtype.block != 1:
        raise UsageError(
            f"a folder cannot hold {dtype}",
            where="--dtype",
            remedy="Give --to gguf, or F32, F16 or BF16",
        )
    refuse_inputs(out, model)
    if to == "hf" and out.exists() and not (out / "config.json").is_file():
        raise UsageError("is there and holds no model", where=out, remedy="Give another name")
    found = open_model(model)
    record = Record(
        verb="export",
        name=out.stem,
        settings={
            "to": to,
            "dtype": None if dtype is None else str(dtype),
            **carried(found.record, held_as(found.config, found.weights, dtype)),
        },
        inputs=(Artefact("model", model.name, weights_sha256(model)),),
        parents=() if found.record is None else (found.record,),
        licence=None if found.record is None else found.record.licence,
    )
    found = dataclasses.replace(found, record=record)
    out.parent.mkdir(parents=True, exist_ok=True)
    silent = () if found.tokenizer else ("has no tokenizer: MODEL has none that miudo reads",)
    if to == "hf":
        return Exported(out, write_folder(out, found, dtype=dtype or DType.F32) + silent)
    report = write_gguf(out, found, dtype=dtype)
    kept = type_notes((n, report.dtypes[n], f"it does not fit {dtype}") for n in report.fallbacks)
    return Exported(out, report.notes + silent + kept, report)


def _check_name(out: Path, to: Form) -> None:
    if (out.suffix == ".gguf") != (to == "gguf"):
        cure = "a name that ends in .gguf" if to == "gguf" else "a folder's name"
        raise UsageError(f"does not fit --to {to}", where=out, remedy=f"Give {cure}")


def export_adapter(adapter: Path, model: Path, out: Path, *, to: Form) -> Exported:
    """Writes `adapter`, made for the model at `model`, as a PEFT folder ("hf") or GGUF file.

    Raises UsageError for a name that does not fit the form or an `out` that is there or an
    input, ModelFileError for an adapter of another model.
    """
    _check_name(out, to)
    refuse_inputs(out, adapter, model)
    if to == "hf" and out.exists():
        raise UsageError("is there already", where=out, remedy="Give another name")
    found = open_model(model)
    held = open_adapter(adapter, found.config)
    base = base_fingerprint(found.config, found.weights)
    check_adapter(found.config, held, base=base, where=adapter)
    out.parent.mkdir(parents=True, exist_ok=True)
    was = adapter_record(adapter)
    record = Record(
        verb="export",
        name=out.stem,
        settings={"to": to},
        inputs=(Artefact("adapter", adapter.name, weights_sha256(adapter)),),
        parents=() if was is None else (was,),
        licence=None if was is None else was.licence,
    )
    template = adapter_template(adapter)
    if to == "hf":
        write_peft(
            out, held, found.config, like=found.architecture, record=record, chat_template=template
        )
        return Exported(out, ())
    notes = write_gguf_adapter(
        out, found.config, held, name=out.stem, record=record, chat_template=template
    )
    if template is not None:
        notes = (*notes, "was trained through a chat template of its own: other programs need it")
    return Exported(out, notes)


def weights_sha256(path: Path) -> str:
    """Returns the hash of a model file; of a folder, that of its tensor files' names and hashes."""
    if not path.is_dir():
        return sha256_file(path)
    digest = hashlib.sha256()
    for file in weight_files(path):
        digest.update(f"{file.name} {sha256_file(file)}\n".encode())
    return digest.hexdigest()
