"""`miudo merge` as a function: a model and an adapter become one model.

For: files in, a model folder out, whose record has both as parents.
Not for: the sum itself (`miudo.decoder.lora.merge`), or the engine, which runs adapters unmerged.
Read next: `miudo.decoder.lora`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from miudo.adapter import base_fingerprint, check_adapter
from miudo.decoder.lora import apply_adapter, merge
from miudo.decoder.sparsity import masks_to_keep
from miudo.errors import UsageError
from miudo.files import refuse_inputs
from miudo.formats.adapter import adapter_record, adapter_template, open_adapter
from miudo.formats.hf import write_folder
from miudo.formats.zeros import sparse_settings
from miudo.records import Record, shared_licence
from miudo.tensors import DType
from miudo.text.tokenizer import TextTokenizer
from miudo.train.artefact import folder_artefact, open_decoder

__all__ = ["Merged", "merge_adapter"]


@dataclasses.dataclass(frozen=True, slots=True)
class Merged:
    """Where the model lies, its record, and notes on what was adapted."""

    path: Path
    record: Record
    notes: tuple[str, ...]


def merge_adapter(
    model: Path,
    adapter: Path,
    out: Path,
    *,
    keep_zeros: bool | None = None,
    dtype: DType = DType.F32,
) -> Merged:
    """Writes the model at `model` with `adapter` (a PEFT folder, a GGUF file) in its weights.

    `keep_zeros` leaves what is exactly zero at zero, as `miudo.decoder.lora.merge` says; None goes
    by the model's record (`miudo.decoder.sparsity`). A chat template that the adapter was
    trained through takes the place of the model's. Raises
    ModelFileError for an adapter of another model or tokenizer, UsageError where `out` would
    replace an input or is a folder of another kind, and what the readers and writers raise.
    """
    refuse_inputs(out, model, adapter)
    if out.exists() and not (out / "config.json").is_file():
        raise UsageError("is there and holds no model", where=out, remedy="Give another name")
    base = open_decoder(model, "model")
    found = open_adapter(adapter, base.file.config)
    tokenizer = None
    if base.file.tokenizer is not None:
        tokenizer = TextTokenizer(base.file.tokenizer).fingerprint
    check_adapter(
        base.file.config,
        found,
        base=base_fingerprint(base.file.config, base.file.weights),
        tokenizer=tokenizer,
        where=adapter,
    )
    learned = adapter_record(adapter)
    masks = masks_to_keep(base.decoder, base.file.record, keep=keep_zeros, where=model)
    decoder = merge(apply_adapter(base.decoder, found, where=adapter), keep_zeros=masks is not None)
    if masks is not None:
        masks.check(dict(decoder.named_parameters()), where=out)
    record = Record(
        verb="merge",
        name=out.name,
        settings={
            "keep_zeros": masks is not None,
            "dtype": str(dtype),
            **sparse_settings({} if masks is None else masks.zeros()),
        },
        inputs=(base.artefact, folder_artefact(adapter, "adapter")),
        parents=(*base.parents, *(() if learned is None else (learned,))),
        licence=shared_licence((base.file.record, learned)),
    )
    made = dataclasses.replace(
        base.file,
        weights=decoder.to_weights(),
        chat_template=adapter_template(adapter) or base.file.chat_template,
        record=record,
        path=None,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    return Merged(out, record, write_folder(out, made, dtype=dtype))
