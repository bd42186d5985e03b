"""The tour of the README does what it says: its lines are run as they stand, only shorter."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from miudo.data.sample import write_sample

ROOT = Path(__file__).resolve().parents[2]


def tour() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text[text.index("## A five-minute tour") :]
    block = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert block is not None
    return block[1].splitlines()


@pytest.mark.slow
def test_the_tour_runs_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "demo" / "text").mkdir(parents=True)
    write_sample(tmp_path / "demo" / "text" / "sample.jsonl", seed=0, size_bytes=400_000)
    first, *lines = tour()
    assert first == ". .venv/bin/activate"
    environment = dict(os.environ)
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    for line in lines:
        # What is learned does not matter here.
        short = re.sub(r"--minutes [\d.]+", "--steps 3 --batch-size 2 --length 64", line)
        done = subprocess.run(
            ["bash", "-c", short],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{short}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        assert done.stdout.strip(), f"{short} printed nothing"
    assert (tmp_path / "tour" / "student.gguf").stat().st_size < 4_000_000
