"""The folder of one training run: its lock, its files, and whether there is room for it.

For: one trainer a folder, and a disk that is known to be writable before hours are spent.
Not for: what is in a checkpoint (`miudo.train.checkpoint`).
Read next: `miudo.train.loop`.

    OUT/run.json          what was asked for, where the verb needs it again to go on
    OUT/run.lock          held while a trainer lives, with its pid and the boot's id
    OUT/checkpoints/      step-NNNNNNNN/, the newest `keep`
    OUT/metrics.jsonl     one line a logged step
    OUT/loss.png          drawn from metrics.jsonl at the end
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from miudo.errors import (
    CheckpointError,
    MissingError,
    ResourceError,
    TrainingError,
    UsageError,
)
from miudo.files import atomic_write, translated_disk_errors
from miudo.plain_json import read_json, write_json
from miudo.train.checkpoint import checkpoint_steps, clean

__all__ = ["ELSEWHERE", "RunFolder", "check_order", "locked_run_folder"]

ELSEWHERE = "Start a new run in another folder"
"""What to do where a run's own file is damaged."""

_RUN_FILE = "run.json"

_SPARE_BYTES = 64 << 20
"""Room left for metrics, plots and the model's folder besides checkpoints."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of a run whose lock this process holds."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints lie."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON object a line: step, tokens, loss, held_out_loss, lr, tokens_per_s."""
        return self.path / "metrics.jsonl"

    @property
    def plot(self) -> Path:
        """The loss curve."""
        return self.path / "loss.png"

    def step_to_resume(self, *, resume: bool, step: int | None = None) -> int | None:
        """Returns the step to go on from, None for a new run.

        Raises UsageError for a new run where one lies already, or a step that is not there.
        """
        steps = checkpoint_steps(self.checkpoints)
        if not resume:
            if steps:
                raise UsageError(
                    f"holds a run, saved at step {steps[-1]}",
                    where=self.path,
                    remedy="Go on with --resume, or choose another folder",
                )
            return None
        if step is not None and step not in steps:
            raise UsageError(
                f"no checkpoint of step {step}",
                where=self.checkpoints,
                remedy=f"There are {', '.join(map(str, steps)) or 'none'}",
            )
        return step if step is not None else steps[-1] if steps else None

    def check_free(self) -> None:
        """Raises UsageError where a run, a model or an adapter lies already."""
        self.step_to_resume(resume=False)
        for kind in ("model", "adapter"):
            if (self.path / kind).exists():
                raise UsageError(
                    f"holds a {kind} already",
                    where=self.path,
                    remedy=f"Choose another folder, or delete the {kind}",
                )

    def check_room(self, checkpoint_bytes: int, keep: int) -> None:
        """Raises ResourceError if the disk is read-only, or too full for `keep` checkpoints.

        One more than `keep` lies there while the newest is being written.
        """
        probe = self.path / ".write-test"
        atomic_write(probe, lambda file: file.write(b"miudo"))
        probe.unlink()
        had = sum(f.stat().st_size for f in self.checkpoints.rglob("*") if f.is_file())
        needed = (keep + 1) * checkpoint_bytes - had + _SPARE_BYTES
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise ResourceError(
                f"has {free / 1e6:,.0f} MB free, the run may need {needed / 1e6:,.0f} MB",
                where=self.path,
                remedy="Free some space, keep fewer checkpoints, or choose another folder",
            )


@contextmanager
def locked_run_folder(path: Path) -> Iterator[RunFolder]:
    """Yields `path` as a run's folder, made if need be, that no other process trains into.

    The lock is the kernel's, so that it ends with its holder, `kill -9` included. Raises
    TrainingError naming the holder, UsageError where `path` is a file.
    """
    if path.exists() and not path.is_dir():
        raise UsageError("is a file, not a folder", where=path, remedy="Name another folder")
    with translated_disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        file = (path / "run.lock").open("a+", encoding="utf-8")
    with file:
        _lock(file, path)
        folder = RunFolder(path)
        clean(folder.checkpoints)
        _clean(path)
        yield folder


def check_order(folder: RunFolder, order: Mapping[str, Any], *, resume: bool) -> None:
    """Writes what is asked for into the run's folder; where a run is resumed, compares instead.

    Raises MissingError where there is no run to resume, UsageError if it was started with another
    model, text or settings, and CheckpointError if its file is damaged.
    """
    path = folder.path / _RUN_FILE
    if not resume:
        write_json(path, order)
        return
    if not path.exists():
        raise MissingError("holds no run", where=folder.path, remedy="Start one without --resume")
    begun = read_json(path, CheckpointError, remedy=ELSEWHERE)
    if _said(begun) != _said(json.loads(json.dumps(order))):
        raise UsageError(
            "was started with another model, other text or other settings",
            where=path,
            remedy="Resume with the same command, or start a new run in another folder",
        )


def _said(value: Any) -> Any:
    """Returns `value` without what is null: a setting that an older miudo did not know yet."""
    if isinstance(value, dict):
        return {name: _said(inner) for name, inner in value.items() if inner is not None}
    return [_said(inner) for inner in value] if isinstance(value, list) else value


def _clean(path: Path) -> None:
    """Deletes what a killed run left half written beside the run's own names."""
    for name in ("data", "model", "adapter", "run.json", "loss.png", ".write-test"):
        for left in path.glob(f".{name}.{'[0-9a-f]' * 8}.tmp"):
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def _lock(file: IO[str], path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        raise TrainingError(
            f"another run trains into this folder ({file.read(200).strip()})",
            where=path,
            remedy="Wait for it, stop it, or choose another folder",
        ) from error
    file.truncate(0)
    json.dump({"pid": os.getpid(), "boot": _boot_id()}, file)
    file.flush()


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"
