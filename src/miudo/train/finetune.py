"""From a model and conversations (or text) to an adapter, or a whole model, with its record.

For: `miudo finetune`: LoRA side paths on frozen weights, or all weights, on the one loop.
Not for: the loop (`miudo.train.loop`), the data (`miudo.train.lesson`), merging.
Read next: `miudo.train.lesson`, `miudo.decoder.lora`.

    OUT/run.json     what was asked for; a resumed run must ask for the same
    OUT/data/        packed text, where the data is running text
    OUT/adapter/     the adapter as a PEFT folder, with record.json; or
    OUT/model/       the whole model as a Hugging Face folder
    and what `miudo.train.run_folder` draws
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miudo.adapter import base_fingerprint
from miudo.decoder.lora import add_lora, to_adapter
from miudo.decoder.sparsity import Masks, masks_to_keep
from miudo.files import refuse_inputs
from miudo.formats.hf import check_folder, write_folder
from miudo.formats.peft import family_of_base, write_peft
from miudo.formats.zeros import sparse_settings
from miudo.meter import Meter
from miudo.records import Artefact, Measurement, Record, shared_licence
from miudo.tensors import parameter_count
from miudo.train.artefact import Opened, open_decoder
from miudo.train.lesson import FinetuneJob, Lesson, open_lesson
from miudo.train.loop import FitResult, fit
from miudo.train.progress import Progress, Silent
from miudo.train.run_folder import check_order, locked_run_folder

__all__ = ["Finetuned", "defaults", "finetune", "open_base"]


@dataclass(frozen=True, slots=True)
class Finetuned:
    """Where adapter or model lies, how the run ended, its record."""

    path: Path
    fit: FitResult
    record: Record


def defaults(*, lora: bool) -> dict[str, Any]:
    """Returns the settings in which fine-tuning differs from training from nothing.

    AdamW, which suits any base; for side paths ten times the rate of whole weights, as Schulman
    et al. (2025) found best, and no decay, which would pull towards the base.
    """
    return {"optimizer": "adamw", "lr": 3e-3 if lora else 3e-4, "weight_decay": 0.0}


def finetune(
    job: FinetuneJob, progress: Progress | None = None, *, resume: bool = False
) -> Finetuned:
    """Trains and writes OUT/adapter, or OUT/model where all weights are trained.

    Raises UsageError where OUT holds a run and `resume` is not set, or `resume` asks for other
    than was begun; ModelFileError for a base that no Hugging Face folder holds; and what
    `open_lesson` and `fit` raise.
    """
    progress = progress or Silent()
    kind = "model" if job.lora is None else "adapter"
    refuse_inputs(job.out / kind, job.model)
    base = open_base(job)
    masks = _masks(job, base)
    with locked_run_folder(job.out) as folder:
        if not resume:
            folder.check_free()
        lesson = open_lesson(job, base, job.out / "data", progress, resume=resume)
        record = _record(job, base, lesson)
        check_order(folder, _order(job, record), resume=resume)
        trainable = sum(p.numel() for p in base.decoder.parameters() if p.requires_grad)
        whole = parameter_count(base.file.config)
        progress.note(f"{trainable:,} parameters are trained, the model has {whole:,}")
        with Meter() as meter:
            result = fit(
                base.decoder,
                lesson.train,
                lesson.fit,
                folder,
                masks=masks,
                held_out=lesson.held_out,
                progress=progress,
                resume=resume,
            )
        counts = (("parameters", whole), ("trainable_parameters", trainable))
        found = [Measurement(name, value, "1", "counted") for name, value in counts]
        found += [*lesson.measurements, *result.measurements(lesson.fit), *meter.measurements()]
        settings = {**record.settings, **sparse_settings(result.zeros)}
        record = dataclasses.replace(record, measurements=tuple(found), settings=settings)
        _write(job.out / kind, job, base, lesson, record)
    progress.note(f"{kind} written to {job.out / kind}")
    return Finetuned(job.out / kind, result, Record.read(job.out / kind) or record)


def open_base(job: FinetuneJob) -> Opened:
    """Returns the base model with what is trained of it taking gradients, and nothing else.

    Raises what `open_decoder` and `add_lora` raise, and ModelFileError for a model that could
    not be written in the end.
    """
    base = open_decoder(job.model, "model")
    if job.lora is not None:
        family_of_base(base.file.config, job.model, base.file.architecture)
        add_lora(base.decoder, job.lora, job.fit.seed)
        return base
    check_folder(base.file, job.model, "Take a model that a folder can hold")
    return base


def _masks(job: FinetuneJob, base: Opened) -> Masks | None:
    """The zeros to keep; beside side paths the weights do not move, and nothing is to be kept."""
    if job.lora is not None:
        return None
    return masks_to_keep(base.decoder, base.file.record, keep=job.keep_zeros, where=job.model)


def _record(job: FinetuneJob, base: Opened, lesson: Lesson) -> Record:
    """Returns the record before anything is measured."""
    return Record(
        verb="finetune",
        name=job.out.name,
        settings={
            "lora": None if job.lora is None else dataclasses.asdict(job.lora),
            "epochs": job.epochs,
            "keep_zeros": job.keep_zeros,
            "fit": lesson.fit.to_json(),
            "chat": dataclasses.asdict(job.chat),
            "chat_template": lesson.chat_template,
        },
        seed=job.fit.seed,
        inputs=(base.artefact, *lesson.inputs),
        parents=(*base.parents, *lesson.parents),
        licence=shared_licence(base.parents) if base.parents else None,
        notes=lesson.notes,
    )


def _order(job: FinetuneJob, record: Record) -> dict[str, Any]:
    """Returns what a resumed run must have been started with."""

    def plain(part: Artefact) -> list[str]:
        return [part.role, part.name, part.sha256]

    return {
        "schema": 1,
        "verb": record.verb,
        "inputs": [plain(part) for part in record.inputs],
        "text": [text if text == "-" else str(Path(text).resolve()) for text in job.inputs],
        "settings": {**record.settings, "prepare": dataclasses.asdict(job.prepare)},
    }


def _write(path: Path, job: FinetuneJob, base: Opened, lesson: Lesson, record: Record) -> None:
    file = base.file
    if job.lora is None:
        made = dataclasses.replace(
            file,
            weights=base.decoder.to_weights(),
            chat_template=lesson.chat_template,
            record=record,
            path=None,
        )
        write_folder(path, made)
        return
    tokenizer = None if file.tokenizer is None else base.tokenizer().fingerprint
    adapter = to_adapter(
        base.decoder, base=base_fingerprint(file.config, file.weights), tokenizer=tokenizer
    )
    write_peft(
        path,
        adapter,
        file.config,
        like=file.architecture,
        record=record,
        dropout=job.lora.dropout,
        # The model's own stays with the model; this one goes before it wherever the adapter runs.
        chat_template=lesson.chat_template if job.chat_template is not None else None,
    )
