"""What a LoRA adapter costs while a model writes: new tokens a CPU second with and without one.

For: the price of the side path on the native engine, and that there is none without an adapter.
Not for: what an adapter teaches; its numbers here are noise.
Read next: `native/model/adapter.cc`.

    python benchmarks/adapter_cost.py                     # the embedded model, rank 8, all matrices
    python benchmarks/adapter_cost.py --model m.gguf --rank 16 --threads 2 --batch 8
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from pathlib import Path

import numpy as np

from miudo.adapter import Adapter, LowRank
from miudo.config import ModelConfig
from miudo.engine.native import NativeEngine
from miudo.formats import open_model
from miudo.hub.resolve import embedded_path
from miudo.protocol import SeqWork
from miudo.tensors import Role, tensor_table


def main() -> None:
    """Measures in turns, so that what changes slowly on the machine falls on both."""
    options = parse()
    model = open_model(options.model)
    engine = NativeEngine(model, threads=options.threads, activations=options.activations)
    engine.add_adapter("noise", noise(model.config, options.rank))
    rates: dict[str | None, list[float]] = {None: [], "noise": []}
    for round_number in range(options.rounds + 1):
        order = list(rates) if round_number % 2 else list(rates)[::-1]
        for name in order:
            rate = tokens_per_cpu_s(engine, name, options)
            if round_number:  # the first warms up
                rates[name].append(rate)
    print(
        f"{platform.machine()} {os.cpu_count()} cores, {engine.isa}, threads {engine.threads}, "
        f"{options.activations} activations, batch {options.batch}, {options.rounds} rounds of "
        f"{options.tokens} tokens, load {os.getloadavg()[0]:.2f}"
    )
    for name, found in rates.items():
        label = "no adapter" if name is None else f"rank {options.rank} on every matrix"
        low, high = min(found), max(found)
        median = statistics.median(found)
        print(f"{label:<24} {median:9,.0f} tokens a CPU s (lowest {low:,.0f}, highest {high:,.0f})")
    pairs = zip(rates["noise"], rates[None], strict=True)
    print(f"with / without           {statistics.median(a / b for a, b in pairs):9.3f}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=embedded_path())
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--activations", choices=("int8", "float"), default="int8")
    return parser.parse_args()


def noise(config: ModelConfig, rank: int) -> Adapter:
    rng = np.random.default_rng(0)
    parts = {}
    for spec in tensor_table(config):
        if spec.role in (Role.ATTENTION, Role.MLP):
            down = rng.standard_normal((rank, spec.shape[1])).astype(np.float32)
            up = rng.standard_normal((spec.shape[0], rank)).astype(np.float32)
            parts[spec.name] = LowRank(down, up, 0.01)
    return Adapter(parts)


def tokens_per_cpu_s(
    engine: NativeEngine, adapter: str | None, options: argparse.Namespace
) -> float:
    """CPU seconds of all threads: what runs beside on the machine counts less."""
    conversations = [engine.open() for _ in range(options.batch)]
    batch = [SeqWork(c, [1, 2, 3], adapter=adapter) for c in conversations]
    outs = engine.step(batch)
    start = time.process_time()
    for _ in range(options.tokens):
        outs = engine.step([SeqWork(o.conversation, [o.token or 0], adapter=adapter) for o in outs])
    took = time.process_time() - start
    for conversation in conversations:
        engine.close(conversation)
    return options.tokens * options.batch / took


if __name__ == "__main__":
    main()
