"""Checkpoints: whole or absent, every byte checked, the newest never deleted."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from miudo.errors import CheckpointError, ResourceError, TrainingError
from miudo.train.checkpoint import (
    Checkpoint,
    checkpoint_steps,
    clean,
    load_checkpoint,
    prune,
    save_checkpoint,
    step_folder,
)

FILES = ("weights.safetensors", "optimizer.safetensors", "random.safetensors", "state.json")


def checkpoint(value: float = 1.0) -> Checkpoint:
    return Checkpoint(
        weights={"a": torch.full((4, 4), value)},
        optimizer={"adamw/a/exp_avg": torch.full((4, 4), value)},
        random={"torch": torch.arange(16, dtype=torch.uint8)},
        state={"counters": {"step": 1}},
    )


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 7, checkpoint(2.5))
    found = load_checkpoint(tmp_path, 7)
    assert torch.equal(found.weights["a"], torch.full((4, 4), 2.5))
    assert torch.equal(found.random["torch"], torch.arange(16, dtype=torch.uint8))
    assert found.state["counters"] == {"step": 1}
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def flip_first(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def flip_last(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 0x80])


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def zero_tail(data: bytes) -> bytes:
    return data[:-8] + bytes(8)


@pytest.mark.parametrize("damage", [flip_first, flip_last, cut, zero_tail])
@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_damage_anywhere_is_refused_by_name(tmp_path: Path, name: str, damage: Any) -> None:
    save_checkpoint(tmp_path, 1, checkpoint())
    save_checkpoint(tmp_path, 2, checkpoint())
    path = step_folder(tmp_path, 2) / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path, 2)
    assert name in str(caught.value)
    assert "--from-step 1" in str(caught.value)
    load_checkpoint(tmp_path, 1)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    save_checkpoint(tmp_path, 1, checkpoint())
    (step_folder(tmp_path, 1) / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: is missing.*no earlier one"):
        load_checkpoint(tmp_path, 1)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, checkpoint())
    path = step_folder(tmp_path, 1) / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 2}))
    with pytest.raises(CheckpointError, match="has schema 2, this miudo reads 1"):
        load_checkpoint(tmp_path, 1)


def test_a_file_of_another_kind_with_a_right_hash_is_refused(tmp_path: Path) -> None:
    import hashlib

    save_checkpoint(tmp_path, 1, checkpoint())
    at = step_folder(tmp_path, 1)
    (at / "weights.safetensors").write_bytes(b"\x80\x04pickle")
    manifest = json.loads((at / "manifest.json").read_text())
    manifest["sha256"]["weights.safetensors"] = hashlib.sha256(b"\x80\x04pickle").hexdigest()
    (at / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="is not safetensors"):
        load_checkpoint(tmp_path, 1)


@pytest.mark.parametrize("kind", ["weights", "optimizer"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_never_saved(tmp_path: Path, kind: str, value: float) -> None:
    bad = checkpoint()
    next(iter(getattr(bad, kind).values()))[1, 1] = value
    with pytest.raises(TrainingError, match="holds NaN or infinity and was not saved"):
        save_checkpoint(tmp_path, 1, bad)
    assert checkpoint_steps(tmp_path) == []


def test_the_newest_stay(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        save_checkpoint(tmp_path, step, checkpoint())
    prune(tmp_path, keep=2, newest=10)
    assert checkpoint_steps(tmp_path) == [3, 10]
    prune(tmp_path, keep=1, newest=10)
    assert checkpoint_steps(tmp_path) == [10]


def test_what_lies_ahead_of_the_run_does_not_push_out_the_newest(tmp_path: Path) -> None:
    for step in (4, 5, 90, 91):  # 90 and 91 are damaged, say; the run went back to 4
        save_checkpoint(tmp_path, step, checkpoint())
    prune(tmp_path, keep=1, newest=5)
    assert checkpoint_steps(tmp_path) == [5, 90, 91]


def test_a_crash_while_deleting_leaves_no_half_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, checkpoint())

    def crash(path: Path, ignore_errors: bool = False) -> None:
        if path.exists():
            (path / "state.json").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", crash)
        with pytest.raises(KeyboardInterrupt):
            prune(tmp_path, keep=1, newest=2)
    assert checkpoint_steps(tmp_path) == [2]
    load_checkpoint(tmp_path, 2)
    clean(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000002"]


def test_a_full_disk_leaves_the_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, 1, checkpoint())

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ResourceError, match="cannot be written \\(No space left"):
            save_checkpoint(tmp_path, 2, checkpoint())
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    load_checkpoint(tmp_path, 1)


def test_no_room_for_the_tensors_leaves_the_old_ones(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, checkpoint())
    big = replace(checkpoint(), weights={"a": torch.zeros(64, 64)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        with pytest.raises(ResourceError, match=r"weights.safetensors: cannot be written"):
            save_checkpoint(tmp_path, 2, big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    load_checkpoint(tmp_path, 1)
