"""`miudo distill` and `prune` as functions: files in, a smaller model's folder out.

For: opening, doing, measuring, writing, with a record that holds the whole lineage.
Not for: parsing a command line (`miudo.cli`), the methods, or `miudo.compress.quantizing`.
Read next: `miudo.compress.jobs`, what they take; then `miudo.compress.method`.

    OUT/run.json     what was asked for
    OUT/data/        packed text, unless a data folder was given
    OUT/model/       the smaller model as a Hugging Face folder, with record.json
    and what `miudo.train.run_folder` draws
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from miudo.compress.catalogue import method_to_json
from miudo.compress.distill.cross import CrossSettings
from miudo.compress.distill.lesson import Lesson, distill
from miudo.compress.distill.student import scaled
from miudo.compress.distill.terms import DistillSettings
from miudo.compress.distill.ways import Cached, lesson_by, way_to_json
from miudo.compress.jobs import DistillJob, PruneJob, Shrunk, report_measurements
from miudo.compress.prune.depth import with_layers
from miudo.compress.prune.recover import Recovery, calibration_batches, prune_and_recover
from miudo.compress.quantize.trained import RoundedStudent, check_engine
from miudo.config import ModelConfig
from miudo.data.packed import MANIFEST_FILE, DataSet, PackedTokens
from miudo.decoder.decoder import Decoder
from miudo.decoder.sparsity import Masks, masks_to_keep
from miudo.errors import ConfigError, UsageError
from miudo.files import refuse_inputs, sha256_file
from miudo.formats.gguf import write_gguf
from miudo.formats.hf import check_folder, write_folder
from miudo.formats.model_file import ModelFile
from miudo.formats.zeros import sparse_settings
from miudo.meter import Meter
from miudo.presets import load_preset
from miudo.records import Artefact, Measurement, Record, shared_licence
from miudo.tensors import Weights, parameter_count
from miudo.train.artefact import Opened, check_same_tokenizer, open_decoder, text_data
from miudo.train.evaluation import held_out_loss
from miudo.train.progress import Progress, Silent
from miudo.train.run_folder import RunFolder, check_order, locked_run_folder
from miudo.train.settings import FitSettings

__all__ = ["run_distill", "run_prune", "student_config"]


def run_distill(
    job: DistillJob, progress: Progress | None = None, *, resume: bool = False
) -> Shrunk:
    """Trains a student on the teacher's distributions and writes OUT/model.

    With a `dtype` it is trained to be rounded, and becomes OUT/model.gguf.

    Raises ConfigError for vocabularies or tokenizers that differ where `job.way` is not across
    them, ModelFileError for a student that no folder could hold, UsageError where OUT holds a
    run and `resume` is not set, and what `prepare`, `open_model` and `fit` raise.
    """
    progress = progress or Silent()
    cache = job.way.folder if isinstance(job.way, Cached) else None
    refuse_inputs(job.out / "model", job.teacher, job.start, *job.more_teachers, cache)
    teacher = open_decoder(job.teacher, "teacher")
    more = _more_teachers(job, teacher)
    start, student = _student(job, teacher)
    models = [teacher, *more, *(() if start is None else (start,))]
    masks, rounding = None, _rounding(job, student, start)
    # A student that is neither the start nor the teacher itself has weights of its own.
    itself = rounding is not None and job.student is None and not job.student_layers
    if start is not None or itself:
        masks = _zeros(start or teacher, job)
    elif job.student_layers and _zeros(teacher, job) is not None:
        masks = Masks.of(student)
    if rounding is not None and masks is not None:
        rounding.check_keeps(masks)
    # The model whose tokenizer, template and family the student's folder has.
    pattern = start if start is not None and isinstance(job.way, CrossSettings) else teacher
    _check_folder(job.teacher, pattern, student, "Give another --student, or --start from a model")
    settings = {
        "loss": None if isinstance(job.way, CrossSettings) else job.loss.to_json(),
        "way": way_to_json(job.way),
        "student_layers": list(job.student_layers),
        "fit": job.fit.to_json(),
        "config": student.config.to_json(),
        **({} if rounding is None else rounding.settings),
    }
    with locked_run_folder(job.out) as folder:
        data = _begin(job, folder, pattern, progress, resume=resume)
        record = _record(job.out.name, "distill", settings, models, data)
        check_order(folder, _order(job, record), resume=resume)
        lesson = _lesson(data, job.fit, job.loss)
        with Meter() as meter:
            lesson, taught = _asked(job, [teacher, *more], student, data, lesson, progress)
            result = distill(
                [opened.decoder for opened in (teacher, *more)],
                student,
                lesson,
                folder,
                surviving=job.student_layers or None,
                masks=masks,
                stand_in=None if rounding is None else rounding.weights,
                progress=progress,
                resume=resume,
            )
        found = [*_counts(teacher.decoder, student), *result.measurements(job.fit)]
        if pattern is teacher:  # another tokenizer's loss a token is no number to compare with
            found += taught or _teachers_loss(teacher.decoder, lesson)
        record = dataclasses.replace(
            record,
            seed=job.fit.seed,
            settings={**record.settings, **sparse_settings(result.zeros)},
            measurements=(*found, *meter.measurements()),
        )
        if rounding is not None:
            return _write_rounded(
                job,
                teacher,
                rounding,
                lesson,
                Shrunk(job.out / "model.gguf", student.config, record, fit=result),
            )
        path = _write(job.out / "model", pattern, student, record)
    return Shrunk(path, student.config, record, fit=result)


def run_prune(job: PruneJob, progress: Progress | None = None, *, resume: bool = False) -> Shrunk:
    """Prunes, lets the rest learn again from the original if asked, and writes OUT/model.

    Raises ConfigError for no method or more than there is to prune, DataError for too little
    text, CheckFailedError for a model that holds NaN, and what `run_distill` raises.
    """
    progress = progress or Silent()
    if not job.methods:
        raise ConfigError(
            "nothing is to be pruned",
            remedy="Give --depth, --width, --sparsity ...: see --help",
        )
    refuse_inputs(job.out / "model", job.model)
    model = open_decoder(job.model, "model")
    zeros = _zeros(model, job)
    settings = {
        "methods": [method_to_json(method) for method in job.methods],
        "calibration_tokens": job.calibration_tokens,
        "calibration_length": job.calibration_length,
        "repair": job.repair,
        "loss": job.loss.to_json(),
        "fit": None if job.fit is None else job.fit.to_json(),
    }
    with locked_run_folder(job.out) as folder:
        data = _begin(job, folder, model, progress, resume=resume)
        record = _record(job.out.name, "prune", settings, [model], data)
        check_order(folder, _order(job, record), resume=resume)
        recovery = None
        if job.fit is not None:
            recovery = Recovery(_lesson(data, job.fit, job.loss), folder, progress, resume)
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
                ridge=job.repair,
                keep_zeros=zeros is not None,
                check=lambda rest: _check_folder(job.model, model, rest, "Prune otherwise"),
            )
        found = report_measurements(made.reports)
        if made.fit is not None and job.fit is not None:
            found += made.fit.measurements(job.fit)
        zeros_kept = {} if made.masks is None else made.masks.zeros()
        if zeros_kept:
            found.append(Measurement("zero_weights", sum(zeros_kept.values()), "1", "counted"))
        record = dataclasses.replace(
            record,
            settings={**record.settings, **sparse_settings(zeros_kept)},
            seed=None if job.fit is None else job.fit.seed,
            measurements=(*found, *meter.measurements()),
            notes=tuple(note for report in made.reports for note in report.notes),
        )
        path = _write(job.out / "model", model, made.decoder, record)
    return Shrunk(path, made.decoder.config, record, made.reports, made.fit)


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
    """Returns the model that the student begins with, if any, and the student.

    Raises UsageError for two beginnings, ConfigError for layers that the teacher has not.
    """
    if job.student_layers:
        if job.start is not None:
            raise UsageError(
                "a student begins with layers of the teacher or with another model, not with both",
                where="--student-layers, --start",
            )
        return None, with_layers(teacher.decoder, job.student_layers)
    if job.start is not None:
        start = open_decoder(job.start, "start")
        if not isinstance(job.way, CrossSettings):
            check_same_tokenizer(teacher, start.tokenizer(), job.start)
        return start, start.decoder
    if isinstance(job.way, CrossSettings):
        raise UsageError(
            "a student with another tokenizer than the teacher's needs one to begin with",
            where="--cross",
            remedy="Name a model of its tokenizer and shape with --start",
        )
    if job.dtype is not None and job.student is None:
        return None, copy.deepcopy(teacher.decoder)
    shape = 0.25 if job.student is None else job.student
    student = Decoder(student_config(shape, teacher.file.config))
    student.initialise(job.fit.seed)
    return None, student


def _asked(
    job: DistillJob,
    teachers: Sequence[Opened],
    student: Decoder,
    data: DataSet,
    lesson: Lesson,
    progress: Progress,
) -> tuple[Lesson, list[Measurement]]:
    """Returns the lesson in the job's way; the teacher's loss too where it is needed no more."""
    if job.way is None:
        return lesson, []
    surviving = job.student_layers or None
    lesson = lesson_by(job.way, teachers, student, data, lesson, surviving, progress)
    if not isinstance(job.way, Cached) or job.dtype is not None:
        return lesson, []
    # It has said all: its memory is the student's now.
    taught = _teachers_loss(teachers[0].decoder, lesson)
    teachers[0].decoder.to("meta")
    return lesson, taught


def _rounding(job: DistillJob, student: Decoder, start: Opened | None) -> RoundedStudent | None:
    if job.dtype is None:
        if job.tables is not None:
            raise ConfigError("tables has a type, the matrices have none", remedy="Give --dtype")
        return None
    if isinstance(job.way, CrossSettings):
        raise UsageError(
            "a student of another tokenizer is not trained to be rounded",
            where="--dtype, --cross",
            remedy="Distil first, then distil from the result with --dtype",
        )
    held = None if start is None else start.file.weights
    return RoundedStudent(student, job.dtype, job.tables or job.dtype, held)


def _write_rounded(
    job: DistillJob, teacher: Opened, rounding: RoundedStudent, lesson: Lesson, made: Shrunk
) -> Shrunk:
    """Measures a student that was trained to be rounded, writes its file and runs it once."""
    done = rounding.finish(teacher.decoder, lesson, shared_vocab=job.loss.shared_vocab)
    bits = Measurement("bits_per_weight", done.bits_per_weight, "bit", "counted")
    record = dataclasses.replace(
        made.record,
        measurements=(*made.record.measurements, *done.measurements(), bits),
        notes=(*made.record.notes, *rounding.plan.notes, *done.notes()),
    )
    write_gguf(made.path, _model_file(teacher, rounding.student, done.stored, record))
    check_engine(made.path, lesson.data.block(0, lesson.fit.length)[:-1].tolist())
    return dataclasses.replace(made, record=record)


def _more_teachers(job: DistillJob, teacher: Opened) -> list[Opened]:
    found = [open_decoder(path, f"teacher_{i}") for i, path in enumerate(job.more_teachers, 2)]
    for path, opened in zip(job.more_teachers, found, strict=True):
        check_same_tokenizer(teacher, opened.tokenizer(), path)
    return found


def _zeros(model: Opened, job: DistillJob | PruneJob) -> Masks | None:
    """The zeros to keep of the model whose weights are the start."""
    file = model.file
    return masks_to_keep(
        model.decoder, file.record, weights=file.weights, keep=job.keep_zeros, where=file.path
    )


def _begin(
    job: DistillJob | PruneJob,
    folder: RunFolder,
    model: Opened,
    progress: Progress,
    *,
    resume: bool,
) -> DataSet:
    """Returns the text of a run in the model's ids; the folder is free or is gone on with."""
    if not resume:
        folder.check_free()
    return text_data(job.inputs, model, folder.path / "data", job.prepare, progress, resume=resume)


def _order(job: DistillJob | PruneJob, record: Record) -> dict[str, Any]:
    """Returns what a resumed run must have been started with."""
    return {
        "schema": 1,
        "verb": record.verb,
        "inputs": {part.role: part.sha256 for part in record.inputs},
        "text": [text if text == "-" else str(Path(text).resolve()) for text in job.inputs],
        "settings": record.settings,
    }


def _lesson(data: DataSet, fit: FitSettings, loss: DistillSettings) -> Lesson:
    held_out: PackedTokens | None = data.open_split("held_out")
    if held_out is not None and not held_out.n_blocks(fit.length):
        held_out = None
    return Lesson(data.open_split("train"), fit, loss, held_out)


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
