"""kill -9 in training, at random moments and inside saves: does every run end with the same bits?

For: the claim that a resumed run equals the unbroken one, whatever killed it.
Not for: damaged disks (`tests/train/test_checkpoint.py`).
Read next: `miudo.train.checkpoint`.

    python benchmarks/kill_resume.py                 # 20 moments, at least 8 inside a save
    python benchmarks/kill_resume.py --compile on    # the same under torch.compile, bf16

A kill counts as inside a save when the half-written folder is still there after it.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEPS, SAVE_EVERY, KEEP = 24, 3, 2


def main() -> None:
    """Kills, resumes, compares, prints the table; exits 1 if one run differs."""
    options = parse()
    if options.worker:
        train(options.worker, resume=options.resume, compiled=options.compile)
        return
    dice = random.Random(options.seed)  # noqa: S311 - moments, not secrets
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        whole = root / "unbroken"
        began = time.perf_counter()
        finish(whole, options, resume=False)
        print(f"unbroken run: {time.perf_counter() - began:.1f} s, {STEPS} steps, ", end="")
        print(f"a save every {SAVE_EVERY}; weights {hashes(whole)['weights.safetensors'][:16]}")
        print(f"{'':>3} {'killed':<42} {'newest saved':>12}  {'after resume'}")
        inside = different = moment = 0
        while moment < options.moments or inside < options.inside:
            out = root / f"run-{moment}"
            where, was_inside = killed(out, dice, options)
            if where is None:
                shutil.rmtree(out)  # it ended before the kill
                continue
            steps = saved(out)
            newest = steps[-1] if steps else None
            finish(out, options, resume=True)
            same = hashes(out) == hashes(whole)
            moment, inside, different = moment + 1, inside + was_inside, different + (not same)
            told = "none" if newest is None else f"step {newest}"
            print(
                f"{moment:>3} {where:<42} {told:>12}  {'equal' if same else 'DIFFERENT'}",
                flush=True,
            )
            shutil.rmtree(out)
    print(f"{moment} kills, {inside} inside a save, {moment - different} runs equal")
    if different:
        raise SystemExit(1)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--inside", type=int, default=8, help="at least so many inside a save")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", choices=["on", "off"], default="off")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--resume", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def train(out: Path, *, resume: bool, compiled: str) -> None:
    """The worker: one run of a preset's shape on random ids."""
    import torch
    from train_speed import RandomTokens

    from miudo.decoder.decoder import Decoder
    from miudo.presets import load_preset
    from miudo.train.loop import fit
    from miudo.train.settings import FitSettings

    torch.set_num_threads(1)
    settings = FitSettings(
        steps=STEPS,
        batch_size=2,
        length=32,
        compile=compiled,
        precision="bf16" if compiled == "on" else "f32",
        save_every=SAVE_EVERY,
        keep=KEEP,
    )
    decoder = Decoder(load_preset("1m", vocab_size=8192))
    decoder.initialise(0)
    print("training", flush=True)
    fit(decoder, ShortTokens(RandomTokens()), settings, out, resume=resume)


class ShortTokens:
    """The first ids of each block: rows of any length up to the block's."""

    sha256 = "random"

    def __init__(self, tokens: object) -> None:
        self._tokens = tokens

    def n_blocks(self, length: int) -> int:
        """Returns how many blocks there are."""
        return int(self._tokens.n_blocks(length))  # type: ignore[attr-defined]

    def batch(self, seed: int, step: int, batch_size: int, length: int) -> object:
        """Returns ids [batch_size, length + 1]."""
        rows = self._tokens.batch(seed, step, batch_size, length)  # type: ignore[attr-defined]
        return rows[:, : length + 1]


def killed(out: Path, dice: random.Random, options: argparse.Namespace) -> tuple[str | None, bool]:
    """Starts a run and kills it; returns where it was, and whether inside a save."""
    aim_inside = dice.random() < 0.6
    save = dice.randrange(STEPS // SAVE_EVERY)
    process = start(out, options, resume=False)
    try:
        if aim_inside:
            wait_for_save(out / "checkpoints", SAVE_EVERY * save, process)
            time.sleep(dice.random() * 0.02)
        else:
            time.sleep(0.5 + dice.random() * 3.5)
        ended = process.poll() is not None
    finally:
        process.kill()
        process.wait()
    if ended:
        return None, False
    left = sorted((out / "checkpoints").glob(".step-*.tmp"))
    for folder in left:
        if "deleted" in folder.name:
            return f"while deleting {folder.name[1:14]}", False
    for folder in left:
        files = sorted(path.name.split(".")[0] for path in folder.glob("[!.]*"))
        return f"saving {folder.name[1:14]}, {len(files)} of 5 files", True
    return "between saves", False


def wait_for_save(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Returns when the folder of `step` begins to be written, or the process ended."""
    prefix = f".step-{step:08d}"
    while process.poll() is None:
        try:
            if any(entry.name.startswith(prefix) for entry in os.scandir(folder)):
                return
        except FileNotFoundError:
            pass
        time.sleep(0.0005)


def start(out: Path, options: argparse.Namespace, *, resume: bool) -> subprocess.Popen[str]:
    """Starts a worker and waits until it is about to train."""
    command = [sys.executable, __file__, "--worker", str(out), "--compile", options.compile]
    process = subprocess.Popen(command + ["--resume"] * resume, stdout=subprocess.PIPE, text=True)
    if process.stdout is None or process.stdout.readline() != "training\n":
        raise SystemExit("the worker did not start")
    return process


def finish(out: Path, options: argparse.Namespace, *, resume: bool) -> None:
    """Runs a worker to its end."""
    process = start(out, options, resume=resume)
    if process.wait() != 0:
        raise SystemExit(f"a run ended with {signal.strsignal(-process.returncode)}")


def saved(out: Path) -> list[int]:
    """Returns the steps whose checkpoints stand."""
    from miudo.train.checkpoint import checkpoint_steps

    return checkpoint_steps(out / "checkpoints")


def hashes(out: Path) -> dict[str, str]:
    """Returns SHA-256 of the last checkpoint's weights, moments and random state."""
    from miudo.files import sha256_file
    from miudo.train.checkpoint import step_folder

    folder = step_folder(out / "checkpoints", STEPS)
    return {path.name: sha256_file(path) for path in sorted(folder.glob("*.safetensors"))}


if __name__ == "__main__":
    main()
