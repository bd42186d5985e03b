"""The engine's figures beside its peers on this machine, each ratio from pairs of one run.

For: every speed, memory and start that the engine must reach, in one table, met or not.
Not for: one model's own figures (`miudo bench`), or speculation.
Read next: `engine_rows.py` for what is measured, `engine_pairs.py` for how.

    peers='--llama-cpp PYTHON --onnx PYTHON --openvino PYTHON'
    python benchmarks/engine_models.py runs/engine $peers
    python benchmarks/engine.py runs/engine $peers --json runs/engine.json
    python benchmarks/engine.py runs/engine $peers --only 'qwen2-0.5b-q4-decode-*'

Each PYTHON is the interpreter of an environment with one peer from PyPI: llama-cpp-python built
here from source; onnxruntime-genai with onnx_ir, torch and transformers; openvino-genai with
optimum-intel and nncf, without torchvision. xllamacpp, the AVX2 peer, is looked for in this
Python. A peer that is not here leaves its cells empty. Ids are random and the choice greedy; it
counts.

A figure is the median of ratios of neighbours in time; its interval is between order statistics.
"load" is the most cores that other programs took in a sample. "met" says which bound the median
reaches, with a question mark where the interval does not, where there are fewer than six pairs, or
where the load is 0.15 or more: such figures say little. On a busy machine "--cpu --threads 1" still
tells how much work each does: nobody waits for another thread, and what others take is not counted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from engine_lines import HEADERS, Line, Result, line_of, memory_line, speed_cells
from engine_once import most_memory
from engine_pairs import NotMeasured, in_turns
from engine_rows import LLAMA, MEMORY_FILES, ONNX, OPENVINO, Row, file_of, rows, title
from engine_sides import Runtimes

from miudo.records import environment
from miudo.report import Table, text_table

SPEEDS = ("", "side", "median", "least to greatest", "load", "stolen")


def main() -> None:
    """Measures the chosen rows and prints both tables."""
    given = arguments()
    chosen = [row for row in rows(brief=given.brief) if wanted(row.name, given)]
    memory = {name: files for name, files in MEMORY_FILES.items() if wanted(name, given)}
    if given.list:
        print("\n".join([*(row.name for row in chosen), *memory]))
        return
    if hasattr(os, "sched_setaffinity"):  # so that one busy neighbour takes one of these cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.threads])
    print(machine(given), flush=True)
    pythons = {LLAMA: given.llama_cpp, ONNX: given.onnx, OPENVINO: given.openvino}
    runtimes = Runtimes(given.models, pythons, given.threads, by_cpu=given.cpu)
    results = []
    for row in chosen:
        results.append(measured(row, runtimes, given))
        write(given, results, [], runtimes.versions)
    runtimes.only_for(None)
    sizes = [memory_of(shape, kind, given) for shape, kind in memory.values()]
    write(given, results, sizes, runtimes.versions)
    show([line for result in results for line in result.lines] + sizes, results, runtimes.versions)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, help="a folder of engine_models.py")
    parser.add_argument("--llama-cpp", type=Path, metavar="PYTHON")
    parser.add_argument("--onnx", type=Path, metavar="PYTHON")
    parser.add_argument("--openvino", type=Path, metavar="PYTHON")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="ROW", help="names or patterns")
    parser.add_argument("--list", action="store_true", help="print the names of rows")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--brief", action="store_true", help="few tokens: only to see all run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu", action="store_true", help="seconds of CPU, not of the clock")
    parser.add_argument("--quiet-below", type=float, default=0.15, help="foreign cores of a pair")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples here")
    return parser.parse_args()


def wanted(name: str, given: argparse.Namespace) -> bool:
    return any(fnmatch(name, pattern) for pattern in given.only)


def measured(row: Row, runtimes: Runtimes, given: argparse.Namespace) -> Result:
    runtimes.only_for(row)
    sides = {name: runtimes.side(side) for name, side in row.sides.items()}
    print(row.title, file=sys.stderr)
    samples, missing = in_turns(sides, given.pairs, given.quiet_below, progress)
    quiet = 0.0 if given.cpu else given.quiet_below  # bounds are by the clock
    lines = [line_of(row, check, samples, given.models, quiet) for check in row.checks]
    return Result(row.name, row.title, lines, samples, missing)


def progress(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


def memory_of(shape: str, kind: str, given: argparse.Namespace) -> Line:
    what, path = title(shape, kind, "memory"), given.models / file_of(shape, kind)
    if not path.exists():
        return Line(what, "MB above idle", "-", "-")
    try:
        return memory_line(what, *most_memory(path, given.threads))
    except NotMeasured as error:
        progress(f"{what}: {error}")
        return Line(what, "MB above idle", "-", "-")


def machine(given: argparse.Namespace) -> str:
    """Returns what the numbers hang on."""
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    about = environment() | {"commit": commit, "threads": given.threads, "cores": os.cpu_count()}
    return ", ".join(f"{name} {value}" for name, value in about.items())


def show(lines: list[Line], results: list[Result], versions: dict[str, str]) -> None:
    words = frozenset({0, 1, 6})
    print(f"\n{text_table(Table(HEADERS, [line.cells() for line in lines], text_columns=words))}")
    speeds = [cells for result in results for cells in speed_cells(result)]
    if speeds:
        print(f"\n{text_table(Table(SPEEDS, speeds, text_columns=frozenset({0, 1})))}\n")
    print("\n".join(f"{name} {version}" for name, version in versions.items()))


def write(
    given: argparse.Namespace, results: list[Result], sizes: list[Line], versions: dict[str, str]
) -> None:
    """Writes all that is known so far: a run takes long, and may be stopped."""
    if given.json is None:
        return
    whole: dict[str, Any] = {
        "machine": machine(given),
        "versions": versions,
        "rows": [dataclasses.asdict(result) for result in results],
        "memory": [dataclasses.asdict(line) for line in sizes],
    }
    given.json.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
