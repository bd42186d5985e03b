"""Does fine-tuning teach a small model to tell intents apart? BANKING77 by label log-probability.

For: base against fine-tuned on the same held-out fifth, beside a linear classifier.
Not for: a good intent classifier: the linear one is a hundred times cheaper.
Read next: `miudo.evaluate.tasks.labels`.

    python benchmarks/intents.py MODEL --task-data ../shared/data/support --out runs/intents

The split is the task's own: `hold_out(text, seed) < labels.test_share` is scored. The peer is
TF-IDF of words and pairs with logistic regression (scikit-learn), on the same texts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from miudo.evaluate.accuracy import accuracy
from miudo.evaluate.tasks.catalogue import TASKS
from miudo.evaluate.tasks.task import Source, TaskSettings


def main() -> None:
    """Scores base, fine-tuned model and linear classifier, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--task-data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=8, help="rows of about eight messages")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--options", nargs="*", default=[], help="more of `miudo finetune --full`")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    data = TASKS["labels"].load(Source((options.task_data,)), TaskSettings())
    rows = [
        ["base", *score(options, options.model)],
        ["fine-tuned", *score(options, finetuned(options, data))],
        ["TF-IDF, logistic regression", *linear(data)],
    ]
    from miudo.records import environment
    from miudo.report import Table, text_table

    print(", ".join(f"{k} {v}" for k, v in environment().items()))
    print(f"{len(data.pool):,} texts to train on, {len(data.samples):,} scored, 77 labels")
    headers = ["", "accuracy", "95% interval", "training s"]
    print(text_table(Table(headers, rows)))


def finetuned(options: argparse.Namespace, data: Any) -> str:
    """Fine-tunes on the texts that are not scored, once; returns the model's folder.

    The label alone is learned: nine tenths of a line's loss would be the message's words.
    """
    out = options.out / "run"
    if not (out / "model").exists():
        text = options.out / "train.jsonl"
        pairs = [{"prompt": s.prompt, "answer": s.choices[s.gold]} for s in data.pool]
        text.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        call("finetune", options.model, "--full", "--data", str(text), "--out", str(out),
             "--chat-template", "plain", "--epochs", str(options.epochs),
             "--batch-size", str(options.batch_size), "--set", f"lr={options.lr}",
             *options.options)  # fmt: skip
    return str(out / "model")


def score(options: argparse.Namespace, model: str) -> list[str]:
    """Returns accuracy, interval and training time of a model."""
    found = json.loads(
        call("eval", model, "--task", "labels", "--task-data", str(options.task_data), "--json")
    )
    task = found["tasks"][0]["score"]
    record = Path(model) / "record.json"
    took = json.loads(record.read_text())["measurements"] if model != options.model else []
    seconds = [m["value"] for m in took if m["name"] == "training_time"]
    return [
        f"{task['value']:.1%}", f"{task['low']:.1%} to {task['high']:.1%}",
        f"{seconds[0]:.0f}" if seconds else "",
    ]  # fmt: skip


def linear(data: Any) -> list[str]:
    """Returns the same of a linear classifier."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    started = time.perf_counter()
    classifier = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        LogisticRegression(C=30, max_iter=1000),
    )
    classifier.fit([s.text for s in data.pool], [s.gold for s in data.pool])
    took = time.perf_counter() - started
    found = classifier.predict([s.text for s in data.samples])
    got = accuracy(int(a) == s.gold for a, s in zip(found, data.samples, strict=True))
    return [f"{got.value:.1%}", f"{got.low:.1%} to {got.high:.1%}", f"{took:.0f}"]


def call(*arguments: str) -> str:
    """Returns what `miudo` printed; its progress goes to this terminal."""
    done = subprocess.run(
        [sys.executable, "-m", "miudo", *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


if __name__ == "__main__":
    main()
