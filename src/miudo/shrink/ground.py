"""The teacher, its text and this machine: opened once, measured once.

For: everything that candidates are held against.
Not for: candidates (`miudo.shrink.forecast`).
Read next: `miudo.shrink.forecast`.

Held-out text is parted: pieces at even places choose between candidates, those at odd places
are measured on for the report. What chose must not be what proves.

Shapes: B batch, T positions.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
from torch import Tensor

from miudo.compress.distill.loss import DistillLoss
from miudo.compress.distill.method import HeldText
from miudo.compress.method import check_finite
from miudo.compress.prune.recover import calibration_batches
from miudo.compress.quantize.nearest import NearestRounding
from miudo.data.packed import MANIFEST_FILE, DataSet, PackedTokens
from miudo.decoder.decoder import Decoder
from miudo.engine.probe import measure_peaks
from miudo.errors import DataError
from miudo.evaluate.bench import BenchSettings
from miudo.evaluate.compare import CompareSettings
from miudo.evaluate.roofline import Numbers, bounds, step_work
from miudo.files import sha256_file
from miudo.formats.gguf import write_gguf
from miudo.formats.zeros import declared
from miudo.meter import Meter
from miudo.records import Artefact, Measurement, Record, shared_licence
from miudo.shrink.jobs import ShrinkJob
from miudo.shrink.measure import Instrument, Measured, open_instrument
from miudo.shrink.selfcheck import Checks
from miudo.shrink.stored import model_file
from miudo.tensors import Weights
from miudo.train.artefact import Opened, open_decoder, text_data
from miudo.train.estimate import activations, memory_parts
from miudo.train.evaluation import held_out_loss
from miudo.train.loss import cross_entropy
from miudo.train.plan import make_plan
from miudo.train.progress import Progress
from miudo.train.speed import run_conditions
from miudo.train.stepper import Stepper
from miudo.train.timing import trial_step_s

__all__ = ["Baseline", "Ground", "measure_baseline", "open_ground"]

_PIECE = 2048
_FEWEST_PIECES = 8
_BUSY = 0.25
"""Cores that others use, from which on a speed is not this machine's."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What is open while a search runs. `rows` choose; `instrument` measures on other text.

    `batches` are ids [B, T] for calibration.
    """

    job: ShrinkJob
    teacher: Opened
    data: DataSet
    train: PackedTokens
    rows: HeldText
    batches: list[Tensor]
    instrument: Instrument
    checks: Checks
    progress: Progress

    @property
    def sparse(self) -> bool:
        """Whether the teacher's record names zeros: they are kept by whatever is made of it."""
        return bool(declared(self.teacher.file.record))

    def record(
        self,
        name: str,
        settings: Mapping[str, Any],
        measurements: Sequence[Measurement] = (),
        notes: tuple[str, ...] = (),
    ) -> Record:
        """Returns the record of a file that comes of this search."""
        text = Record.read(self.data.folder)
        manifest = sha256_file(self.data.folder / MANIFEST_FILE)
        budget, search = self.job.budget, self.job.settings
        return Record(
            verb="shrink",
            name=name,
            settings={
                **settings,
                "budget": dataclasses.asdict(budget),
                "search": dataclasses.asdict(search),
            },
            seed=search.seed,
            inputs=(
                self.teacher.artefact,
                Artefact("data", self.data.folder.name, manifest),
            ),
            measurements=tuple(measurements),
            parents=(*self.teacher.parents, *(() if text is None else (text,))),
            licence=shared_licence(self.teacher.parents),
            notes=notes,
        )

    def loss(self, decoder: Decoder) -> float:
        """Returns nats a token on the text that chooses."""
        return held_out_loss(decoder, self.rows, self.job.settings.fit(1, 0))


@dataclass(frozen=True, slots=True)
class Baseline:
    """The teacher and the machine in numbers, as JSON keeps them.

    `loss` is the teacher's on the text that chooses, `counts_loss` that of word counts alone.
    `extra_bytes` of a file are no tensors. `slowness` is a token's time over the time in which
    its bytes and products could just be done. `full_step_s` is a step in which a student of the
    teacher's shape learns from it, `plain_step_s` from text alone. `memory` is of that step:
    (part, bytes, basis). Measuring the 8-bit file took `measure_s`, all of this `elapsed_s`.
    """

    teacher: Measured
    eight_bit: Measured
    loss: float
    counts_loss: float
    extra_bytes: int
    slowness: float
    read_bytes_per_s: float
    int8_ops_per_s: float
    float_ops_per_s: float
    full_step_s: float
    plain_step_s: float
    memory: tuple[tuple[str, int, str], ...]
    free_bytes: int
    measure_s: float
    elapsed_s: float
    warnings: tuple[str, ...]

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Baseline:
        """Returns the baseline whose `dataclasses.asdict` is `values`."""
        given = dict(values)
        for name in ("teacher", "eight_bit"):
            given[name] = Measured.from_json(given[name])
        given["memory"] = tuple(tuple(part) for part in given["memory"])
        given["warnings"] = tuple(given["warnings"])
        return cls(**given)


