"""A LoRA step beside PEFT: same shape, rank, matrices, batch, precision and optimiser.

For: tokens a second and peak memory of adapting a model on this machine.
Not for: quality; both learn from the same random ids.
Read next: `miudo.decoder.lora`, `benchmarks/train_speed.py`.

    python benchmarks/lora_speed.py                       # presets 1m and 6m, alternating
    python benchmarks/lora_speed.py --steps 40 --rounds 3 # on a quiet machine
    python benchmarks/lora_speed.py --also miudo-compiled # compilation is not in the steady speed
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

BATCH, LENGTH, RANK, ALPHA = 16, 256, 8, 16
WARM = 2  # steps that are not counted: allocation, thread pools
WORKERS = ("miudo", "peft")
NAMES = {"miudo": "miudo (eager)", "miudo-compiled": "miudo (compiled)", "peft": "PEFT"}
# The same seven matrices of every block, by the names that each side has for them.
PEFT_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Tick(NamedTuple):
    """Seconds by the clock, and CPU seconds of all threads of this process."""

    wall: float
    cpu: float


def tick() -> Tick:
    return Tick(time.perf_counter(), time.process_time())


def main() -> None:
    """Runs the workers in turns, shape by shape, and prints a table."""
    options = parse()
    if options.worker:
        print(json.dumps(measure(options)))
        return
    print(machine(), flush=True)
    rows = []
    for preset in options.shapes:
        found = rounds_of(preset, options)
        rows += table_rows(preset, found)
    from miudo.report import Table, text_table

    headers = ["shape", "", "tokens/s", "a CPU s", "spread", "x PEFT", "peak MB", "x PEFT"]
    caption = f"batch {BATCH} x {LENGTH}, rank {RANK}, all seven matrices, {options.precision}, "
    caption += f"AdamW, {options.rounds} rounds of {options.steps} steps, medians"
    print(f"\n{caption}\n{text_table(Table(headers, rows, text_columns=frozenset({0, 1})))}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="*", default=["1m", "6m"], help="presets")
    parser.add_argument("--steps", type=int, default=10, help="measured steps a round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, help="default: PyTorch's own choice")
    parser.add_argument("--precision", choices=("bf16", "f32"), help="default: bf16 where native")
    parser.add_argument("--also", nargs="*", default=[], choices=sorted(set(NAMES) - set(WORKERS)))
    parser.add_argument("--worker", choices=sorted(NAMES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.precision is None:
        from miudo.train.plan import native_bf16

        options.precision = "bf16" if native_bf16("cpu") else "f32"
    return options


def rounds_of(preset: str, options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Returns what every worker measured, each in a process of its own, in turns."""
    chosen = [*WORKERS, *options.also]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    for number in range(options.rounds):
        # A b, b a: what changes slowly on the machine falls on both.
        for name in chosen if number % 2 == 0 else reversed(chosen):
            load = os.getloadavg()[0]
            command = [sys.executable, __file__, "--worker", name, "--shapes", preset]
            command += ["--steps", str(options.steps), "--precision", options.precision]
            if options.threads:
                command += ["--threads", str(options.threads)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{name} failed:\n{done.stderr[-4000:]}")
            result = json.loads(done.stdout.splitlines()[-1])
            found[name].append(result)
            print(
                f"{preset}  round {number + 1}  {NAMES[name]:<18}"
                f"{result['tokens_per_s']:9,.0f} tokens/s  "
                f"{result['tokens_per_cpu_s']:9,.0f} a CPU s  "
                f"{result['peak_bytes'] / 1e6:6,.0f} MB  "
                f"load before {load:.2f}",
                flush=True,
            )
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the worker's steady speed, its process's peak memory and what it trains."""
    import torch

    from miudo.meter import peak_memory

    warnings.filterwarnings("ignore")
    if options.threads:
        torch.set_num_threads(options.threads)
    side = step_of_peft if options.worker == "peft" else step_of_miudo
    times, trained = side(options)
    gaps = [(b.wall - a.wall, b.cpu - a.cpu) for a, b in itertools.pairwise(times)][WARM:]
    wall, cpu = (statistics.median(column) for column in zip(*gaps, strict=True))
    return {
        "tokens_per_s": BATCH * LENGTH / wall,
        "tokens_per_cpu_s": BATCH * LENGTH / cpu,
        "peak_bytes": peak_memory().value,
        "trained": trained,
    }


def step_of_miudo(options: argparse.Namespace) -> tuple[list[Tick], int]:
    """Returns the time after every step of `fit`, and the trained parameters."""
    from miudo.decoder.decoder import Decoder
    from miudo.decoder.lora import LoraSettings, add_lora
    from miudo.presets import load_preset
    from miudo.train.loop import fit
    from miudo.train.progress import Silent, StepReport
    from miudo.train.settings import FitSettings

    times: list[Tick] = []

    class Clock(Silent):
        def note(self, text: str) -> None:
            times.append(tick())  # the plan: just before the first step

        def report(self, step: StepReport) -> None:
            times.append(tick())

    config = load_preset(options.shapes[0])
    decoder = Decoder(config)
    decoder.initialise(0)
    add_lora(decoder, LoraSettings(rank=RANK, alpha=float(ALPHA)), 0)
    settings = FitSettings(
        steps=options.steps + WARM,
        batch_size=BATCH,
        length=LENGTH,
        optimizer="adamw",
        precision=options.precision,
        compile="on" if "compiled" in options.worker else "off",
        save_every=0,
        log_every=1,
    )
    with tempfile.TemporaryDirectory() as out:
        fit(decoder, RandomTokens(config.vocab_size), settings, Path(out), progress=Clock())
    return times, sum(p.numel() for p in decoder.parameters() if p.requires_grad)


def step_of_peft(options: argparse.Namespace) -> tuple[list[Tick], int]:
    """Returns the same of a plain loop over a PEFT model of the same shape.

    A bare loop, as PEFT's own examples have it: nothing that a Trainer adds is charged to it.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from miudo.families.llama import LLAMA
    from miudo.presets import load_preset

    config = load_preset(options.shapes[0])
    values = LLAMA.config_to_hf(config)
    for key in ("architectures", "model_type"):
        values.pop(key)
    model = get_peft_model(
        LlamaForCausalLM(LlamaConfig(**values)),
        LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, target_modules=PEFT_TARGETS),
    )
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3, betas=(0.9, 0.95), fused=True)
    data = RandomTokens(config.vocab_size)
    times = [tick()]
    for step in range(options.steps + WARM):
        ids = torch.from_numpy(data.batch(0, step, BATCH, LENGTH)[:, :-1]).long()
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16"):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append(tick())
    return times, sum(p.numel() for p in trained)


