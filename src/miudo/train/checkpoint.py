"""A run's saved state: one folder a step, whole or absent, every byte hashed.

For: `step-NNNNNNNN/` with weights, optimiser moments and state, and a manifest of their SHA-256.
Nothing is ever unpickled.
Not for: models to be used (`miudo.formats.hf`) or when to save (`miudo.train.loop`).
Read next: `miudo.train.run_folder`.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from miudo.errors import CheckpointError, ResourceError, TrainingError
from miudo.files import atomic_folder, open_regular, sha256_file, sync_folder
from miudo.plain_json import read_json, write_json
from miudo.train.settings import LOWER_RATE

__all__ = [
    "MANIFEST",
    "SCHEMA",
    "Checkpoint",
    "checkpoint_steps",
    "clean",
    "load_checkpoint",
    "prune",
    "save_checkpoint",
    "step_folder",
]

SCHEMA = 1
MANIFEST = "manifest.json"
_TENSOR_FILES = ("weights", "optimizer", "random")
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that the next step hangs on.

    `state` holds plain JSON values: step, counters, settings, plan, hashes of data and model.
    """

    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    random: Mapping[str, Tensor]
    state: Mapping[str, Any]


def step_folder(folder: Path, step: int) -> Path:
    """Returns where the checkpoint of `step` lies."""
    return folder / f"step-{step:08d}"


def checkpoint_steps(folder: Path) -> list[int]:
    """Returns the steps whose checkpoints stand in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    names = (_NAME.fullmatch(path.name) for path in folder.iterdir())
    return sorted(int(match[1]) for match in names if match)


def save_checkpoint(folder: Path, step: int, checkpoint: Checkpoint) -> None:
    """Writes the checkpoint of `step`; after a crash it is there whole or not at all.

    Raises TrainingError for values that are not finite (nothing is written then),
    ResourceError when the disk is full.
    """
    for kind in ("weights", "optimizer"):
        for name, value in getattr(checkpoint, kind).items():
            if not bool(torch.isfinite(value).all()):
                raise TrainingError(
                    f"{name} holds NaN or infinity and was not saved",
                    where=f"step {step}",
                    remedy=LOWER_RATE,
                )
    with atomic_folder(step_folder(folder, step)) as temporary:
        for kind in _TENSOR_FILES:
            _write_tensors(temporary / f"{kind}.safetensors", getattr(checkpoint, kind))
        write_json(temporary / "state.json", {"schema": SCHEMA, **checkpoint.state})
        hashes = {path.name: sha256_file(path) for path in sorted(temporary.iterdir())}
        # Last: a folder without it is no checkpoint, whatever else it holds.
        write_json(temporary / MANIFEST, {"schema": SCHEMA, "sha256": hashes})


def load_checkpoint(folder: Path, step: int) -> Checkpoint:
    """Returns the checkpoint of `step`, every byte of it checked against its manifest.

    Raises CheckpointError naming the file that is damaged and the step to go back to: an
    older state is never taken silently.
    """
    at = step_folder(folder, step)
    earlier = [s for s in checkpoint_steps(folder) if s < step]
    remedy = (
        f"Resume from step {earlier[-1]} with --from-step {earlier[-1]}"
        if earlier
        else "There is no earlier one: start the run again in another folder"
    )
    manifest = _json(at / MANIFEST, remedy)
    hashes = manifest.get("sha256")
    wanted = {f"{kind}.safetensors" for kind in _TENSOR_FILES} | {"state.json"}
    if not isinstance(hashes, dict) or set(hashes) != wanted:
        raise CheckpointError("does not name all files", where=at / MANIFEST, remedy=remedy)
    files = {name: _checked(at / name, hashes[name], remedy) for name in sorted(wanted)}
    state = json.loads(files.pop("state.json"))
    try:
        found = {kind: load(files[f"{kind}.safetensors"]) for kind in _TENSOR_FILES}
    except SafetensorError as error:
        raise CheckpointError(f"is not safetensors ({error})", where=at, remedy=remedy) from error
    return Checkpoint(state=state, **found)


def prune(folder: Path, keep: int, newest: int) -> None:
    """Deletes checkpoints older than the `keep` up to step `newest`, just saved and whole.

    Later ones, left by a run that went back to an earlier step, neither count nor go.
    """
    for step in [s for s in checkpoint_steps(folder) if s <= newest][: -max(1, keep)]:
        old = step_folder(folder, step)
        # Out of sight first: a crash while deleting must not leave half a checkpoint.
        gone = old.with_name(f".{old.name}.deleted.tmp")
        shutil.rmtree(gone, ignore_errors=True)
        old.rename(gone)
        sync_folder(folder)
        shutil.rmtree(gone, ignore_errors=True)


def clean(folder: Path) -> None:
    """Deletes what a crash left half written or half deleted. Call with the run's lock."""
    for path in folder.glob(".step-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    try:
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, path)
    except SafetensorError as error:  # its name for every error of the system
        raise ResourceError(
            f"cannot be written ({error})",
            where=path,
            remedy="Free some space or choose another folder; the checkpoint before it holds",
        ) from error


def _json(path: Path, remedy: str) -> dict[str, Any]:
    if not path.exists():
        raise CheckpointError("is missing", where=path, remedy=remedy)
    values = read_json(path, CheckpointError, remedy=remedy)
    if values.get("schema") != SCHEMA:
        raise CheckpointError(
            f"has schema {values.get('schema')!r}, this miudo reads {SCHEMA}",
            where=path,
            remedy="Use the miudo that wrote it, or a newer one",
        )
    return values


def _checked(path: Path, sha256: object, remedy: str) -> bytes:
    if not path.exists():
        raise CheckpointError("is missing", where=path, remedy=remedy)
    with open_regular(path, CheckpointError) as file:
        data = file.read()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise CheckpointError(
            "is damaged: its SHA-256 is not the manifest's", where=path, remedy=remedy
        )
    return data
