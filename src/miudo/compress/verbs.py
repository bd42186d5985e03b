"""`miudo distill`, `prune`, `quantize` as functions: files in, a smaller model's file out.

For: opening, doing, measuring, writing, with a record that holds the whole lineage.
Not for: parsing a command line (`miudo.cli`), or the methods.
Read next: `miudo.compress.jobs`, what they take; then `miudo.compress.method`.

    OUT/run.json     what was asked for
    OUT/data/        packed text, unless a data folder was given
    OUT/model/       the smaller model as a Hugging Face folder, with record.json
    and what `miudo.train.run_folder` draws; `quantize` writes one GGUF file instead
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from miudo.compress.catalogue import method_to_json
from miudo.compress.distill.lesson import Lesson, distill
from miudo.compress.distill.response import ResponseSettings
from miudo.compress.distill.student import scaled
from miudo.compress.jobs import DistillJob, PruneJob, Shrunk
from miudo.compress.method import report_measurements, settings_to_json
from miudo.compress.prune.recover import Recovery, calibration_batches, prune_and_recover
from miudo.compress.quantize.nearest import NearestRounding
from miudo.compress.quantize.sparse import without_zeros
from miudo.config import ModelConfig
from miudo.data.packed import MANIFEST_FILE, DataSet, PackedTokens
from miudo.decoder.decoder import Decoder
from miudo.errors import ConfigError, UsageError
from miudo.files import refuse_inputs, sha256_file
from miudo.formats.gguf import write_gguf
from miudo.formats.hf import check_folder, write_folder
from miudo.formats.model_file import ModelFile
from miudo.meter import Meter
from miudo.presets import load_preset
from miudo.records import Artefact, Measurement, Record, shared_licence
from miudo.tensors import DType, Weights, parameter_count
from miudo.train.artefact import Opened, check_same_tokenizer, open_decoder, text_data
from miudo.train.evaluation import held_out_loss
from miudo.train.progress import Progress, Silent
from miudo.train.run_folder import RunFolder, check_order, locked_run_folder
from miudo.train.settings import FitSettings

__all__ = ["run_distill", "run_prune", "run_quantize", "student_config"]


def run_distill(
    job: DistillJob, progress: Progress | None = None, *, resume: bool = False
) -> Shrunk:
    """Trains a student on the teacher's distributions and writes OUT/model.

    Raises ConfigError for vocabularies or tokenizers that differ, ModelFileError for a student
    that no folder could hold, UsageError where OUT holds a run and `resume` is not set, and
    what `prepare`, `open_model` and `fit` raise.
    """
    progress = progress or Silent()
    refuse_inputs(job.out / "model", job.teacher, job.start)
    teacher = open_decoder(job.teacher, "teacher")
    start, student = _student(job, teacher)
    _check_folder(job.teacher, teacher, student, "Give another --student, or --start from a model")
    models = [teacher] if start is None else [teacher, start]
    settings = {
        "response": settings_to_json(job.response),
        "fit": job.fit.to_json(),
        "config": student.config.to_json(),
    }
    with locked_run_folder(job.out) as folder:
        data = _begin(job, folder, models, progress, resume=resume)
        record = _record(job.out.name, "distill", settings, models, data)
        check_order(folder, _order(job, record), resume=resume)
        lesson = _lesson(data, job.fit, job.response)
        with Meter() as meter:
            result = distill(
                teacher.decoder, student, lesson, folder, progress=progress, resume=resume
            )
        found = [*_counts(teacher.decoder, student), *result.measurements(job.fit)]
        found += _teachers_loss(teacher.decoder, lesson)
        record = dataclasses.replace(
            record, seed=job.fit.seed, measurements=(*found, *meter.measurements())
        )
        path = _write(job.out / "model", teacher, student, record)
    return Shrunk(path, student.config, record, fit=result)


def run_prune(job: PruneJob, progress: Progress | None = None, *, resume: bool = False) -> Shrunk:
    """Prunes, lets the rest learn again from the original if asked, and writes OUT/model.

    Raises ConfigError for no method or more than there is to prune, DataError for too little
    text, CheckFailedError for a model that holds NaN, and what `run_distill` raises.
    """
    progress = progress or Silent()
    if not job.methods:
        raise ConfigError("nothing is to be pruned", remedy="Give --depth, --width or both")
    refuse_inputs(job.out / "model", job.model)
    model = open_decoder(job.model, "model")
    settings = {
        "methods": [method_to_json(method) for method in job.methods],
        "calibration_tokens": job.calibration_tokens,
        "calibration_length": job.calibration_length,
        "response": settings_to_json(job.response),
        "fit": None if job.fit is None else job.fit.to_json(),
    }
    with locked_run_folder(job.out) as folder:
        data = _begin(job, folder, [model], progress, resume=resume)
        record = _record(job.out.name, "prune", settings, [model], data)
        check_order(folder, _order(job, record), resume=resume)
        recovery = None
        if job.fit is not None:
            recovery = Recovery(_lesson(data, job.fit, job.response), folder, progress, resume)
        with Meter() as meter:
            length = min(job.calibration_length, model.file.config.max_positions)
            batches = calibration_batches(
                data.open_split("train"), tokens=job.calibration_tokens, length=length
            )
            made = prune_and_recover(
                model.decoder,
                job.methods,
                batches,
                recovery,
                check=lambda rest: _check_folder(job.model, model, rest, "Prune otherwise"),
            )
        found = report_measurements(made.reports)
        if made.fit is not None and job.fit is not None:
            found += made.fit.measurements(job.fit)
        record = dataclasses.replace(
            record,
            seed=None if job.fit is None else job.fit.seed,
            measurements=(*found, *meter.measurements()),
            notes=tuple(note for report in made.reports for note in report.notes),
        )
        path = _write(job.out / "model", model, made.decoder, record)
    return Shrunk(path, made.decoder.config, record, made.reports, made.fit)


def run_quantize(
    model: Path, out: Path, *, dtype: DType = DType.Q8_0, sparse: bool = False
) -> Shrunk:
    """Rounds a model's weights and writes one GGUF file, `out`.

    With `sparse` matrices are stored without their zeros where that is smaller: a file for
    miudo alone. Raises UsageError unless `out` ends in .gguf, CheckFailedError for a model that
    holds NaN, and what `open_model` raises.
    """
    if out.suffix != ".gguf":
        raise UsageError("is no GGUF file's name", where=out, remedy="Write --out NAME.gguf")
    refuse_inputs(out, model)
    opened = open_decoder(model, "model")
    method = NearestRounding(dtype)
    with Meter() as meter:
        stored, report = method.store(opened.decoder)
        if sparse:
            stored, report = without_zeros(opened.file.config, stored, report)
    record = Record(
        verb="quantize",
        name=out.stem,
        settings={**method_to_json(method), **({"sparse": True} if sparse else {})},
        inputs=(opened.artefact,),
        measurements=(*report_measurements((report,)), *meter.measurements()),
        parents=opened.parents,
        licence=shared_licence(opened.parents),
        notes=report.notes,
    )
    made = _model_file(opened, opened.decoder, stored, record)
    write_gguf(out, made)
    return Shrunk(out, opened.file.config, record, (report,))


def student_config(student: float | str | ModelConfig, teacher: ModelConfig) -> ModelConfig:
    """Returns the student's shape with the teacher's vocabulary and special ids.

    Raises ConfigError for a config with another vocabulary.
    """
    if isinstance(student, float):
        return scaled(teacher, student)
    if isinstance(student, str):
        student = load_preset(student, vocab_size=teacher.vocab_size)
    return dataclasses.replace(
        student, bos_id=teacher.bos_id, eos_ids=teacher.eos_ids, pad_id=teacher.pad_id
    )


def _student(job: DistillJob, teacher: Opened) -> tuple[Opened | None, Decoder]:
    """Returns the model that the student begins with, if any, and the student."""
    if job.start is not None:
        start = open_decoder(job.start, "start")
        check_same_tokenizer(teacher, start.tokenizer(), job.start)
        return start, start.decoder
    student = Decoder(student_config(job.student, teacher.file.config))
    student.initialise(job.fit.seed)
    return None, student


def _begin(
    job: DistillJob | PruneJob,
    folder: RunFolder,
    models: Sequence[Opened],
    progress: Progress,
    *,
    resume: bool,
) -> DataSet:
    """Returns the text of a run, whose folder is free or is gone on with."""
    if not resume:
        folder.check_free()
    return text_data(
        job.inputs, models[0], folder.path / "data", job.prepare, progress, resume=resume
    )


def _order(job: DistillJob | PruneJob, record: Record) -> dict[str, Any]:
    """Returns what a resumed run must have been started with."""
    return {
        "schema": 1,
        "verb": record.verb,
        "inputs": {part.role: part.sha256 for part in record.inputs},
        "text": [text if text == "-" else str(Path(text).resolve()) for text in job.inputs],
        "settings": record.settings,
    }


def _lesson(data: DataSet, fit: FitSettings, response: ResponseSettings) -> Lesson:
    held_out: PackedTokens | None = data.open_split("held_out")
    if held_out is not None and not held_out.n_blocks(fit.length):
        held_out = None
    return Lesson(data.open_split("train"), fit, response, held_out)


def _record(
    name: str, verb: str, settings: Mapping[str, Any], models: Sequence[Opened], data: DataSet
) -> Record:
    """Returns the record before anything is measured. Its licence is that of all `models`."""
    text = Record.read(data.folder)
    packed = Artefact("data", data.folder.name, sha256_file(data.folder / MANIFEST_FILE))
    parents = [record for model in models for record in model.parents]
    return Record(
        verb=verb,
        name=name,
        settings=settings,
        inputs=(*(model.artefact for model in models), packed),
        parents=(*parents, *(() if text is None else (text,))),
        licence=shared_licence(model.file.record for model in models),
    )


def _counts(teacher: Decoder, student: Decoder) -> list[Measurement]:
    return [
        Measurement(name, parameter_count(decoder.config, embeddings=embeddings), "1", "counted")
        for name, decoder, embeddings in (
            ("parameters", student, True),
            ("parameters_without_embeddings", student, False),
            ("teacher_parameters", teacher, True),
            ("teacher_parameters_without_embeddings", teacher, False),
        )
    ]


def _teachers_loss(teacher: Decoder, lesson: Lesson) -> list[Measurement]:
    if lesson.held_out is None:
        return []
    loss = held_out_loss(teacher, lesson.held_out, lesson.fit)
    method = "as held_out_loss, on the same tokens"
    return [Measurement("teacher_held_out_loss", loss, "nats/token", method)]


def _model_file(opened: Opened, decoder: Decoder, weights: Weights, record: Record) -> ModelFile:
    return dataclasses.replace(
        opened.file, config=decoder.config, weights=weights, record=record, path=None
    )


def _check_folder(where: Path, opened: Opened, decoder: Decoder, remedy: str) -> None:
    """Raises ModelFileError if what becomes of `decoder` could not be written in the end."""
    file = dataclasses.replace(
        opened.file, config=decoder.config, weights=decoder.to_weights(), path=None
    )
    check_folder(file, where, remedy)


def _write(path: Path, opened: Opened, decoder: Decoder, record: Record) -> Path:
    write_folder(path, _model_file(opened, decoder, decoder.to_weights(), record))
    return path
