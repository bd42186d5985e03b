"""What does a method that needs no training cost in time and memory?

For: `miudo quantize` and `miudo prune` as a user runs them, a process each: seconds, and the
peak of resident memory beside the bound of parent, one layer's statistics and 500 MB.
Not for: what a method keeps of the model (`benchmarks/quantization.py`, `benchmarks/pruning.py`).
Read next: `docs/quantization.md`.

    miudo train --data DATA --preset 30m --tokens 65536 --out runs/30m
    python benchmarks/oneshot_costs.py runs/30m/model --data DATA --out runs/oneshot-costs

A model costs the same whatever it has learned, so that a fresh one of the shape does. The peak
is the operating system's own count for the ended process (`ru_maxrss`); PyTorch alone is in it.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from miudo.config import ModelConfig
from miudo.formats import open_model
from miudo.report import Table, text_table

MB = 1e6
CEILING = 500.0  # MB beside parent and statistics, as the goal has it
ZEROS = ("magnitude", "wanda", "sparsegpt")
HEADERS = ("method", "wall s", "CPU s", "peak MB", "bound MB", "above the parent MB")


def main() -> None:
    given = arguments()
    given.out.mkdir(parents=True)  # what is there would be refused
    config = open_model(given.model).config
    parent, layer = floats(given.model) / MB, statistics_bytes(config) / MB
    bound = parent + layer + CEILING
    print(f"parent in float32 {parent:.0f} MB, one layer's statistics {layer:.0f} MB")
    rows = []
    for name, command in commands(given):
        if given.only and name not in given.only:
            continue
        wall, cpu, peak = cost(command, given.threads)
        row = (f"{wall:.1f}", f"{cpu:.1f}", f"{peak:.0f}", f"{bound:.0f}", f"{peak - parent:.0f}")
        rows.append((name, *row))
        print(name, *row, file=sys.stderr, flush=True)
    print(text_table(Table(HEADERS, rows)))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="a data folder of its tokenizer")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dtype", default="Q4_K")
    parser.add_argument("--only", nargs="+", metavar="METHOD", help="as the table names them")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    return parser.parse_args()


def floats(model: Path) -> int:
    """Returns the bytes of a model's numbers in float32."""
    return 4 * sum(math.prod(tensor.shape) for tensor in open_model(model).weights.values())


def statistics_bytes(config: ModelConfig) -> int:
    """Returns the bytes of one layer's curvatures in float64: a square for each width read."""
    first = config.layers[0]
    read = (config.d_model, config.d_model, first.n_heads * first.head_dim, first.d_ff)
    return 8 * sum(width**2 for width in read)


def commands(given: argparse.Namespace) -> Iterator[tuple[str, Sequence[str]]]:
    """Yields every method's name and command line."""
    model, data = str(given.model), ("--data", str(given.data))
    yield "the parent opened", ("show", model)
    for method in ("nearest", "importance", "gptq", "awq", "learned"):
        out = ("--out", str(given.out / f"{method}.gguf"))
        read = () if method == "nearest" else data
        yield method, ("quantize", model, "--dtype", given.dtype, "--method", method, *read, *out)
    cuts = {
        **{f"zeros by {m}": ("--sparsity", "0.5", "--method", m) for m in ZEROS},
        "heads and width, repaired": ("--kv-groups", "0.5", "--width", "0.5", "--repair"),
    }
    for name, cut in cuts.items():
        yield name, ("prune", model, *data, *cut, "--out", str(given.out / name.replace(" ", "-")))


def cost(command: Sequence[str], threads: int) -> tuple[float, float, float]:
    """Returns seconds on the wall, CPU seconds and the peak in MB; stops where it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    begin = time.perf_counter()
    started = subprocess.Popen(
        [sys.executable, "-m", "miudo", *command],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert started.stderr is not None  # noqa: S101 - a pipe was asked for
    with started.stderr:
        said = started.stderr.read().decode()
    _, status, used = os.wait4(started.pid, 0)
    started.returncode = os.waitstatus_to_exitcode(status)
    if started.returncode:
        sys.exit(f"miudo {' '.join(command)}\n{said}")
    wall = time.perf_counter() - begin
    return wall, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / MB


if __name__ == "__main__":
    main()