def open_ground(job: ShrinkJob, folder: Path, progress: Progress) -> Ground:
    """Opens teacher and text, packing the text into `folder`/data if need be.

    Raises DataError for too little text, ConfigError for text of another tokenizer,
    CheckFailedError for a teacher that holds NaN, and what `open_model` and `prepare` raise.
    """
    settings = job.settings
    teacher = open_decoder(job.teacher, "teacher")
    check_finite(teacher.decoder)
    checks = Checks()
    data = text_data(
        job.inputs,
        teacher,
        folder / "data",
        job.prepare,
        progress,
        resume=(folder / "data").is_dir(),
    )
    checks.passed("the text's tokenizer is the teacher's")
    length = min(settings.length, teacher.file.config.max_positions)
    if length < settings.length:
        raise DataError(
            f"length is {settings.length}, the teacher has {length} positions",
            remedy=f"Give --length {length} or less",
        )
    train = data.open_split("train")
    blocks = train.n_blocks(length)
    if blocks < settings.batch_size:
        raise DataError(
            f"the text has {blocks} blocks of {length} tokens to learn from, one batch is "
            f"{settings.batch_size}",
            where=", ".join(job.inputs),
            remedy="Give more text, or a smaller --batch-size or --length",
        )
    rows, documents = _part(data, length, settings.selection_tokens, settings.measured_bytes)
    batches = calibration_batches(train, tokens=settings.calibration_tokens, length=length)
    checks.holds("calibration saw data", sum(ids.numel() for ids in batches) > 0)
    instrument = open_instrument(
        job.teacher,
        documents,
        CompareSettings(threads=settings.threads, bench=BenchSettings(repeats=settings.repeats)),
        tasks=settings.tasks,
        files=settings.task_data,
        limit=settings.task_limit,
        seed=settings.seed,
    )
    return Ground(job, teacher, data, train, rows, batches, instrument, checks, progress)


def measure_baseline(ground: Ground) -> Baseline:
    """Measures teacher and machine. Nothing of it stays on disk."""
    teacher, settings = ground.teacher, ground.job.settings
    started = time.perf_counter()
    free = psutil.virtual_memory().available
    ground.progress.note("the teacher on the engine")
    own = ground.instrument.measure("teacher", ground.job.teacher)
    stored, _ = NearestRounding().store(teacher.decoder)
    with tempfile.TemporaryDirectory(prefix="miudo-") as folder:
        path = Path(folder) / "teacher-q8_0.gguf"
        record = ground.record("teacher", {})
        model = model_file(teacher, teacher.decoder.config, stored, record)
        written = write_gguf(path, model)
        tensors = sum(t.dtype.size_bytes(t.shape) for t in stored.values())
        extra = written.size_bytes - tensors
        begun = time.perf_counter()
        eight_bit = ground.instrument.measure("teacher, nearest Q8_0", path)
        measure_s = time.perf_counter() - begun
    ground.progress.note("this machine: reading, products, a step of learning")
    peaks = measure_peaks(eight_bit.row.bench.threads, tensors)
    least = max(bounds(_token(teacher.decoder, stored, own), peaks))
    slowness = 1.0 / eight_bit.row.bench.speed.new_tokens_per_s / least
    with Meter() as meter:
        full, plain, memory = _learning(ground)
    loss, counts = ground.loss(teacher.decoder), _counts_loss(ground)
    warnings = []
    if loss >= counts:
        warnings.append(
            f"the teacher's loss on this text is {loss:.2f} nats a token, counting words alone "
            f"gives {counts:.2f}: the text may be of another language or kind than the teacher's"
        )
    if (meter.foreign_cores or 0.0) > _BUSY:
        warnings.append(
            f"other programs kept {meter.foreign_cores:.1f} cores busy meanwhile: speeds and times "
            "are those of a busy machine"
        )
    blocks = ground.rows.n_blocks(settings.length)
    if blocks * settings.length < settings.selection_tokens:
        warnings.append(f"only {blocks * settings.length:,} held-out tokens choose")
    return Baseline(
        teacher=own,
        eight_bit=eight_bit,
        loss=loss,
        counts_loss=counts,
        extra_bytes=extra,
        slowness=slowness,
        read_bytes_per_s=peaks.read_bytes_per_s,
        int8_ops_per_s=peaks.int8_ops_per_s,
        float_ops_per_s=peaks.float_ops_per_s,
        full_step_s=full,
        plain_step_s=plain,
        memory=memory,
        free_bytes=free,
        measure_s=measure_s,
        elapsed_s=time.perf_counter() - started,
        warnings=tuple(warnings),
    )


