"""What a student loses by learning from kept answers instead of the teacher itself.

For: one teacher and text; per seed and alpha a student each from the teacher in memory, from top
ids, from top ids with a filled bucket, and from drawn ids alone, all of about 50 bytes a token.
Not for: how good a student can get; all runs are short and equal, at temperature 1.
Read next: `miudo.compress.distill.codes`.

    python benchmarks/teacher_cache.py models/en-6m --data DATA --out runs/cache

DATA is a folder of `miudo prepare --tokenizer TEACHER`, or text. Finished runs are skipped; caches
are kept under --out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from miudo.compress.distill.terms import DistillSettings
from miudo.compress.distill.ways import Cached
from miudo.compress.jobs import DistillJob
from miudo.compress.verbs import run_distill
from miudo.records import Record
from miudo.train.progress import Lines
from miudo.train.settings import FitSettings

KEPT = {"teacher": None, "top 16": (16, 0), "top 8, 12 drawn": (8, 12), "25 drawn": (0, 25)}
"""k most probable ids and how many drawn ones; None: nothing, the teacher is asked each time."""


def main() -> None:
    given = arguments()
    print("| alpha | seed | learns from | held-out loss | of the teacher's | training s |")
    print("| ---: | ---: | --- | ---: | ---: | ---: |")
    for alpha in given.alphas:
        for seed in given.seeds:
            losses: dict[str, float] = {}
            for name, kept in KEPT.items():
                found = numbers(given, name, kept, alpha, seed)
                losses[name] = found["held_out_loss"]
                ratio = losses[name] / losses["teacher"]
                row = f"{losses[name]:.4f} | {ratio:.4f} | {found['training_time']:.0f}"
                print(f"| {alpha:g} | {seed} | {name} | {row} |", flush=True)


def numbers(
    given: argparse.Namespace, name: str, kept: tuple[int, int] | None, alpha: float, seed: int
) -> dict[str, float]:
    """Returns the measurements of one run by name, from its record where it had been made."""
    label = name.replace(", ", "-").replace(" ", "-")
    out: Path = given.out / f"{label}-alpha{alpha:g}-seed{seed}"
    record = Record.read(out / "model") if (out / "model").exists() else None
    if record is None:
        way = None
        if kept is not None:
            way = Cached(given.out / f"answers-{label}", k=kept[0], draws=kept[1])
        fit = FitSettings(
            tokens=given.tokens, batch_size=given.batch_size, length=given.length, seed=seed
        )
        loss = DistillSettings.of(temperature=1.0, alpha=alpha)
        job = DistillJob(
            given.teacher, tuple(given.data), out, fit, given.ratio, loss=loss, way=way
        )
        record = run_distill(job, Lines(), resume=(out / "run.json").exists()).record
    return {m.name: m.value for m in record.measurements}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("teacher", type=Path)
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=500_000)
    parser.add_argument("--ratio", type=float, default=0.25)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--alphas", type=float, nargs="+", default=[1.0, 0.5])
    return parser.parse_args()


if __name__ == "__main__":
    main()
