"""The lock, room on the disk, signals, and dying without warning."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from miudo.errors import ResourceError, TrainingError, UsageError
from miudo.train.loop import fit
from miudo.train.loss import cross_entropy
from miudo.train.run_folder import locked_run_folder
from miudo.train.signals import StoppedError, stop_request

HOLDER = """
import sys, time
from pathlib import Path
from miudo.train.run_folder import locked_run_folder
with locked_run_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_trainer_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    out = tmp_path / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(out)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        refused = pytest.raises(TrainingError, match=rf'"pid": {holder.pid}')
        with refused as caught, locked_run_folder(out):
            pass
        assert "another run trains into this folder" in str(caught.value)
    finally:
        holder.kill()
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()
    with locked_run_folder(out):  # its lock died with it
        held = json.loads((out / "run.lock").read_text())
    assert held["pid"] == os.getpid()
    assert held["boot"]


def test_the_lock_ends_with_the_run(small: Any, tmp_path: Path) -> None:
    small.begin(tmp_path / "run")
    small.go_on(tmp_path / "run")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("text")
    refused = pytest.raises(UsageError, match="is a file, not a folder")
    with refused, locked_run_folder(tmp_path / "run"):
        pass


def test_a_full_disk_is_told_before_training(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 1000))
    with pytest.raises(ResourceError, match="has 0 MB free, the run may need"):
        small.begin(tmp_path / "run")
    assert small.steps(tmp_path / "run") == []


def test_leftovers_of_a_crash_are_cleaned(small: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    small.begin(out)
    left = out / "checkpoints" / ".step-00000009.abcd.tmp"
    left.mkdir()
    (left / "weights.safetensors").write_bytes(b"half")
    small.go_on(out)
    assert not left.exists()


def test_what_a_killed_run_left_half_written_goes_and_nothing_else(tmp_path: Path) -> None:
    for name in (".model.0123abcd.tmp", ".data.0123abcd.tmp", "model", ".mine.0123abcd.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"half")
    (tmp_path / ".run.json.0123abcd.tmp").write_bytes(b"half")
    with locked_run_folder(tmp_path):
        pass
    assert {p.name for p in tmp_path.iterdir()} == {"model", ".mine.0123abcd.tmp", "run.lock"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_and_saves(
    small: Any, unbroken: Path, tmp_path: Path, number: int, code: int
) -> None:
    calls = 0

    def loss(decoder: Any, ids: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            os.kill(os.getpid(), number)
        return cross_entropy(decoder, ids)

    out = tmp_path / "run"
    before = signal.getsignal(number)
    with pytest.raises(StoppedError, match="stopped after step 3 of 8") as caught:
        fit(small.decoder(), small.tokens(), small.settings(save_every=0), out, loss=loss)
    assert isinstance(caught.value, KeyboardInterrupt)
    assert caught.value.exit_code == code
    assert signal.getsignal(number) is before
    assert small.steps(out) == [0, 3]
    small.go_on(out)
    assert small.hashes(out, 8) == small.hashes(unbroken, 8)


def test_the_second_signal_stops_at_once() -> None:
    with stop_request() as request:
        os.kill(os.getpid(), signal.SIGINT)
        assert request.signal_number == signal.SIGINT
        with pytest.raises(StoppedError, match="at once"):
            os.kill(os.getpid(), signal.SIGINT)


TRAINER = """
import sys, os
sys.path.insert(0, sys.argv[1])
import torch, conftest
from pathlib import Path
from miudo.train import checkpoint, loop
torch.set_num_threads(1)
out, when = Path(sys.argv[2]), sys.argv[3]

if when == "save":
    # Dies between the files of a save.
    real = checkpoint.save_file
    def save_file(tensors, path):
        real(tensors, path)
        if "00000006" in str(path) and path.name.startswith("optimizer"):
            os.kill(os.getpid(), 9)
    checkpoint.save_file = save_file
else:
    real_take = loop.Stepper.take
    def take(self, step, plan):
        if step == 5:
            os.kill(os.getpid(), 9)
        return real_take(self, step, plan)
    loop.Stepper.take = take
conftest.begin(out)
"""


@pytest.mark.parametrize("when", ["step", "save"])
def test_after_kill_9_the_run_ends_with_the_same_bits(
    small: Any, unbroken: Path, tmp_path: Path, when: str
) -> None:
    out = tmp_path / "run"
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", TRAINER, here, str(out), when], check=False)
    assert done.returncode == -signal.SIGKILL
    assert small.steps(out) == [0, 2, 4]
    small.go_on(out)
    assert small.hashes(out, 8) == small.hashes(unbroken, 8)
    assert not list((out / "checkpoints").glob(".*"))
