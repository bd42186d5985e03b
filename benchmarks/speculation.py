"""What guessing gains, beside what costs and agreement of the same run say that it should.

For: `miudo.engine.speculate` on this machine: an oracle that guesses right at given rates, and
lookup along real text on a trained model.
Not for: how often guesses hold for a model of yours; `miudo run --json` counts them.
Read next: `miudo.engine.speculate`.

    python benchmarks/speculation.py                 # an oracle, TinyLlama's shape, noise in Q4_0
    python benchmarks/speculation.py --shape 15m     # the shape of llama2.c's
    python benchmarks/speculation.py --text          # lookup, the embedded model
    python benchmarks/speculation.py --cpu           # in CPU seconds, one thread: on a busy machine

The oracle's text is the model's own, written with guesses and without, in turns; both must be
equal. Lookup goes along an edited source file after the file, and along sentences of an article
after the article: the model computes every step, and the text says which ids hold.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from miudo.config import ModelConfig
from miudo.engine.drafts import Drafter, TextDrafter
from miudo.engine.native import NativeEngine
from miudo.engine.speculate import LENGTHS, Agreement, Speculation, TextSpeculator
from miudo.formats import open_model
from miudo.hub.resolve import embedded_path
from miudo.philox import uniform
from miudo.protocol import SeqWork, Want
from miudo.report import Table, text_table
from miudo.tensors import DType, Role, StoredTensor, TensorSpec, tensor_table
from miudo.text.tokenizer import TextTokenizer

RATES = (0.5, 0.7, 0.9)
ROOT = Path(__file__).resolve().parent.parent
SHAPES: dict[str, dict[str, Any]] = {
    "tinyllama": {
        "n_layers": 22, "d_model": 2048, "n_heads": 32, "n_kv_heads": 4, "d_ff": 5632,
        "vocab_size": 32000, "max_positions": 2048,
    },
    "15m": {
        "n_layers": 6, "d_model": 288, "n_heads": 6, "d_ff": 768, "vocab_size": 32000,
        "max_positions": 2048, "tie_embeddings": True,
    },
}  # fmt: skip


class Oracle:
    """Knows the text and guesses each of its ids right at a rate."""

    free = True

    def __init__(self, text: Sequence[int], rate: float) -> None:
        self._guesses = [
            t if uniform(1, 2, at) < rate else (t + 1) % 1000 for at, t in enumerate(text)
        ]
        self._at = 0

    def evidence(self, ids: Sequence[int]) -> str | None:
        """Returns that it is the oracle."""
        self._at = len(ids)
        return "oracle"

    def guess(self, most: int) -> Sequence[int]:
        """Returns ids that are right at the rate."""
        return self._guesses[self._at : self._at + most]

    def close(self) -> None:
        """Holds nothing."""


class Run:
    """One text on one engine: `truth` follows `prompt`, or None and the model says what does."""

    def __init__(self, engine: NativeEngine, prompt: list[int], truth: list[int] | None) -> None:
        self.engine, self.prompt, self.forced = engine, prompt, truth is not None
        self.truth = truth or []
        self.clock = time.perf_counter

    def write(self, n: int, speculator: TextSpeculator | None) -> tuple[float, Counter[int]]:
        """Returns the seconds that `n` tokens took, and how many steps had how many rows."""
        k, ids, rows = self.engine.open(), list(self.prompt), Counter[int]()
        self.engine.step([SeqWork(k, ids[:-1], Want.NOTHING)])
        start = self.clock()
        while (left := n - (len(ids) - len(self.prompt))) > 0:
            draft = () if speculator is None else speculator.draft(ids, left - 1)
            tokens = self.step(k, ids, draft)
            if speculator is not None:
                speculator.learn(tokens)
            rows[len(draft) + 1] += 1
            ids += tokens
        seconds = self.clock() - start
        self.engine.close(k)
        if not self.truth:
            self.truth = ids[len(self.prompt) :]
        if ids[len(self.prompt) :] != self.truth[:n]:
            sys.exit("guessing changed a token")
        return seconds, rows

    def step(self, k: int, ids: list[int], draft: Sequence[int]) -> Sequence[int]:
        """Returns the tokens that a step gives; the conversation has all but the last then."""
        given, n = [ids[-1], *draft], len(draft)
        if not self.forced:
            (out,) = self.engine.step([SeqWork(k, given, n_drafted=n)])
            return out.tokens
        self.engine.step([SeqWork(k, given, Want.ALL_LOGITS)])
        at = len(ids) - len(self.prompt)
        right = self.truth[at : at + len(given)]
        held = next((i for i, (a, b) in enumerate(zip(draft, right, strict=False)) if a != b), n)
        self.engine.truncate(k, len(ids) + held)
        return right[: held + 1]


def main() -> None:
    """Prints one row a text, and what steps cost."""
    options = parse()
    engine, runs = (along_text if options.text else along_oracle)(options)
    print(
        f"{platform.machine()} {os.cpu_count()} cores, {engine.isa}, threads {engine.threads}, "
        f"{options.rounds} rounds of {options.tokens} tokens, load {os.getloadavg()[0]:.1f}"
    )
    rows = [row(*run, options) for run in runs]
    headers = ["text", "without", "with", "gain", "lowest", "highest", "expected", "gain / that",
               "tokens/step"]  # fmt: skip
    print(text_table(Table(headers, rows)))


def row(
    label: str, run: Run, make: Callable[[], Drafter], rate: float | None, options: Any
) -> list[str]:
    """Measures with and without, in turns; the first round learns what steps cost."""
    clock = run.clock = time.process_time if options.cpu else time.perf_counter
    known, n = Speculation(clock=clock), min(options.tokens, len(run.truth) or options.tokens)
    run.write(n, None)
    pairs, steps = [], Counter[int]()
    for turn in range(options.rounds + 1):
        both: dict[bool, float] = {}
        for guessing in (True, False) if turn % 2 else (False, True):
            speculator = TextSpeculator(known, [make()]) if guessing else None
            both[guessing], rows = run.write(n, speculator)
            steps += rows if guessing and turn else Counter()
        if turn:
            pairs.append((both[False], both[True]))
    cost = {k: (known.steps.of(k + 1) or 0) / (known.steps.of(1) or 1) for k in (0, *LENGTHS)}
    tried = {k: c for k, c in cost.items() if known.steps.count(k + 1)}
    print(f"{label}: rows x cost " + ", ".join(f"{k + 1} {c:.2f}" for k, c in tried.items()))
    if rate is None:  # from the steps that there were
        expected = n * options.rounds / sum(cost[r - 1] * count for r, count in steps.items())
    else:
        expected = max(Agreement(rate, 1.0).expected(k) / c for k, c in tried.items())
    gains = [alone / guessed for alone, guessed in pairs]
    gain = statistics.median(gains)
    alone, guessed = (statistics.median(p[i] for p in pairs) for i in (0, 1))
    return [
        label, f"{n / alone:,.1f}/s", f"{n / guessed:,.1f}/s", f"{gain:.2f}", f"{min(gains):.2f}",
        f"{max(gains):.2f}", f"{expected:.2f}", f"{gain / expected:.2f}",
        f"{n * options.rounds / steps.total():.2f}",
    ]  # fmt: skip


def along_oracle(options: Any) -> tuple[NativeEngine, list[Any]]:
    config = ModelConfig.uniform(**SHAPES[options.shape])
    rng = np.random.default_rng(0)
    model = Noise(config, {spec.name: noise(spec, rng) for spec in tensor_table(config)})
    engine = NativeEngine(model, threads=options.threads)
    run = Run(engine, list(range(1, 65)), None)
    runs = [
        (f"oracle {rate}", run, lambda rate=rate: Oracle([*run.prompt, *run.truth], rate), rate)
        for rate in RATES
    ]
    return engine, runs


def along_text(options: Any) -> tuple[NativeEngine, list[Any]]:
    model = open_model(options.model)
    if model.tokenizer is None:
        sys.exit("the model has no tokenizer")
    engine = NativeEngine(model, threads=options.threads)
    tokenizer, most = TextTokenizer(model.tokenizer), engine.config.max_positions
    code = (ROOT / "src/miudo/engine/generate.py").read_text("utf-8").partition("def generate")[2]
    article = (ROOT / "docs/determinism.md").read_text("utf-8").partition("## The engine")[2]
    texts: dict[str, tuple[str, Callable[[str], str]]] = {
        "a file, `token` now `piece`": (
            code, lambda text: re.sub(r"\btoken(s?)\b", r"piece\1", text)
        ),
        "an article, each third sentence": (
            article, lambda text: " ".join(re.findall(r"[A-Z][^.]*\.", text)[::3])
        ),
    }  # fmt: skip
    runs = []
    for label, (before, edit) in texts.items():
        prompt = tokenizer.encode(before)[: most // 2]
        truth = tokenizer.encode(edit(tokenizer.decode(prompt)))[: most - len(prompt)]
        runs.append((label, Run(engine, prompt, truth), TextDrafter, None))
    runs.append(("the model's own words", Run(engine, prompt[:100], None), TextDrafter, None))
    return engine, runs


class Noise:
    """A model of random weights."""

    def __init__(self, config: ModelConfig, weights: dict[str, StoredTensor]) -> None:
        self.config, self.weights = config, weights


def noise(spec: TensorSpec, rng: np.random.Generator) -> StoredTensor:
    if spec.role is Role.NORM:
        return StoredTensor.from_f32(np.ones(spec.shape, np.float32))
    blocks = np.empty((DType.Q4_0.size_bytes(spec.shape) // 18, 18), np.uint8)
    blocks[:, :2] = np.array([0.15 * spec.shape[1] ** -0.5], "<f2").view(np.uint8)
    blocks[:, 2:] = rng.integers(0, 256, (len(blocks), 16), dtype=np.uint8)
    return StoredTensor(DType.Q4_0, spec.shape, blocks.reshape(-1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=list(SHAPES), default="tinyllama")
    parser.add_argument("--text", action="store_true")
    parser.add_argument("--model", type=Path, default=embedded_path(), help="for --text")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.cpu:
        options.threads = 1  # waiting threads spin
    return options


if __name__ == "__main__":
    main()