def _token(decoder: Decoder, stored: Weights, measured: Measured) -> Any:
    speed = measured.row.bench.speed
    held = speed.prompt_tokens + speed.new_tokens // 2
    numbers = Numbers.of(stored, int8=True, cache="f16")
    return step_work(decoder.config, numbers, [(held, 1)])


def _learning(ground: Ground) -> tuple[float, float, tuple[tuple[str, int, str], ...]]:
    """Returns seconds of a step with and without the teacher, and what it takes of memory."""
    settings = ground.job.settings
    fit = settings.fit(1, settings.seed)
    decoder = Decoder.from_weights(
        ground.teacher.decoder.config, ground.teacher.decoder.to_weights()
    )
    teaching = DistillLoss([ground.teacher.decoder], decoder.config, settings.loss)
    seconds = []
    process = psutil.Process()
    with run_conditions(decoder, fit):
        decoder.train()
        for loss in (teaching, cross_entropy):
            stepper = Stepper(decoder, ground.train, fit, loss)
            seconds.append(trial_step_s(stepper, compiled=False))
        plan = make_plan(fit, steps=1, compiled=False, device=stepper.device.type)
        kept = activations(decoder, fit, plan, segments=False)
        held = sum(p.numel() * p.element_size() for p in decoder.parameters())
        idle = max(0, process.memory_info().rss - held)
        parts = memory_parts(stepper, kept, plan.precision, idle_bytes=idle)
    return seconds[0], seconds[1], tuple((p.name, p.size_bytes, p.basis) for p in parts)


def _counts_loss(ground: Ground) -> float:
    """Returns the loss of a model that knows how often each word comes, and nothing else."""
    seen = ground.train.ids(0, min(ground.train.n_tokens, 1 << 20))
    size = ground.teacher.file.config.vocab_size
    counts = np.bincount(seen, minlength=size) + 1.0
    shares = np.log(counts / counts.sum())
    return -float(shares[ground.rows.rows[:, 1:]].mean())


def _part(
    data: DataSet, length: int, tokens: int, measured_bytes: int
) -> tuple[HeldText, list[str]]:
    """Returns rows to choose by and documents to measure on, of different pieces."""
    held_out = data.open_split("held_out")
    pieces = _pieces(held_out.ids(0, held_out.n_tokens), data.end_id)
    chooses = np.concatenate([np.zeros(0, np.int32), *pieces[::2]])
    rows = (len(chooses) - 1) // length
    if len(pieces) < 2 or rows < 1:
        raise DataError(
            f"{held_out.n_tokens:,} tokens were held out, too few to choose by and to measure on: "
            f"one row takes {length}",
            where=data.folder,
            remedy="Give more text, hold out more of it (--set prepare.pack.held_out=0.1), or "
            "a smaller --length",
        )
    wanted = max(1, min(rows, -(-tokens // length)))
    starts = [i * rows // wanted * length for i in range(wanted)]
    blocks = np.stack([chooses[start : start + length + 1] for start in starts])
    tokenizer = data.tokenizer()
    documents, left = [], measured_bytes
    for piece in pieces[1::2]:
        text = tokenizer.decode([i for i in piece.tolist() if i != data.end_id])
        content = text.encode()[: max(0, left)]
        left -= len(content)
        if content:
            documents.append(content.decode(errors="ignore"))
    if not any(documents):
        raise DataError("the held-out text to measure on is empty", where=data.folder)
    return HeldText(blocks), documents


def _pieces(ids: npt.NDArray[np.int32], end_id: int) -> list[npt.NDArray[np.int32]]:
    """Returns documents, long ones and too few ones cut."""
    size = max(2, min(_PIECE, math.ceil(len(ids) / _FEWEST_PIECES)))
    ends = np.flatnonzero(ids == end_id) + 1
    found = []
    for document in np.split(ids, ends):
        found += [document[i : i + size] for i in range(0, len(document), size)]
    return [piece for piece in found if len(piece) > 1]
