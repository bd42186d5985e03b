"""What does routing between a small and a large model buy? Cost and quality, way by way.

For: always-small, always-large, keyword rules, classifier, cascade, both, and the best possible,
on the same held-out prompts.
Not for: a good intent classifier: a linear one is better and cheaper (`benchmarks/intents.py`).
Read next: `miudo.route.curve`.

    python benchmarks/routing.py models/en-6m --data ../shared/data --out runs/routing

Both models are ours: the parent taught banking77, CLINC150 and some GSM8K, and the same with two
of its six layers and half of its channels. Prompts are parted by text: what the models learn from,
what the router learns from, what is counted. The cost of an answer is parameters x tokens read and
written, in multiples of always-large: an estimate, the same on every machine; seconds are measured
too, and printed beside it. What is made once is kept in --out.
"""

from __future__ import annotations

import argparse
import csv
import json
import lzma
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np

from miudo.data.pack import hold_out
from miudo.evaluate.accuracy import accuracy
from miudo.evaluate.loading import load_model
from miudo.formats import open_model
from miudo.records import environment
from miudo.report import Table, text_table
from miudo.route import jobs
from miudo.route.calibrating import Rights, for_share
from miudo.route.complexity import Classifier, read_classifier
from miudo.route.curve import Point, Side, area, best_possible, sweep
from miudo.route.fitting import FitSettings
from miudo.route.keywords import keyword_complexity
from miudo.route.observing import (
    Observation,
    ask_local,
    read_examples,
    read_observations,
    write_observations,
)
from miudo.tensors import parameter_count

LEARNED = {"banking77": 0.5, "clinc150": 0.75, "gsm8k": 0.9}
"""Ranks from which on the models learn a task's prompts; the router has 0.25 to 0.5."""
TUNING = (
    "--full", "--chat-template", "default", "--length", "256", "--batch-size", "8",
    "--set", "optimizer=muon", "--set", "muon_lr=0.004", "--set", "lr=0.001",
    "--set", "eval_every=1000000",
)  # fmt: skip
PRUNING = ("--depth", "4", "--hidden", "0.5", "--set", "prepare.pack.held_out=0",
           "--set", "calibration_tokens=8192")  # fmt: skip
RESAMPLES = 200


@dataclass(frozen=True)
class Part:
    """Observations of one part, and what each model cost and got right, [N]."""

    observed: list[Observation]
    small: Side
    large: Side

    def sure(self, measure: str) -> list[float]:
        """Returns the small model's doubt of its own answers: less than 0, near -1 when sure."""
        told = [each.answered["small"].confidence for each in self.observed]
        return [-sure.by(measure) for sure in told if sure is not None]  # type: ignore[arg-type]

    def rows(self, at: np.ndarray) -> Part:
        """Returns the part with these rows alone, in this order."""
        sides = [Side(side.cost[at], side.right[at]) for side in (self.small, self.large)]
        return Part([self.observed[i] for i in at], *sides)

    def only(self, wanted: Callable[[str], bool]) -> Part:
        """Returns the part with the prompts that are wanted."""
        kept = [i for i, each in enumerate(self.observed) if wanted(each.example.prompt)]
        return self.rows(np.array(kept))

    def told(self, tell: Callable[[str], float]) -> list[float]:
        """Returns what `tell` says of the prompts."""
        return [tell(each.example.prompt) for each in self.observed]


