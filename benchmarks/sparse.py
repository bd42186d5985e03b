"""What leaving zeros out saves and brings: bytes, and tokens a second, against the dense matrices.

For: the claims of docs/sparse.md, on the shapes of Qwen2 0.5B with random weights.
Not for: what pruning costs in quality (`benchmarks/pruning.py`).
Read next: `miudo.formats.sparse`, `native/kernels/sparse.h`.

    python benchmarks/sparse.py                          # all patterns, matrices alone
    python benchmarks/sparse.py --whole                  # with token table and head, in Q8_0
    python benchmarks/sparse.py --layers 2 --threads 1   # what stays in the third-level cache

The dense and the sparse model run in turns, some tokens each, and each pair must give the same
logits to the last bit. The ratio of a pair is dense time over sparse time. With `--clock cpu` the
seconds are those of the processor, for a machine on which others work.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from engine_models import SHAPES, SIZE_OF_WEIGHTS
from engine_pairs import interval

from miudo.config import ModelConfig
from miudo.engine.native import NativeEngine
from miudo.formats.blocks import encode
from miudo.formats.sparse import bits_per_weight, sparse_weights, zeros_of
from miudo.protocol import SeqWork, Want
from miudo.report import Table, text_table
from miudo.tensors import DType, Role, StoredTensor, Weights, tensor_table

PATTERNS = ("2:4", "40%", "50%", "60%", "70%", "80%")
TYPES = {DType.Q4_0: DType.SPARSE4, DType.Q8_0: DType.SPARSE8}
SHORT_VOCABULARY = 64  # so that next to nothing but blocks is read
HEADERS = (
    "pattern", "type", "zeros", "bits/weight", "file", "memory", "in memory", "speed", "from", "to",
)  # fmt: skip

Floats = npt.NDArray[np.float32]


class Model(NamedTuple):
    """What the engine needs."""

    config: ModelConfig
    weights: Weights


def main() -> None:
    options = parse()
    shape = SHAPES["qwen2-0.5b"]
    config = ModelConfig.uniform(
        n_layers=options.layers,
        d_model=shape["hidden_size"],
        n_heads=shape["num_attention_heads"],
        n_kv_heads=shape["num_key_value_heads"],
        d_ff=shape["intermediate_size"],
        vocab_size=shape["vocab_size"] if options.whole else SHORT_VOCABULARY,
        max_positions=4096,
        qkv_bias=True,
    )
    rows = []
    for dtype in TYPES:
        for pattern in options.patterns:
            sys.stderr.write(f"{dtype} {pattern}\n")
            rows.append(measured(config, dtype, pattern, options))
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}; "
        f"{options.layers} layers, {'whole' if options.whole else 'matrices alone'}, "
        f"{options.pairs} pairs of {options.tokens} x {options.prompt} ids, "
        f"threads {options.threads}, "
        f"{options.clock} clock"
    )
    print(text_table(Table(HEADERS, rows, text_columns=frozenset({0, 1, 6}))))
    print("file, memory: sparse matrices' bytes, and all that the engine holds, to dense ones'")
    for dtype, sparse in TYPES.items():
        dense = 8 * dtype.block_bytes / dtype.block
        even = (bits_per_weight(sparse, 0.0) - dense) / (
            bits_per_weight(sparse, 0.0) - bits_per_weight(sparse, 1.0)
        )
        print(f"{sparse} is smaller than {dtype} from {even:.1%} zeros on")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patterns", nargs="+", choices=PATTERNS, default=list(PATTERNS))
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--whole", action="store_true", help="Real vocabulary, head in Q8_0.")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=8, help="steps of each side of a pair")
    parser.add_argument("--prompt", type=int, default=1, help="ids of a step; 1: new tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    return parser.parse_args()


def measured(
    config: ModelConfig, dtype: DType, pattern: str, options: argparse.Namespace
) -> list[str]:
    """A line of the table."""
    dense = Model(config, weights_of(config, dtype, pattern))
    sparse = Model(config, made_sparse(config, dense.weights))
    moved = {n: t for n, t in sparse.weights.items() if t.dtype is not dense.weights[n].dtype}
    numbers = sum(t.shape[0] * t.shape[1] for t in moved.values())
    size = sum(t.size_bytes for t in moved.values())
    engines = [NativeEngine(model, threads=options.threads) for model in (dense, sparse)]
    held = [engine.weight_bytes for engine in engines]
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    shape = (options.pairs + 1, options.tokens, options.prompt)
    ratios = interval(ratios_of(engines, clock, shape))
    return [
        pattern,
        str(dtype),
        f"{zeros_of(moved):.1%}",
        f"{8 * size / numbers:.3f}",
        f"{size / sum(dense.weights[n].size_bytes for n in moved):.3f}",
        f"{held[1] / held[0]:.3f}",
        "dense" if held[1] >= held[0] else "pairs" if pattern == "2:4" else "masks",
        f"{ratios.median:.3f}",
        f"{ratios.low:.3f}",
        f"{ratios.high:.3f}",
    ]


def ratios_of(
    engines: list[NativeEngine], clock: Callable[[], float], shape: tuple[int, int, int]
) -> list[float]:
    """Dense seconds over sparse ones, pair by pair; raises if logits differ in a bit.

    `shape` is of pairs, one more to warm up, steps and ids of a step.
    """
    ids = np.random.default_rng(1).integers(0, engines[0].config.vocab_size, shape)
    ratios = []
    for pair in range(len(ids)):
        took, logits = [0.0, 0.0], [b"", b""]
        for side in (0, 1) if pair % 2 else (1, 0):
            held = engines[side].open()
            start = clock()
            for step in ids[pair].tolist():
                (out,) = engines[side].step([SeqWork(held, step, Want.LAST_LOGITS)])
            took[side] = clock() - start
            engines[side].close(held)
            logits[side] = b"" if out.logits is None else out.logits.tobytes()
        if logits[0] != logits[1]:
            raise SystemExit("the sparse model's logits are not the dense one's")
        if pair:  # the first warms up
            ratios.append(took[0] / took[1])
    return ratios


def weights_of(config: ModelConfig, dtype: DType, pattern: str) -> Weights:
    """Random weights, pruned by size in the blocks; every layer has the first one's."""
    draw = np.random.default_rng(0)
    weights: dict[str, StoredTensor] = {}
    for spec in tensor_table(config):
        if spec.layer:
            weights[spec.name] = weights[spec.name.replace(f".{spec.layer}.", ".0.", 1)]
            continue
        values = draw.standard_normal(spec.shape, dtype=np.float32) * np.float32(SIZE_OF_WEIGHTS)
        if spec.lowest is DType.F32:
            values = np.full(spec.shape, spec.role is Role.NORM, dtype=np.float32)
            weights[spec.name] = StoredTensor.from_f32(values)
        elif spec.role in (Role.ATTENTION, Role.MLP):
            weights[spec.name] = encode(pruned(values, pattern), dtype)
        else:
            weights[spec.name] = encode(values, DType.Q8_0)
    return weights


