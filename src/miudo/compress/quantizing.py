"""`miudo quantize` as a function: a model in, one GGUF file out.

For: opening, calibrating, rotating, rounding, writing, with a record of all of it.
Not for: parsing a command line (`miudo.cli`), or the methods (`miudo.compress.quantize`).
Read next: `miudo.compress.jobs`, what it takes; then `miudo.compress.quantize.nearest`.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from torch import Tensor

from miudo.compress.catalogue import method_to_json
from miudo.compress.jobs import QuantizeJob, Shrunk, report_measurements
from miudo.compress.method import Quantizer
from miudo.compress.prune.recover import calibration_batches
from miudo.compress.quantize.mixed import MixedTypes
from miudo.compress.quantize.nearest import NearestRounding
from miudo.compress.quantize.rotate import rotate
from miudo.compress.quantize.sparse import without_zeros
from miudo.config import ModelConfig
from miudo.data.packed import MANIFEST_FILE
from miudo.errors import CheckFailedError, ConfigError, UsageError
from miudo.files import refuse_inputs, sha256_file
from miudo.formats.gguf import write_gguf
from miudo.formats.model_file import ModelFile
from miudo.formats.zeros import carried, declared, sparse_settings
from miudo.meter import Meter
from miudo.records import Artefact, Record, shared_licence
from miudo.tensors import DType, Weights
from miudo.train.artefact import Opened, open_decoder, text_data
from miudo.train.progress import Progress, Silent

__all__ = ["run_quantize"]

# The record in the file names what was chosen: so many bytes more or less than in a trial file.
_RECORD_BYTES = 4096
_LEAST, _AN_INPUT = 16_384, 16
"""Tokens of a calibration: fewer an input leave GPTQ and what it propagates to chance."""


def run_quantize(job: QuantizeJob, progress: Progress | None = None) -> Shrunk:
    """Rounds a model's weights and writes one GGUF file, `job.out`.

    Raises UsageError unless `out` ends in .gguf, DataError for too little text, ConfigError for
    a size that nothing fits into or text where none is needed, CheckFailedError for a model
    that holds NaN or a file that came out larger than allowed, and what `open_model` and
    `prepare` raise.
    """
    if job.out.suffix != ".gguf":
        raise UsageError("is no GGUF file's name", where=job.out, remedy="Write --out NAME.gguf")
    refuse_inputs(job.out, job.model)
    opened = open_decoder(job.model, "model")
    batches, artefacts, parents = _calibration(job, opened, progress or Silent())
    decoder, notes = opened.decoder, tuple[str, ...]()
    with Meter() as meter:
        if job.rotation_seed is not None:
            _check_dense(opened)
            turned = rotate(decoder, job.rotation_seed)
            decoder, notes = turned.decoder, (turned.note,)
        method = _within(job, opened, parents)
        stored, report = method.store(decoder, method.calibrate(decoder, batches))
        kept = carried(opened.file.record, stored)
        lost = len(declared(opened.file.record)) - sum(map(len, kept.values()))
        if lost:
            notes = (*notes, f"{lost} sparse matrices are dense now: their type has no exact zero")
        if job.sparse:
            stored, report = without_zeros(opened.file.config, stored, report)
    settings = (
        method_to_json(method)
        | kept
        | {
            "stored_sparse": job.sparse,
            "rotation_seed": job.rotation_seed,
            "calibration_tokens": sum(ids.numel() for ids in batches),
            "calibration_length": job.calibration_length,
        }
    )
    lineage = (*opened.parents, *parents)
    record = Record(
        verb="quantize",
        name=job.out.stem,
        settings=settings,
        seed=job.rotation_seed,
        inputs=(opened.artefact, *artefacts),
        measurements=(*report_measurements((report,)), *meter.measurements()),
        parents=lineage,
        licence=shared_licence(opened.parents),
        notes=(*notes, *report.notes),
    )
    file = dataclasses.replace(opened.file, weights=stored, record=record, path=None)
    size = write_gguf(job.out, file).size_bytes
    if job.max_bytes is not None and size > job.max_bytes:
        job.out.unlink()
        raise CheckFailedError(
            f"takes {size} bytes, {job.max_bytes} are allowed",
            where=job.out,
            remedy="Allow a little more: the file's own description takes part of it",
        )
    return Shrunk(job.out, opened.file.config, record, (report,))


def _calibration(
    job: QuantizeJob, opened: Opened, progress: Progress
) -> tuple[list[Tensor], tuple[Artefact, ...], tuple[Record, ...]]:
    """Returns batches of ids [B, T] where the method wants some, what they are of, and records."""
    if not job.method.needs_calibration:
        if job.inputs:
            raise ConfigError(
                f"{job.method.name} reads no text", remedy="Leave out --data, or give a --method"
            )
        return [], (), ()
    if not job.inputs:
        raise ConfigError(
            f"{job.method.name} needs text to calibrate on", remedy="Give --data FILE"
        )
    length = min(job.calibration_length, opened.file.config.max_positions)
    with tempfile.TemporaryDirectory(prefix="miudo-") as folder:
        # All of a text is calibrated on: one document is enough then.
        pack = dataclasses.replace(job.prepare.pack, held_out=0.0)
        settings = dataclasses.replace(job.prepare, pack=pack)
        data = text_data(job.inputs, opened, Path(folder) / "data", settings, progress)
        tokens = job.calibration_tokens
        if tokens is None:
            tokens = _enough(opened.file.config)
        batches = calibration_batches(data.open_split("train"), tokens=tokens, length=length)
        artefact = Artefact("data", data.folder.name, sha256_file(data.folder / MANIFEST_FILE))
        record = Record.read(data.folder)
    return batches, (artefact,), () if record is None else (record,)


def _enough(config: ModelConfig) -> int:
    """Returns tokens that tell the inputs of the widest matrix apart."""
    read = (max(layer.d_ff, layer.n_heads * layer.v_head_dim) for layer in config.layers)
    return max(_LEAST, _AN_INPUT * max(config.d_model, *read))


def _check_dense(opened: Opened) -> None:
    """Raises ConfigError for a pruned model: rotated, its zeros are zeros no more."""
    if sparse := declared(opened.file.record):
        raise ConfigError(
            f"{len(sparse)} matrices are sparse, and a rotation fills their zeros",
            where="--rotate",
            remedy="Leave out --rotate",
        )


def _within(job: QuantizeJob, opened: Opened, texts: tuple[Record, ...]) -> Quantizer:
    """Returns the job's method, told how many bytes are left for weights where a size is set."""
    if job.max_bytes is None:
        return job.method
    if not isinstance(job.method, MixedTypes):
        raise ConfigError(
            f"{job.method.name} has one type, so that its size is what it is",
            remedy="Leave out --dtype to let types be chosen, or --max-size",
        )
    left = job.max_bytes - _description_bytes(opened, texts) - _RECORD_BYTES
    if left < 1:
        raise ConfigError(
            f"{job.max_bytes} bytes do not hold the tokenizer and the model's description",
            remedy=f"Allow more than {job.max_bytes - left} bytes",
        )
    return dataclasses.replace(job.method, max_bytes=left)


def _description_bytes(opened: Opened, texts: tuple[Record, ...]) -> int:
    """Returns what a file of this model takes beside its weights, padding included."""
    stored, _ = NearestRounding(DType.F16).store(opened.decoder)
    with tempfile.TemporaryDirectory(prefix="miudo-") as folder:
        path = Path(folder) / "trial.gguf"
        size = write_gguf(path, _trial(opened, stored, texts)).size_bytes
    return size - sum(t.dtype.size_bytes(t.shape) for t in stored.values()) + 32 * len(stored)


def _trial(opened: Opened, stored: Weights, texts: tuple[Record, ...]) -> ModelFile:
    zeros = sparse_settings(declared(opened.file.record))
    lineage = (*opened.parents, *texts)
    record = Record(verb="quantize", name="trial", settings=zeros, parents=lineage)
    return dataclasses.replace(opened.file, weights=stored, record=record, path=None)
