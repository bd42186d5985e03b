"""How rich the sample corpus is: held-out perplexity of a word-trigram model, printed.

For: showing that the corpus cannot be learned by heart from templates: the bar is 40.
Not for: judging miudo's models (`miudo eval`).
Read next: `miudo.data.sample`.

    python benchmarks/sample_corpus.py [--seed 0] [--size-bytes 3000000]
"""

from __future__ import annotations

import argparse
import math
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from miudo.data.pack import hold_out
from miudo.data.sample import write_sample
from miudo.data.sources import read_documents

BAR = 40.0
HELD_OUT = 0.05
WORD = re.compile(r"\w+|[^\w\s]")
START, END = "<s>", "</s>"


class KneserNey:
    """Interpolated modified Kneser-Ney trigrams (Chen and Goodman 1999), three discounts an order.

    The lowest order is mixed with a uniform distribution over the vocabulary.
    """

    def __init__(self, documents: Iterable[Sequence[str]]) -> None:
        trigrams: Counter[tuple[str, ...]] = Counter()
        for words in documents:
            padded = [START, START, *words, END]
            trigrams.update(zip(padded, padded[1:], padded[2:], strict=False))
        bigrams = Counter(gram[1:] for gram in trigrams)
        unigrams = Counter(gram[1:] for gram in bigrams)
        self.orders = [_Order(counts) for counts in (unigrams, bigrams, trigrams)]
        self.vocabulary = {gram[0] for gram in unigrams}

    def probability(self, context: tuple[str, str], word: str) -> float:
        """Returns P(word | two words before); 0 for a word that was never seen."""
        found = 1.0 / len(self.vocabulary)
        for length, order in enumerate(self.orders):
            found = order.interpolate(context[2 - length :], word, found)
        return found if word in self.vocabulary else 0.0


class _Order:
    def __init__(self, counts: Counter[tuple[str, ...]]) -> None:
        self.counts = counts
        self.discount = _discounts(counts)
        self.total: dict[tuple[str, ...], int] = defaultdict(int)
        self.saved: dict[tuple[str, ...], float] = defaultdict(float)
        for gram, n in counts.items():
            self.total[gram[:-1]] += n
            self.saved[gram[:-1]] += self.discount[min(n, 3)]

    def interpolate(self, context: tuple[str, ...], word: str, lower: float) -> float:
        total = self.total.get(context)
        if not total:
            return lower
        n = self.counts.get((*context, word), 0)
        own = max(n - self.discount[min(n, 3)], 0.0) if n else 0.0
        return (own + self.saved[context] * lower) / total


def _discounts(counts: Counter[tuple[str, ...]]) -> tuple[float, float, float, float]:
    seen = Counter(min(n, 4) for n in counts.values())
    n1, n2, n3, n4 = (max(seen[i], 1) for i in (1, 2, 3, 4))
    y = n1 / (n1 + 2 * n2)
    found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    return (0.0, *(min(max(d, 0.05), k) for k, d in enumerate(found, 1)))  # type: ignore[return-value]


def measure(texts: Sequence[str], seed: int) -> tuple[float, float, int, int]:
    """Returns perplexity, share of unknown words, words to learn from, words measured.

    Words that were never seen are left out of the perplexity, which makes it lower, and so
    the bar harder to pass.
    """
    parts: tuple[list[list[str]], list[list[str]]] = ([], [])
    for text in texts:
        parts[hold_out(text, seed) < HELD_OUT].append(WORD.findall(text))
    model = KneserNey(parts[0])
    nats, known, unknown = 0.0, 0, 0
    for words in parts[1]:
        padded = [START, START, *words, END]
        for a, b, word in zip(padded, padded[1:], padded[2:], strict=False):
            probability = model.probability((a, b), word)
            if probability > 0.0:
                nats -= math.log(probability)
                known += 1
            else:
                unknown += 1
    learned = sum(map(len, parts[0]))
    return math.exp(nats / known), unknown / (known + unknown), learned, known


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size-bytes", type=int, default=3_000_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sample.jsonl"
        write_sample(path, seed=arguments.seed, size_bytes=arguments.size_bytes)
        texts = [document.text for document in read_documents([path])]
    perplexity, unknown, learned, measured = measure(texts, arguments.seed)
    print(f"documents {len(texts)}, words to learn from {learned}, measured {measured}")
    print(f"unknown words {unknown:.2%} (left out)")
    print(f"word-trigram Kneser-Ney held-out perplexity {perplexity:.1f} (bar {BAR:.0f})")
    if perplexity < BAR:
        raise SystemExit(3)


if __name__ == "__main__":
    main()