def made_sparse(config: ModelConfig, dense: Weights) -> Weights:
    """As `sparse_weights`, each layer sharing the first one's tensors."""
    one = ModelConfig.uniform(
        n_layers=1,
        d_model=config.d_model,
        n_heads=config.layers[0].n_heads,
        n_kv_heads=config.layers[0].n_kv_heads,
        d_ff=config.layers[0].d_ff,
        vocab_size=config.vocab_size,
        max_positions=config.max_positions,
        qkv_bias=True,
    )
    first = sparse_weights(one, dense)
    return {
        spec.name: first[
            spec.name.replace(f".{spec.layer}.", ".0.", 1) if spec.layer else spec.name
        ]
        for spec in tensor_table(config)
    }


def pruned(values: Floats, pattern: str) -> Floats:
    """The greatest of each row, or of each four of it, are kept."""
    if pattern == "2:4":
        four = values.reshape(-1, 4).copy()
        np.put_along_axis(four, np.argsort(np.abs(four), axis=1)[:, :2], np.float32(0), axis=1)
        return four.reshape(values.shape)
    share = float(pattern.rstrip("%")) / 100
    limit = np.quantile(np.abs(values), share, axis=1, keepdims=True)
    return np.where(np.abs(values) < limit, np.float32(0), values)


if __name__ == "__main__":
    main()
