"""What keys and values in fewer bits cost in quality, and bring in bytes and speed.

For: the section "Keys and values in fewer bits" of benchmarks/compression.md.
Not for: weights in fewer bits (`benchmarks/quantization.py`).
Read next: `docs/engine.md`, "Keys and values".

    python benchmarks/cache_types.py quality models/en-6m novels.txt --tokens 16384
    python benchmarks/cache_types.py speed --shape qwen2-0.5b --layers 4 --contexts 512 8192

Quality: KL, perplexity ratio and equal first choices of each type against the float16 cache, over
whole contexts of the model from the end of the text, with float activations. Speed: a shape with
random weights (Q4_0, next to no vocabulary); engines of all types hold the same prompt and take
one id after another in turns; the ratio of a pair is float16's time over the other's. With
`--clock cpu` the seconds are those of the processor, for a machine on which others work.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from engine_models import SHAPES
from engine_pairs import interval
from sparse import Model, weights_of

from miudo.config import ModelConfig
from miudo.engine.native import CACHE_TYPES, CacheType, NativeEngine
from miudo.formats import ModelFile, open_model
from miudo.protocol import SeqWork, Want
from miudo.report import Table, text_table
from miudo.tensors import DType
from miudo.text.tokenizer import TextTokenizer

PARENT: CacheType = "f16"
SHORT_VOCABULARY = 64  # so that next to nothing but blocks, keys and values is read
ALL_DENSE = "0%"
PROMPT_STEP = 256

Floats = npt.NDArray[np.float64]


def main() -> None:
    options = parse()
    table = quality(options) if options.part == "quality" else speed(options)
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    print(text_table(table))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(dest="part", required=True)
    part = parts.add_parser("quality")
    part.add_argument("model", type=Path)
    part.add_argument("text", type=Path)
    part.add_argument("--tokens", type=int, default=16384)
    part = parts.add_parser("speed")
    part.add_argument("--shape", choices=tuple(SHAPES), default="qwen2-0.5b")
    part.add_argument("--layers", type=int, default=24)
    part.add_argument("--contexts", type=int, nargs="+", default=[512, 8192])
    part.add_argument("--pairs", type=int, default=15)
    part.add_argument("--tokens", type=int, default=4)
    part.add_argument("--threads", type=int, default=2)
    part.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    return parser.parse_args()


def quality(options: argparse.Namespace) -> Table:
    model = open_model(options.model)
    windows = list(windows_of(model, options.text.read_text("utf-8"), options.tokens))
    engines = {cache: engine_of(model, cache) for cache in CACHE_TYPES}
    sums = {cache: np.zeros(3) for cache in CACHE_TYPES}  # KL, loss, equal first choices
    for ids in windows:
        right = log_probabilities(engines[PARENT], ids)
        for cache, engine in engines.items():
            log_q = right if cache == PARENT else log_probabilities(engine, ids)
            kl = (np.exp(right) * (right - log_q)).sum(1).mean()
            loss = -log_q[np.arange(len(ids) - 1), ids[1:]].mean()
            sums[cache] += kl, loss, (log_q.argmax(1) == right.argmax(1)).mean()
    rows = []
    for cache, total in sums.items():
        kl, loss, same = total / len(windows)
        ratio = math.exp(loss - sums[PARENT][1] / len(windows))
        bytes_each = engines[cache].page_bytes / engines[cache].page_positions
        rows.append([cache, f"{bytes_each:.0f}", f"{kl:.2e}", f"{ratio:.5f}", f"{same:.2%}"])
    return Table(("cache", "bytes a position", "KL", "perplexity ratio", "same first"), rows)


def windows_of(model: ModelFile, text: str, tokens: int) -> Iterator[list[int]]:
    """Whole contexts of the model from the end of the text, `tokens` in all."""
    if model.tokenizer is None:
        raise SystemExit("the model has no tokenizer")
    length = model.config.max_positions
    ids = TextTokenizer(model.tokenizer).encode(text[-8 * tokens :])[-tokens:]
    for at in range(0, len(ids) - length + 1, length):
        yield ids[at : at + length]


def engine_of(model: ModelFile | Model, cache: CacheType) -> NativeEngine:
    return NativeEngine(model, threads=1, activations="float", cache=cache)


def log_probabilities(engine: NativeEngine, ids: list[int]) -> Floats:
    """Float64 [T, V]."""
    conversation = engine.open()
    (out,) = engine.step([SeqWork(conversation, ids, Want.ALL_LOGITS)])
    engine.close(conversation)
    if out.logits is None:
        raise RuntimeError("no logits were given")
    logits = out.logits.astype(np.float64)
    greatest = logits.max(1, keepdims=True)
    result: Floats = logits - greatest - np.log(np.exp(logits - greatest).sum(1, keepdims=True))
    return result


def speed(options: argparse.Namespace) -> Table:
    shape = SHAPES[options.shape]
    config = ModelConfig.uniform(
        n_layers=options.layers,
        d_model=shape["hidden_size"],
        n_heads=shape["num_attention_heads"],
        n_kv_heads=shape["num_key_value_heads"],
        d_ff=shape["intermediate_size"],
        vocab_size=SHORT_VOCABULARY,
        max_positions=max(options.contexts) + (options.pairs + 2) * options.tokens,
        qkv_bias=True,
    )
    model = Model(config, weights_of(config, DType.Q4_0, ALL_DENSE))
    types = [cache for cache in CACHE_TYPES if cache != "f32"]
    engines = {cache: NativeEngine(model, threads=options.threads, cache=cache) for cache in types}
    rows = []
    for context in options.contexts:
        took = times(engines, context, options)
        for cache, engine in engines.items():
            ratio = interval([a / b for a, b in zip(took[PARENT], took[cache], strict=True)])
            ms = 1e3 * float(np.median(took[cache])) / options.tokens
            held = engine.page_bytes // engine.page_positions * context / 1e6
            rows.append(
                [str(context), cache, f"{held:.1f}", f"{ms:.2f}", f"{ratio.median:.3f}",
                 f"{ratio.low:.3f}", f"{ratio.high:.3f}"]
            )  # fmt: skip
    return Table(("context", "cache", "MB", "ms a token", "speed", "from", "to"), rows)


def times(
    engines: dict[CacheType, NativeEngine], context: int, options: argparse.Namespace
) -> dict[CacheType, list[float]]:
    """Seconds of some tokens after `context` ids, by type, turn by turn."""
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    draw = np.random.default_rng(1)
    prompt = draw.integers(0, SHORT_VOCABULARY, context).tolist()
    held = {cache: engine.open() for cache, engine in engines.items()}
    for cache, engine in engines.items():
        for at in range(0, context, PROMPT_STEP):
            engine.step([SeqWork(held[cache], prompt[at : at + PROMPT_STEP], Want.NOTHING)])
    took: dict[CacheType, list[float]] = {cache: [] for cache in engines}
    for turn in range(options.pairs + 1):
        ids = draw.integers(0, SHORT_VOCABULARY, options.tokens).tolist()
        for cache in engines if turn % 2 else reversed(engines):
            start = clock()
            for token in ids:
                engines[cache].step([SeqWork(held[cache], [token], Want.LAST_LOGITS)])
            if turn:  # the first warms up
                took[cache].append(clock() - start)
    for cache, engine in engines.items():
        engine.close(held[cache])
    return took


if __name__ == "__main__":
    main()
