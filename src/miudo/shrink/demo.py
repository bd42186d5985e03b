"""The whole way once, small: text, tokens, teacher, student, one file, engine, report.

For: `miudo demo`: a first run that shows every verb's work in minutes, on synthetic text.
Not for: good models: a few minutes of training teach forms of sentences, nothing else.
Read next: `miudo.shrink.stages`, then `miudo.shrink.demo_report`.

    OUT/text/      synthetic stories and dialogues        OUT/data/     packed tokens
    OUT/teacher/   trained from scratch                   OUT/student/  pruned, then taught by it
    OUT/twin/      the student's shape, trained alone     OUT/student.gguf   8-bit, one file
    OUT/compare.json, OUT/samples.json, OUT/report.html
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miudo.compress.jobs import PruneJob, QuantizeJob
from miudo.compress.prune.depth import DepthPruning
from miudo.compress.prune.width import WidthPruning
from miudo.compress.quantizing import run_quantize
from miudo.compress.verbs import run_prune
from miudo.data.pack import PackSettings
from miudo.data.pipeline import PrepareSettings, prepare
from miudo.data.sample import write_sample
from miudo.errors import ConfigError, DataError
from miudo.evaluate.compare import (
    CompareSettings,
    Row,
    compare,
    comparison_json,
    comparison_table,
    rows_from_json,
)
from miudo.evaluate.texts import read_texts
from miudo.formats import open_model
from miudo.plain_json import read_json, write_json
from miudo.records import Record
from miudo.report import text_table
from miudo.shrink.demo_report import write_report
from miudo.shrink.demo_samples import Sample, write_samples
from miudo.shrink.stages import DELETE, Stage, run_stages
from miudo.text.chat import DEFAULT_TEMPLATE
from miudo.train.checkpoint import checkpoint_steps
from miudo.train.pretrain import TrainJob, resume, train
from miudo.train.progress import Lines
from miudo.train.settings import Compile, FitSettings

__all__ = ["DemoResult", "DemoSettings", "run_demo"]


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """`minutes` of training in all; the rest of the way takes about one more.

    The teacher takes half of them, the student's recovery three tenths; the twin takes as
    many steps as the student, which for want of a teacher takes it less time.
    `measured_bytes` of held-out text are measured on.
    """

    minutes: float = 3.0
    seed: int = 0
    preset: str = "1m"
    corpus_bytes: int = 3_000_000
    vocab_size: int = 2048
    drop_layers: int = 1
    keep_width: float = 0.5
    batch_size: int = 4
    length: int = 256
    measured_bytes: int = 100_000

    def __post_init__(self) -> None:
        if not 0.01 <= self.minutes <= 10_000:
            raise ConfigError(f"minutes is {self.minutes}, allowed 0.01 to 10,000")


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Where things lie, and what was measured and written."""

    report: Path
    model: Path
    rows: tuple[Row, ...]
    samples: tuple[Sample, ...]
    seconds: dict[str, float]

    def text(self) -> str:
        """Returns the table, the samples and the paths, for a terminal."""
        table = comparison_table(self.rows)
        parts = [text_table(table), table.caption, "Written by the small model (8 bits):"]
        parts += [f"  {sample.prompt!r}\n    {sample.text.strip()!r}" for sample in self.samples]
        parts.append(f"report  {self.report}\nmodel   {self.model}")
        parts.append(f'Try: miudo complete {self.model} --prompt "{self.samples[0].prompt}"')
        return "\n\n".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {
            "schema": 1,
            "synthetic": True,
            "report": str(self.report),
            "model": str(self.model),
            "seconds": self.seconds,
            "comparison": comparison_json(self.rows),
            "samples": [dataclasses.asdict(sample) for sample in self.samples],
        }


def run_demo(
    out: Path, settings: DemoSettings, *, say: Callable[[str], None] = lambda line: None
) -> DemoResult:
    """Goes the whole way into `out`; stages that were done before are not done again.

    Raises UsageError if `out` holds a demo of other settings, and what the stages raise.
    """
    way = _Way(out, settings, say)
    seconds = run_stages(way.stages(), out, dataclasses.asdict(settings), say)
    rows = rows_from_json(read_json(way.comparison, remedy=DELETE))
    samples = tuple(Sample(**values) for values in read_json(way.samples, remedy=DELETE)["samples"])
    runs = {path.name: path for path in (way.teacher, way.student, way.twin)}
    report = out / "report.html"
    write_report(report, rows, samples, runs=runs, model=way.gguf)
    return DemoResult(report, way.gguf, rows, samples, seconds)


