"""What a token needs at least: bytes and operations of three shapes, from their configs alone.

For: the claim in docs/log.md about what bounds each shape; no model is run.
Not for: the speed of a model here (`miudo bench`).
Read next: `miudo.evaluate.roofline`.

    python benchmarks/floors.py [--read 28.8 --int8 807 --float 206]

The last two columns are tokens a second of a machine that did nothing else, at so many GB/s of
plain reading and Gop/s; what is not given is measured.
"""

from __future__ import annotations

import argparse
import os

from miudo.config import ModelConfig
from miudo.engine.probe import Peaks, beyond_cache_bytes, measure_peaks
from miudo.evaluate.roofline import Numbers, bounds, step_work
from miudo.report import Table, text_table
from miudo.tensors import DType, Role, tensor_table

SHAPES = {
    "Qwen2 0.5B": ModelConfig.uniform(
        vocab_size=151936, d_model=896, n_layers=24, n_heads=14, n_kv_heads=2, d_ff=4864,
        max_positions=32768, qkv_bias=True,
    ),
    "TinyLlama 1.1B": ModelConfig.uniform(
        vocab_size=32000, d_model=2048, n_layers=22, n_heads=32, n_kv_heads=4, d_ff=5632,
        max_positions=2048, tie_embeddings=False,
    ),
    "15M": ModelConfig.uniform(
        vocab_size=32000, d_model=288, n_layers=6, n_heads=6, d_ff=768, max_positions=2048,
    ),
}  # fmt: skip
# Matrices, and table and head: as llama.cpp's quantiser leaves a file, or all alike.
FILES = (("Q4_0", "Q8_0"), ("Q4_0", "Q4_0"), ("Q8_0", "Q8_0"))
STEPS = (("token from 16", 16, 1), ("token from 512", 512, 1), ("prompt of 512", 0, 512))


def main() -> None:
    """Prints the table."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--read", type=float, help="GB/s")
    options.add_argument("--int8", type=float, help="Gop/s")
    options.add_argument("--float", type=float, help="Gop/s")
    given = options.parse_args()
    peaks = measure_peaks(len(os.sched_getaffinity(0)), beyond_cache_bytes())
    peaks = Peaks(
        peaks.read_bytes,
        given.read * 1e9 if given.read else peaks.read_bytes_per_s,
        given.int8 * 1e9 if given.int8 else peaks.int8_ops_per_s,
        given.float * 1e9 if given.float else peaks.float_ops_per_s,
    )
    rows = [
        row(f"{name} {matrices}, head {head}", config, (DType(matrices), DType(head)), step, peaks)
        for name, config in SHAPES.items()
        for matrices, head in FILES
        for step in STEPS
    ]
    headers = ("shape", "step", "weights MB", "keys, values MB", "int8 Gop", "float Gop",
               "reading tok/s", "arithmetic tok/s")  # fmt: skip
    print(text_table(Table(headers, rows, text_columns=frozenset({0, 1}))))
    rates = peaks.read_bytes_per_s, peaks.int8_ops_per_s, peaks.float_ops_per_s
    print("at {:.1f} GB/s, {:.0f} Gop/s int8, {:.0f} float".format(*(r / 1e9 for r in rates)))


def row(
    name: str,
    config: ModelConfig,
    kinds: tuple[DType, DType],
    step: tuple[str, int, int],
    peaks: Peaks,
) -> tuple[str, ...]:
    """Returns the cells of one step; bytes and operations are of the whole step."""
    label, held, taken = step
    types = {
        spec.name: DType.F32 if len(spec.shape) == 1
        else kinds[spec.role in (Role.EMBED, Role.HEAD)]
        for spec in tensor_table(config)
    }  # fmt: skip
    work = step_work(config, Numbers(types), [(held, taken)])
    moving, computing = bounds(work, peaks)
    return (
        name,
        label,
        f"{work.weight_bytes / 1e6:.1f}",
        f"{work.cache_bytes / 1e6:.2f}",
        f"{work.int8_ops / 1e9:.3f}",
        f"{work.float_ops / 1e9:.3f}",
        f"{taken / moving:,.0f}",
        f"{taken / computing:,.0f}",
    )


if __name__ == "__main__":
    main()
