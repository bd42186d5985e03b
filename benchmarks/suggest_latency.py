"""How soon a keyboard has its three words after a keystroke, and how often one is right.

For: the claim that 95 of 100 keystrokes are answered within 15 ms.
Not for: what a user types after a suggestion: every letter of the text is typed here.
Read next: `miudo.engine.suggest`.

    python benchmarks/suggest_latency.py TEXT [--model MODEL] [--words 300]

Each word of TEXT is typed letter by letter on one conversation. "Before a letter" counts words
that stand among three suggestions when nothing of them is typed; "letters saved" the letters
that need not be typed if a word is taken as soon as it is among the three. The peer is a list
of the words of the rest of TEXT by frequency, which is all that a keyboard without a model has.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from miudo.data.sources import read_documents
from miudo.engine.suggest import Suggester
from miudo.evaluate.loading import load_model
from miudo.hub.resolve import model_path
from miudo.records import environment
from miudo.report import Table, text_table

CONTEXT = 400  # characters before the word


def main() -> None:
    """Types the words and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--words", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    text = " ".join(w for d in read_documents([options.text]) for w in d.text.split())
    spots = [m.span() for m in re.finditer(r"(?<= )[^\W\d_]{2,}(?=[ ,.])", text)]
    step = max(1, len(spots) // options.words)
    chosen = [span for span in spots[::step] if span[0] > CONTEXT][: options.words]
    loaded = load_model(model_path(options.model), threads=options.threads)
    start = () if loaded.model.config.bos_id is None else (loaded.model.config.bos_id,)
    suggester = Suggester(loaded.engine, loaded.tokenizer, start=start)
    known = Counter(text[b:e] for b, e in spots if (b, e) not in set(chosen))

    def by_model(context: str, typed: str) -> list[str]:
        return [s.word for s in suggester.suggest(context + typed, 3)]

    def by_frequency(context: str, typed: str) -> list[str]:
        return [w for w, _ in known.most_common() if w.startswith(typed)][:3]

    rows = [
        [loaded.path.name, *typed_out(text, chosen, by_model)],
        ["words of the text by frequency", *typed_out(text, chosen, by_frequency)],
    ]
    print(", ".join(f"{k} {v}" for k, v in environment().items()))
    print(f"{len(chosen)} words of {options.text.name}, {options.threads} thread(s)")
    headers = ["", "keystrokes", "p50 ms", "p95 ms", "p99 ms", "before a letter", "letters saved"]
    print(text_table(Table(headers, rows)))


def typed_out(
    text: str, chosen: list[tuple[int, int]], suggest: Callable[[str, str], list[str]]
) -> list[str]:
    """Returns the cells of one way to suggest."""
    times: list[float] = []
    letters = saved = first = 0
    for begin, end in chosen:
        context, word = text[max(0, begin - CONTEXT) : begin], text[begin:end]
        letters += len(word)
        for count in range(len(word)):
            started = time.perf_counter()
            found = suggest(context, word[:count])
            if count:  # a new text is read at its first letter, which no keystroke asks for
                times.append(1e3 * (time.perf_counter() - started))
            if word in found:
                saved += len(word) - count
                first += count == 0
                break
    cuts = statistics.quantiles(times, n=100)
    return [
        f"{len(times):,}", f"{statistics.median(times):.1f}", f"{cuts[94]:.1f}", f"{cuts[98]:.1f}",
        f"{first / len(chosen):.0%}", f"{saved / letters:.0%}",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
