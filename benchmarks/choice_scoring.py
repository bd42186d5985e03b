"""Choices after a prompt: the prompt taken in once, or each whole text by `Engine.score`?

For: the choice that `miudo.evaluate.continuations` made, on pairs and on 77 labels.
Not for: what the scores are (`miudo eval`).
Read next: `miudo.evaluate.continuations`.

    python benchmarks/choice_scoring.py --task-data FOLDER   # with BLiMP and BANKING77
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from miudo.evaluate.continuations import Pair, encode_pair, score_pairs
from miudo.evaluate.loading import load_model
from miudo.evaluate.tasks.catalogue import find_tasks
from miudo.evaluate.tasks.task import Source, TaskSettings
from miudo.hub.resolve import embedded_path
from miudo.protocol import Engine

SAMPLES = {"blimp": 300, "labels": 40}
# Both ways sum the same log-probabilities, one of them in float32.
SAME = 1e-4


def main() -> None:
    """Prints milliseconds a sample of both ways, in turns; fails if their sums differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task-data", type=Path, nargs="+", required=True)
    parser.add_argument("--model", type=Path, default=embedded_path())
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    loaded = load_model(options.model, threads=1)
    source = Source(tuple(options.task_data))
    ways: dict[str, Callable[[Engine, Sequence[Pair]], list[float]]] = {
        "step": by_step,
        "score": by_score,
    }
    print(f"{'task':<8} {'samples':>8} {'choices':>8}  way     CPU ms a sample (min, median, max)")
    for task in find_tasks(SAMPLES):
        samples = task.load(source, TaskSettings()).samples[: SAMPLES[task.name]]
        space = "" if task.kind == "pair" else " "
        config, tokenizer = loaded.engine.config, loaded.tokenizer
        encoded = [
            [encode_pair(s.prompt, space + choice, tokenizer, config) for choice in s.choices]
            for s in samples
        ]
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            sums = {}
            for name, way in ways.items():
                began = time.process_time()
                sums[name] = [way(loaded.engine, pairs) for pairs in encoded]
                times[name].append((time.process_time() - began) / len(encoded) * 1e3)
            if not np.allclose(sums["step"], sums["score"], rtol=0, atol=SAME):
                raise SystemExit("the two ways differ")
        for name, taken in times.items():
            shown = f"{min(taken):.2f}, {statistics.median(taken):.2f}, {max(taken):.2f}"
            print(f"{task.name:<8} {len(encoded):>8} {len(encoded[0]):>8}  {name:<6}  {shown}")


def by_step(engine: Engine, pairs: Sequence[Pair]) -> list[float]:
    """Returns the sums by the way that the harness uses."""
    return [found.logprob for found in score_pairs(engine, pairs)]


def by_score(engine: Engine, pairs: Sequence[Pair]) -> list[float]:
    """Returns the same, each whole text on its own."""
    sums = []
    for pair in pairs:
        logprobs = engine.score((*pair.prompt, *pair.continuation)).logprobs
        sums.append(float(logprobs[len(pair.prompt) - 1 :].astype(np.float64).sum()))
    return sums


if __name__ == "__main__":
    main()
