"""Is a file's perplexity in llama.cpp what it is in miudo?

For: GGUF files that miudo wrote, whatever was cut, rounded or trained in them: perplexity over
the same ids of the same windows in both programs, and the ratio with its interval.
Not for: why two programs differ (`benchmarks/llama_cpp_agreement.py`), or speed.
Read next: `docs/quantization.md`.

    python benchmarks/llama_cpp_files.py runs/files/*.gguf --text runs/en-data --positions 1024

llama.cpp runs as it does by default but for its cache, which is float32 here. miudo runs with
its default, int8 activations, and with float ones. A file that llama.cpp does not open is named
below the table. The interval (95%) is of the mean difference of log-probabilities, position
by position.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import xllamacpp
from llama_cpp_agreement import Run, Z, llama_cpp, native, server, windows

from miudo.formats import ModelFile, open_model
from miudo.report import Table, text_table

MUST = 0.005
FEWEST = 100  # ids to score
HEADERS = (
    "file", "MB", "scored", "llama.cpp", "miudo, int8", "ratio", "95%", "miudo, float", "ratio"
)  # fmt: skip


def main() -> None:
    given = arguments()
    rows: list[tuple[str, ...]] = []
    beyond, closed = [], []
    for path in given.files:
        model = open_model(path)
        ids = list(windows(model, given.text, given.context, given.positions))
        if sum(len(window) - 1 for window in ids) < FEWEST:
            sys.exit(f"{given.text} has too few documents of {given.context} ids")
        try:
            running = server(path)
        except RuntimeError as error:
            closed.append(f"{path.name} ({error})")
            continue
        row, ratio = compared(path, model, running, ids)
        rows.append(row)
        print(*row, file=sys.stderr, flush=True)
        if abs(ratio - 1) > MUST:
            beyond.append(path.name)
    print(f"windows of {given.context} ids of {given.text}")
    print(text_table(Table(HEADERS, rows)))
    print(f"beyond {MUST:.1%} of llama.cpp's perplexity: {', '.join(beyond) or 'none'}")
    print(f"not opened by llama.cpp: {', '.join(closed) or 'none'}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument(
        "--text", type=Path, required=True, help="a file, .xz too, or a data folder's held-out part"
    )
    parser.add_argument("--positions", type=int, default=1024, help="ids read, at most")
    parser.add_argument(
        "--context", type=int, default=128, choices=range(2, 512), metavar="2..511",
        help="ids of a window",
    )  # fmt: skip
    return parser.parse_args()


def compared(
    path: Path, model: ModelFile, running: xllamacpp.Server, ids: Sequence[Sequence[int]]
) -> tuple[tuple[str, ...], float]:
    """Returns a row of the table, and miudo's perplexity (int8) over llama.cpp's."""
    theirs = list(told_by_llama_cpp(running, path, model, ids))
    rounded = list(told(native(model, "int8"), ids))
    exact = list(told(native(model, "float"), ids))
    ratio = perplexity(rounded) / perplexity(theirs)
    spread = statistics.stdev(a - b for a, b in zip(rounded, theirs, strict=True))
    return (
        path.name,
        f"{path.stat().st_size / 1e6:.2f}",
        f"{len(theirs)}",
        f"{perplexity(theirs):.3f}",
        f"{perplexity(rounded):.3f}",
        f"{ratio:.4f}",
        f"±{ratio * Z * spread / math.sqrt(len(theirs)):.4f}",
        f"{perplexity(exact):.3f}",
        f"{perplexity(exact) / perplexity(theirs):.4f}",
    ), ratio


def told(run: Run, texts: Sequence[Sequence[int]]) -> Iterator[float]:
    """Yields the log-probability of every id that another comes before."""
    for ids in texts:
        rows = run(ids[:-1])  # T V
        yield from (float(row[after]) for row, after in zip(rows, ids[1:], strict=True))


def told_by_llama_cpp(
    running: xllamacpp.Server, path: Path, model: ModelFile, texts: Sequence[Sequence[int]]
) -> Iterator[float]:
    """Yields the same from llama.cpp's server, a request a position.

    The bias draws the id that comes next in the text; the log-probability is of the logits
    before the bias. Half a character is held back with its log-probability: all ids then.
    """
    whole: Run | None = None
    for ids in texts:
        for n in range(1, len(ids)):
            answer = running.handle_completions(
                {
                    "prompt": list(ids[:n]),
                    "n_predict": 1,
                    "n_probs": 1,
                    "cache_prompt": n > 1,
                    "temperature": 0,
                    "logit_bias": [[ids[n], 1e6]],
                }
            )
            drawn = (answer["choices"][0].get("logprobs") or {}).get("content")
            if drawn and drawn[0]["id"] == ids[n]:
                yield float(drawn[0]["logprob"])
            else:
                whole = whole or llama_cpp(path, model, one_by_one=False)
                yield float(whole(ids[:n])[-1][ids[n]])


def perplexity(found: Sequence[float]) -> float:
    return math.exp(-statistics.fmean(found))


if __name__ == "__main__":
    main()