def main() -> None:
    """Makes what is missing, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parent")
    parser.add_argument("--data", type=Path, required=True, help="the folder of shared data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=2000, help="prompts of each part, at most")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    task_of = split(options.data, options.out, options.limit)
    models = make_models(options.parent, options.data, options.out)
    router, test = (observed(options.out, name, models) for name in ("router", "test"))
    print(", ".join(f"{k} {v}" for k, v in environment().items()))
    print_models(models, test, task_of)
    print_ways(options.out, router, test)
    print("\nwithout GSM8K, which neither model can do")
    print_ways(options.out, router, test.only(lambda prompt: task_of[prompt] != "gsm8k"))


def split(data: Path, out: Path, limit: int) -> dict[str, str]:
    """Writes what each part reads, returns the task of every prompt."""
    parts: dict[str, list[dict[str, str]]] = {"models": [], "router": [], "test": []}
    task_of: dict[str, str] = {}
    for task, prompt, answer in questions(data):
        if prompt in task_of:
            continue
        task_of[prompt] = task
        rank = hold_out(prompt, 0)
        if rank >= LEARNED[task]:
            parts["models"].append({"prompt": prompt, "answer": answer})
        elif rank < 0.5:
            parts["test" if rank < 0.25 else "router"].append({"prompt": prompt, "answer": answer})
    for name, rows in parts.items():
        if name != "models":  # GSM8K's come first, by the rank they were drawn by; others by lot
            rows = sorted(rows, key=lambda row: hold_out(row["prompt"], 1))[:limit]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (out / f"{name}.jsonl").write_text(text)
        print(f"{name}: {len(rows):,} prompts", file=sys.stderr)
    return task_of


def questions(data: Path) -> Iterator[tuple[str, str, str]]:
    """Yields task, prompt and answer."""
    with lzma.open(data / "support/banking77_train.csv.xz", "rt", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            yield "banking77", row["text"].strip(), row["category"].replace("_", " ").strip()
    for row in lines(data / "support/clinc150_train_val.jsonl.xz"):
        if row["intent"] != "oos":
            yield "clinc150", row["text"].strip(), row["intent"].replace("_", " ")
    for row in lines(data / "education/gsm8k_train.jsonl.xz"):
        if hold_out(row["question"], 1) < 0.2:
            yield "gsm8k", row["question"].strip(), row["answer"].rpartition("####")[2].strip()


def lines(path: Path) -> Iterator[dict[str, str]]:
    with lzma.open(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def make_models(parent: str, data: Path, out: Path) -> dict[str, Path]:
    """Returns the two models, made where they are not there yet."""
    made = {"small": out / "small" / "model", "large": out / "large" / "model"}
    if not made["small"].exists():
        text = out / "pruning.txt"
        with lzma.open(data / "en_prose/eltec-eng_novels_dev.txt.xz") as file:
            text.write_text(file.read(60_000).decode("utf-8", "ignore"))
        call("prune", parent, "--data", str(text), "--out", str(out / "pruned"), *PRUNING)
        tune(str(out / "pruned" / "model"), out, "small", epochs=4)
    if not made["large"].exists():
        tune(parent, out, "large", epochs=4)
    return made


def tune(start: str, out: Path, name: str, *, epochs: int) -> None:
    data, length = str(out / "models.jsonl"), ("--epochs", str(epochs))
    call("finetune", start, "--data", data, "--out", str(out / name), *length, *TUNING)


def call(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "miudo", *arguments], stdout=sys.stderr, check=True)


def observed(out: Path, name: str, models: dict[str, Path]) -> Part:
    """Returns what both models answer to a part's prompts, each asked once."""
    each = [answers(out, name, key, model) for key, model in models.items()]
    found = [
        Observation(rows[0].example, {k: v for row in rows for k, v in row.answered.items()})
        for rows in zip(*each, strict=True)
    ]
    write_observations(out / f"{name}-observed.jsonl", found)
    spent = {key: size(path) * tokens(found, key) for key, path in models.items()}
    whole = float(spent["large"].mean())
    small, large = (
        Side(spent[key] / whole, np.array([bool(e.answered[key].right) for e in found]))
        for key in ("small", "large")
    )
    return Part(found, small, large)


def answers(out: Path, name: str, key: str, model: Path) -> list[Observation]:
    """Returns what one model answers to a part's prompts, kept in a file."""
    path = out / f"{name}-{key}.jsonl"
    if not path.exists():
        loaded = load_model(model, threads=1)
        asker = partial(ask_local, loaded, max_tokens=16)
        write_observations(path, jobs.observe(read_examples(out / f"{name}.jsonl"), {key: asker}))
    return read_observations(path)