class RandomTokens:
    """Ids in memory: no side waits for a disk."""

    sha256 = "random"

    def __init__(self, vocabulary: int) -> None:
        import numpy as np

        generator = np.random.Generator(np.random.Philox(0))
        self.ids = generator.integers(0, vocabulary, (1024, LENGTH + 1), dtype=np.int32)

    def n_blocks(self, length: int) -> int:
        """Returns how many blocks there are."""
        return len(self.ids)

    def block(self, index: int, length: int) -> Any:
        """Returns ids [length + 1]."""
        return self.ids[index]

    def batch(self, seed: int, step: int, batch_size: int, length: int) -> Any:
        """Returns ids [batch_size, length + 1]."""
        import numpy as np

        return self.ids[np.arange(step * batch_size, (step + 1) * batch_size) % len(self.ids)]


def machine() -> str:
    """Returns what the numbers hang on."""
    versions = ", ".join(f"{p} {metadata.version(p)}" for p in ("torch", "transformers", "peft"))
    cpu = next(
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    return f"{cpu}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}"


def table_rows(preset: str, found: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    """Returns a row a worker: medians, the spread of CPU speed, and both beside PEFT's."""
    kinds = ("tokens_per_s", "tokens_per_cpu_s", "peak_bytes")
    middles = {
        name: [statistics.median(f[kind] for f in results) for kind in kinds]
        for name, results in found.items()
    }
    _, base_speed, base_peak = middles["peft"]
    rows = []
    for name, (by_clock, speed, peak) in middles.items():
        speeds = [f["tokens_per_cpu_s"] for f in found[name]]
        rows.append(
            [
                preset,
                NAMES[name],
                f"{by_clock:,.0f}",
                f"{speed:,.0f}",
                f"{min(speeds):,.0f}-{max(speeds):,.0f}",
                f"{speed / base_speed:.2f}",
                f"{peak / 1e6:,.0f}",
                f"{peak / base_peak:.2f}",
            ]
        )
    return rows


if __name__ == "__main__":
    main()