class _Way:
    """The stages, and where each puts what it makes."""

    def __init__(self, out: Path, settings: DemoSettings, say: Callable[[str], None]) -> None:
        self.settings, self.say = settings, say
        self.text = out / "text" / "sample.jsonl"
        self.data = out / "data"
        self.teacher, self.student, self.twin = (out / n for n in ("teacher", "student", "twin"))
        self.gguf = out / "student.gguf"
        self.comparison, self.samples = out / "compare.json", out / "samples.json"

    def stages(self) -> list[Stage]:
        """Returns the way in order."""
        s = self.settings
        size = f"{s.corpus_bytes / 1e6:g} MB"
        return [
            Stage("text", f"write {size} of synthetic text", self.text, self._text),
            Stage("data", "clean it, train a tokenizer, pack tokens", self.data, self._data),
            Stage("teacher", "train a teacher", self.teacher / "model", self._teacher),
            Stage("student", "prune it, let it recover", self.student / "model", self._student),
            Stage("twin", "train its twin from scratch", self.twin / "model", self._twin),
            Stage("quantize", "store the student in 8 bits", self.gguf, self._quantize),
            Stage("compare", "compare on held-out text", self.comparison, self._compare),
            Stage("samples", "let it write", self.samples, self._samples),
        ]

    def _text(self) -> None:
        self.text.parent.mkdir(parents=True, exist_ok=True)
        write_sample(self.text, seed=self.settings.seed, size_bytes=self.settings.corpus_bytes)

    def _data(self) -> None:
        settings = PrepareSettings(
            vocab_size=self.settings.vocab_size,
            pack=PackSettings(held_out=0.05, seed=self.settings.seed),
        )
        prepare([self.text], self.data, settings=settings, progress=self._indented)

    def _teacher(self) -> None:
        shape = self.settings.preset
        self._train(self.teacher, shape, self._fit(minutes=0.5 * self.settings.minutes))

    def _student(self) -> None:
        s = self.settings
        job = PruneJob(
            model=self.teacher / "model",
            inputs=(str(self.data),),
            out=self.student,
            methods=(DepthPruning(s.drop_layers), WidthPruning(s.keep_width)),
            fit=self._fit(minutes=0.3 * s.minutes),
        )
        run_prune(job, Lines(), resume=_begun(self.student))

    def _twin(self) -> None:
        student = open_model(self.student / "model")
        self._train(self.twin, student.config, self._fit(steps=_steps(student.record)))

    def _quantize(self) -> None:
        run_quantize(QuantizeJob(self.student / "model", self.gguf))

    def _compare(self) -> None:
        paths = [self.teacher / "model", self.student / "model", self.gguf, self.twin / "model"]
        texts = list(read_texts([self.data], max_bytes=self.settings.measured_bytes))
        names = ["teacher", "student", "student 8-bit", "twin from scratch"]
        rows = compare(paths, texts, CompareSettings(), names=names, progress=self._indented)
        write_json(self.comparison, comparison_json(rows))

    def _samples(self) -> None:
        made = write_samples(self.gguf, seed=self.settings.seed)
        write_json(self.samples, {"samples": [dataclasses.asdict(sample) for sample in made]})

    def _train(self, out: Path, shape: Any, fit: FitSettings) -> None:
        if _begun(out):
            resume(out, Lines())
            return
        inputs = (str(self.data),)
        train(TrainJob(inputs, out, fit, shape, chat_template=DEFAULT_TEMPLATE), Lines())

    def _fit(self, **length: Any) -> FitSettings:
        s = self.settings
        return FitSettings(
            **length,
            batch_size=s.batch_size,
            length=s.length,
            seed=s.seed,
            # A quarter of a million tokens at 1M: 4.63 nats, 5.45 at the usual rates.
            lr=1e-2,
            muon_lr=1e-2,
            # Compiling takes longer than it would save in so short a run.
            compile=Compile.OFF,
            log_every=25,
            save_every=500,
            eval_every=200,
            eval_tokens=16_384,
        )

    def _indented(self, line: str) -> None:
        self.say(f"      {line}")


def _begun(run: Path) -> bool:
    return bool(checkpoint_steps(run / "checkpoints"))


def _steps(record: Record | None) -> int:
    """Returns how many steps the recovery took."""
    found = [m.value for m in record.measurements if m.name == "steps"] if record else []
    if not found:
        raise DataError("the student's record names no steps", remedy="Delete the demo's folder")
    return int(found[0])