def tokens(found: Sequence[Observation], key: str) -> np.ndarray:
    """Returns the tokens read and written for each answer, [N]."""
    counts = [e.answered[key].prompt_tokens + e.answered[key].new_tokens for e in found]
    return np.array(counts, dtype=np.float64)


def size(model: Path) -> int:
    """Returns a model's parameters."""
    return parameter_count(open_model(model).config)


def print_models(models: dict[str, Path], test: Part, task_of: dict[str, str]) -> None:
    """Prints how large, dear and good each model is alone."""
    rows = []
    for name, side in (("small", test.small), ("large", test.large)):
        seconds = np.median([e.answered[name].seconds for e in test.observed])
        row = [
            name,
            f"{size(models[name]) / 1e6:.2f}",
            f"{side.cost.mean():.3f}",
            f"{seconds * 1e3:.1f}",
        ]
        row.append(share(side.right))
        for task in LEARNED:
            kept = np.array([task_of[e.example.prompt] == task for e in test.observed])
            row.append(share(side.right[kept]))
        rows.append(row)
    heads = ["", "M parameters", "cost", "ms an answer", "right", *LEARNED]
    print(text_table(Table(heads, rows)))
    both = test.small.right & test.large.right
    neither = ~test.small.right & ~test.large.right
    print(f"both right {both.mean():.1%}, neither {neither.mean():.1%}, only the small one "
          f"{(test.small.right & ~both).mean():.1%}, only the large one "
          f"{(test.large.right & ~both).mean():.1%}")  # fmt: skip


def print_ways(out: Path, router: Part, test: Part) -> None:
    """Prints area and curve of every way to choose."""
    tell = classifier(out)
    helps = classifier(out, "large")
    low, high = float(test.small.cost.mean()), float(test.large.cost.mean())
    skip, skip_helps = best_skip(router, tell), best_skip(router, helps)
    ways: dict[str, Callable[[Part], list[Point]]] = {
        "by lot": lambda part: sweep(lot(part), part.small, part.large),
        "keyword rules": lambda part: sweep(part.told(rules), part.small, part.large),
        "length of the prompt": lambda part: sweep(
            part.told(lambda t: float(len(t))), part.small, part.large
        ),
        "classifier": lambda part: sweep(part.told(tell), part.small, part.large),
        "classifier, beside the large": lambda part: sweep(
            part.told(helps), part.small, part.large
        ),
    }
    for measure in ("mean", "min", "margin"):
        ways[f"cascade, {measure}"] = partial(cascade, measure)
    ways[f"classifier (above {skip:.2f}) + cascade"] = lambda part: combined(part, tell, skip)
    ways[f"beside the large (above {skip_helps:.2f}) + cascade"] = lambda part: combined(
        part, helps, skip_helps
    )
    ways["best possible"] = lambda part: best_possible(part.small, part.large)
    curves = {name: way(test) for name, way in ways.items()}
    at = [low + (high - low) * i / 8 for i in range(9)]
    rows = [
        [name, f"{area(points, low, high):.4f}", *(f"{quality_at(points, c):.1%}" for c in at)]
        for name, points in curves.items()
    ]
    print(f"\nquality at a cost between always-small ({low:.3f}) and always-large ({high:.3f})")
    print(text_table(Table(["", "area", *(f"{c:.2f}" for c in at)], rows)))
    print_differences(test, ways, low, high)
    print_calibrated(router, test, {"classifier": tell, "beside the large": helps})


def classifier(out: Path, beside: str | None = None) -> Callable[[str], float]:
    """Returns what tells when the small model is wrong, as the router's part taught it."""
    folder = out / ("router" if beside is None else "router-beside")
    if not folder.exists():
        fitted = jobs.train(
            out / "router-observed.jsonl", "small", FitSettings(), folder, beside=beside
        )
        losses = f"log loss {fitted.log_loss:.4f}, guessing {fitted.guess_loss:.4f}"
        print(f"{folder.name}, on a fifth of its own part: {losses}, AUROC {fitted.ranked:.3f}")
    return chance(read_classifier(folder))


