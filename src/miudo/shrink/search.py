"""From a teacher, text and a budget to one file and a report: the whole search, in stages.

For: `miudo shrink`. Stopped at any point, the same call goes on from what stands in OUT.
Not for: the parts, each in its own module.
Read next: `miudo.shrink.ground`, `forecast`, `scoring`, `controls`, `result`, in that order.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from miudo.data.packed import MANIFEST_FILE
from miudo.decoder.decoder import Decoder
from miudo.errors import CheckFailedError, UsageError
from miudo.files import atomic_write, refuse_inputs, sha256_file
from miudo.formats.blocks import to_f32
from miudo.formats.zeros import sparse_settings
from miudo.meter import read_counters
from miudo.plain_json import read_json, write_json
from miudo.records import Measurement, Record
from miudo.shrink.controls import Control, controls_of
from miudo.shrink.forecast import Forecast, forecast
from miudo.shrink.ground import Baseline, Ground, measure_baseline, open_ground
from miudo.shrink.jobs import ShrinkJob
from miudo.shrink.making import Rounded, Trunk, make_trunk, round_trunk
from miudo.shrink.measure import Measured
from miudo.shrink.refining import refine
from miudo.shrink.report import write_report
from miudo.shrink.result import Outcome, Row, ShrinkResult, file_rows, outcome_of
from miudo.shrink.scoring import Scored, run_rounds, trunk_folder
from miudo.shrink.stages import DELETE, Stage, run_stages
from miudo.shrink.stored import write_candidate
from miudo.tensors import parameter_count
from miudo.train.progress import Progress, Silent
from miudo.train.run_folder import locked_run_folder

__all__ = ["check_energy", "run_shrink"]


def run_shrink(job: ShrinkJob, progress: Progress | None = None) -> ShrinkResult:
    """Searches, writes OUT/model.gguf and the report, and returns what came out.

    Raises CheckFailedError where the budget cannot be met (the report is there then, the model
    is not) or a self-check fails, UsageError where OUT holds a search of other settings or an
    energy is asked for that cannot be measured, and what opening and training raise.
    """
    progress = progress or Silent()
    check_energy(job)
    refuse_inputs(job.out / "model.gguf", job.teacher)
    refuse_inputs(job.out / "work", job.teacher)
    with locked_run_folder(job.out) as folder:
        ground = open_ground(job, job.out, progress)
        if not (job.out / "forecast.json").exists():
            whole = 4 * parameter_count(ground.teacher.decoder.config)
            folder.check_room(whole, job.settings.trunks + job.settings.measured)
        way = _Way(ground)
        settings = {**job.to_json(), "teacher": ground.teacher.artefact.sha256, "text": way.text}
        run_stages(way.stages(), job.out, settings, progress.note)
        result = way.result()
    if result.outcome.shortfalls:
        raise CheckFailedError(result.unmet(), where="budget", remedy=result.would_meet())
    return result


def check_energy(job: ShrinkJob) -> None:
    """Raises UsageError for a limit on energy where no counter can be read."""
    if job.budget.max_energy_j is not None and not read_counters():
        raise UsageError(
            "no energy counter can be read here, and an estimate is no limit",
            where="--energy",
            remedy="Leave it out, or let this user read intel-rapl under /sys/class/powercap",
        )


class _Way:
    """The stages, and what each finds on disk of those before it."""

    def __init__(self, ground: Ground) -> None:
        self.ground, self.out = ground, ground.job.out
        self.work = self.out / "work"
        self.model = self.out / "model.gguf"
        self.text = sha256_file(ground.data.folder / MANIFEST_FILE)
        self.say: Callable[[str], None] = ground.progress.note

    def stages(self) -> list[Stage]:
        """Returns the way in order."""
        steps: list[tuple[str, str, Callable[[], dict[str, Any]]]] = [
            ("baseline", "measure the teacher and this machine", self._baseline),
            ("forecast", "predict every candidate", self._forecast),
            ("rounds", "teach the most promising, more and more of fewer", self._rounds),
            ("measured", "measure the best as files on the engine", self._measured),
            ("controls", "make the controls of the chosen one", self._controls),
        ]
        found = [
            Stage(name, title, self.out / f"{name}.json", self._kept(name, make))
            for name, title, make in steps
        ]
        found.append(Stage("model", "write the model", self.out / "outcome.json", self._model))
        found.append(Stage("report", "write the report", self.out / "report.html", self._report))
        return found

    def result(self) -> ShrinkResult:
        """Returns what stands in OUT."""
        return ShrinkResult(
            out=self.out,
            job=self.ground.job,
            baseline=self.baseline(),
            forecast=self.forecast(),
            scored=self.scored(),
            rows=self.rows(),
            notes=tuple(self._read("controls")["notes"]),
            checks=self.checks(),
            outcome=Outcome.from_json(read_json(self.out / "outcome.json", remedy=DELETE)),
            seconds=read_json(self.out / "stages.json", remedy=DELETE)["seconds"],
            teacher=self.ground.teacher.file.record,
            unique_tokens=self.ground.data.tokens("train"),
        )

    def baseline(self) -> Baseline:
        """Returns the first stage's result."""
        return Baseline.from_json(self._read("baseline")["baseline"])

    def forecast(self) -> Forecast:
        """Returns the second stage's."""
        return Forecast.from_json(self._read("forecast"))

    def scored(self) -> list[Scored]:
        """Returns the third stage's."""
        return [Scored.from_json(values) for values in self._read("rounds")["scored"]]

    def rows(self) -> list[Row]:
        """Returns all that was measured on the engine: teacher, candidates, controls."""
        values = [*self._read("measured")["rows"], *self._read("controls")["rows"]]
        baseline = self.baseline()
        return [
            Row.teacher("teacher", baseline.teacher),
            Row.teacher("teacher, nearest Q8_0", baseline.eight_bit),
            *(Row.from_json(row) for row in values),
        ]

    def checks(self) -> dict[str, int]:
        """Returns the self-checks of all sittings."""
        found: dict[str, int] = {}
        for name in ("baseline", "forecast", "rounds", "measured", "controls", "outcome"):
            path = self.out / f"{name}.json"
            if path.exists():
                for check, times in read_json(path, remedy=DELETE)["checks"].items():
                    found[check] = found.get(check, 0) + times
        return found

    def _read(self, name: str) -> dict[str, Any]:
        return read_json(self.out / f"{name}.json", remedy=DELETE)

    def _kept(self, name: str, make: Callable[[], dict[str, Any]]) -> Callable[[], None]:
        """Returns the stage that writes what `make` gives, and the checks that it made."""

        def run() -> None:
            values = make()
            checks, self.ground.checks.counts = self.ground.checks.counts, {}
            write_json(self.out / f"{name}.json", {"schema": 1, **values, "checks": checks})

        return run

    def _baseline(self) -> dict[str, Any]:
        found = measure_baseline(self.ground)
        for warning in found.warnings:
            self.say(f"warning: {warning}")
        return {"baseline": dataclasses.asdict(found)}

    def _forecast(self) -> dict[str, Any]:
        before = _fingerprint(self.ground.teacher.decoder)
        found = forecast(self.ground, self.baseline())
        after = _fingerprint(self.ground.teacher.decoder)
        self.ground.checks.holds("the teacher is as it was", before == after)
        return found.to_json()

    def _rounds(self) -> dict[str, Any]:
        before = _fingerprint(self.ground.teacher.decoder)
        given = self.ground, self.baseline(), self.forecast()
        found = run_rounds(*given, self.work)
        found += refine(*given, found, self.work)
        after = _fingerprint(self.ground.teacher.decoder)
        self.ground.checks.holds("the teacher is as it was", before == after)
        return {"scored": [scored.to_json() for scored in found]}

    def _measured(self) -> dict[str, Any]:
        baseline, job = self.baseline(), self.ground.job
        chosen = file_rows(self.scored(), job.budget, job.settings, baseline.loss)
        rows = []
        for number, scored in enumerate(chosen, start=1):
            self.say(f"  file {number} of {len(chosen)}: {scored.candidate.name}")
            rows.append(self._candidate(scored).to_json())
        return {"rows": rows}

    def _controls(self) -> dict[str, Any]:
        measured = [Row.from_json(row) for row in self._read("measured")["rows"]]
        outcome = outcome_of(measured, self.ground.job, self.baseline().teacher)
        scored = self._scored_of(outcome.chosen)
        controls, notes = controls_of(self.ground, scored)
        rows = [self._control(control, scored).to_json() for control in controls]
        return {"rows": rows, "notes": notes}

    def _model(self) -> None:
        """Writes the chosen model under its name if the budget is met, and how it stands."""
        measured = [Row.from_json(row) for row in self._read("measured")["rows"]]
        outcome = outcome_of(measured, self.ground.job, self.baseline().teacher)
        if not outcome.shortfalls:
            # The very file that was measured: what proves must be what is used.
            content = (self.work / "files" / f"{outcome.chosen}.gguf").read_bytes()
            atomic_write(self.model, lambda file: file.write(content))
            size = self.model.stat().st_size
            limit = self.ground.job.budget.max_size_bytes
            self.ground.checks.holds(
                "the chosen file keeps --max-size",
                limit is None or size <= limit,
                f"{size:,} bytes",
            )
        values = {**outcome.to_json(), "checks": self.ground.checks.counts}
        write_json(self.out / "outcome.json", values)

    def _report(self) -> None:
        write_report(self.result())

    def _candidate(self, scored: Scored) -> Row:
        folder = trunk_folder(self.work, scored.candidate, scored.round)
        candidate, seed = scored.candidate, self.ground.job.settings.seed
        share = scored.lesson_steps
        trunk = make_trunk(self.ground, candidate.trunk, folder, share, seed=seed)
        made = round_trunk(self.ground, candidate.rounding, trunk, folder, share, seed=seed)
        return Row.candidate(scored, trunk, self._file(candidate.name, scored, trunk, made))

    def _control(self, control: Control, scored: Scored) -> Row:
        self.say(f"  control: {control.kind}, seed {control.seed}")
        trunk, made = control.make(self.ground, self.work)
        measured = self._file(f"control_{control.name}", scored, trunk, made)
        tokens, seconds = trunk.tokens + made.tokens, trunk.seconds + made.seconds
        return Row.control(control.kind, control.seed, scored, tokens, seconds, measured)

    def _scored_of(self, name: str) -> Scored:
        """Returns a candidate's last score."""
        return [s for s in self.scored() if s.candidate.name == name][-1]

    def _file(self, name: str, scored: Scored, trunk: Trunk, made: Rounded) -> Measured:
        """Returns the figures of a candidate's or control's file; measured before: as they were."""
        path = self.work / "files" / f"{name}.gguf"
        kept = path.with_suffix(".json")
        if kept.exists():
            return Measured.from_json(read_json(kept, remedy=DELETE)["measured"])
        path.parent.mkdir(parents=True, exist_ok=True)
        record = self._record(name, scored, trunk, made)
        stored = made.weights, made.report
        write_candidate(
            path,
            self.ground.teacher,
            trunk.decoder,
            stored,
            record,
            self.ground.checks,
            masks=trunk.masks(),
        )
        measured = self.ground.instrument.measure(name, path)
        write_json(kept, {"schema": 1, "measured": dataclasses.asdict(measured)})
        return measured

    def _record(self, name: str, scored: Scored, trunk: Trunk, made: Rounded) -> Record:
        data = self.ground.data
        tokens, seconds = trunk.tokens + made.tokens, trunk.seconds + made.seconds
        found = [
            Measurement("training_tokens", tokens, "1", "counted"),
            Measurement("epochs", tokens / max(1, data.tokens("train")), "1", "counted"),
            Measurement("training_time", seconds, "s", "monotonic clock, all sittings"),
        ]
        masks = trunk.masks()
        # As the file has them: rounding makes more.
        zeros = {
            matrix: int(np.sum(to_f32(made.weights[matrix]) == 0))
            for matrix in (masks.live if masks is not None else ())
        }
        settings = {
            "candidate": scored.candidate.to_json(),
            "steps": scored.steps,
            **sparse_settings(zeros),
        }
        return self.ground.record(name, settings, found, (*trunk.notes, *made.report.notes))


def _fingerprint(decoder: Decoder) -> str:
    digest = hashlib.sha256()
    for name, value in decoder.state_dict().items():
        digest.update(name.encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()