@cache
def rules(text: str) -> float:
    return keyword_complexity(text).value


def chance(made: Classifier) -> Callable[[str], float]:
    return cache(lambda text: made.complexity(text).value)


def lot(part: Part) -> list[float]:
    return [hold_out(e.example.prompt, 2) for e in part.observed]


def cascade(measure: str, part: Part) -> list[Point]:
    return sweep(part.sure(measure), part.small, part.large, both=True)


def combined(part: Part, tell: Callable[[str], float], skip: float) -> list[Point]:
    """The large model at once above `skip`, else the small one, whose doubt may pass it on.

    Always-small is a point of it too: else what it cannot do for less would count as done.
    """
    above = np.array(part.told(tell)) > skip
    first = Side(np.where(above, part.large.cost, part.small.cost),
                 np.where(above, part.large.right, part.small.right))  # fmt: skip
    then = Side(np.where(above, 0.0, part.large.cost), part.large.right)
    doubts = np.where(above, -2.0, np.array(part.sure("mean")))
    alone = Point(float(part.small.cost.mean()), float(part.small.right.mean()), 0.0)
    return [alone, *sweep(doubts.tolist(), first, then, both=True)]


def best_skip(router: Part, tell: Callable[[str], float]) -> float:
    """Returns the threshold before the cascade that has most area on the router's own part."""
    told = np.array(router.told(tell))
    low, high = float(router.small.cost.mean()), float(router.large.cost.mean())
    tried = [float(np.quantile(told, q)) for q in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)]
    return max(tried, key=lambda skip: area(combined(router, tell, skip), low, high))


def quality_at(points: Sequence[Point], cost: float) -> float:
    ordered = sorted(points, key=lambda p: p.cost)
    return float(np.interp(cost, [p.cost for p in ordered], [p.quality for p in ordered]))


def print_differences(
    test: Part, ways: dict[str, Callable[[Part], list[Point]]], low: float, high: float
) -> None:
    """Prints areas against keyword rules, with intervals by resampling the prompts."""
    rng = np.random.default_rng(0)
    n, names = len(test.observed), [name for name in ways if name != "keyword rules"]
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(RESAMPLES):
        drawn = test.rows(rng.integers(0, n, n))
        base = area(ways["keyword rules"](drawn), low, high)
        for name in names:
            found[name].append(area(ways[name](drawn), low, high) - base)
    rows = []
    for name, values in found.items():
        least, most = np.quantile(values, (0.025, 0.975))
        rows.append([name, f"{np.mean(values):+.4f}", f"{least:+.4f} to {most:+.4f}"])
    print(f"\narea less that of keyword rules, {RESAMPLES} resamples of the prompts")
    print(text_table(Table(["", "mean", "95% interval"], rows)))


def print_calibrated(router: Part, test: Part, tells: dict[str, Callable[[str], float]]) -> None:
    """Prints what thresholds set on the router's part do on the test part."""
    rows = []
    signals: dict[str, tuple[Callable[[Part], list[float]], float]] = {
        name: (lambda p, tell=tell: p.told(tell), 0.0)
        for name, tell in {"keyword rules": rules, **tells}.items()
    }
    signals["cascade, mean"] = (lambda p: p.sure("mean"), -1.0)
    for name, (doubts, floor) in signals.items():
        for wanted in (0.2, 0.5):
            rights = Rights(router.small.right.tolist(), router.large.right.tolist())
            made = for_share(doubts(router), wanted, floor=floor, rights=rights)
            passed = np.array(doubts(test)) > made.threshold
            right = np.where(passed, test.large.right, test.small.right)
            rows.append([name, f"{wanted:.0%}", share(passed), share(right)])
    print("\nthresholds set on the router's part for a share, and what they do on the test part")
    print(text_table(Table(["", "wanted", "passed on", "right"], rows)))


def share(answers: np.ndarray) -> str:
    found = accuracy(bool(a) for a in answers)
    return f"{found.value:.1%} ({found.low:.1%} to {found.high:.1%})"


if __name__ == "__main__":
    main()
