"""Training speed beside the Hugging Face Trainer: same shape, batch, precision, optimiser.

For: the claim that a 30-minute run takes in at least 1.5 times the tokens, compilation counted.
Not for: quality; both learn from the same random ids.
Read next: `miudo.train.stepper`.

    python benchmarks/train_speed.py                    # about 5 minutes, alternating
    python benchmarks/train_speed.py --minutes 30       # each for 30 minutes, for real
    python benchmarks/train_speed.py --shape 1m         # a preset instead of 6.9M parameters
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
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

BATCH, LENGTH, VOCABULARY = 16, 256, 8192
RUN_S = 30 * 60
BLOCKS = 4096  # random ids in memory, more than the steps of a short measurement
WORKERS = ("miudo", "trainer")
NAMES = {
    "miudo": "miudo (compiled)",
    "miudo-eager": "miudo (eager)",
    "miudo-muon": "miudo (compiled, Muon)",
    "trainer": "transformers Trainer",
    "trainer-compiled": "transformers Trainer, torch_compile",
}


class Tick(NamedTuple):
    """Seconds by the clock, and CPU seconds of all threads of this process."""

    wall: float
    cpu: float


def tick() -> Tick:
    return Tick(time.perf_counter(), time.process_time())


def main() -> None:
    """Runs the workers in turns and prints the table."""
    options = parse()
    if options.worker:
        print(json.dumps(measure(options)))
        return
    chosen = list(dict.fromkeys([*WORKERS, *options.also]))
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    print(machine(), flush=True)
    for number in range(options.rounds):
        # A b, b a: what changes slowly on the machine falls on both.
        for name in chosen if number % 2 == 0 else reversed(chosen):
            load = os.getloadavg()[0]
            found = run_worker(name, options)
            rounds[name].append(found)
            print(
                f"round {number + 1}  {NAMES[name]:<38} {found['tokens_per_s']:8,.0f} tokens/s  "
                f"{found['tokens_per_cpu_s']:8,.0f} a CPU s  start {found['start_s']:5.1f} s  "
                f"load before {load:.2f}",
                flush=True,
            )
    table(rounds, options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40, help="measured steps a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="default: PyTorch's own choice")
    parser.add_argument("--minutes", type=float, help="instead: train each this long, once")
    parser.add_argument("--shape", default="6.9m", help="6.9m or a preset")
    parser.add_argument("--precision", choices=("bf16", "f32"), help="default: bf16 where native")
    parser.add_argument("--also", nargs="*", default=[], choices=sorted(set(NAMES) - set(WORKERS)))
    parser.add_argument("--worker", choices=sorted(NAMES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.minutes:
        options.rounds = 1
    options.precision = options.precision or default_precision()
    return options


def default_precision() -> str:
    """Returns what miudo itself would train in on this machine."""
    from miudo.train.plan import native_bf16

    return "bf16" if native_bf16("cpu") else "f32"


def run_worker(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Runs one side in a process of its own, so that neither warms the other."""
    command = [sys.executable, __file__, "--worker", name, "--shape", options.shape]
    command += ["--steps", str(options.steps), "--precision", options.precision]
    if options.threads:
        command += ["--threads", str(options.threads)]
    if options.minutes:
        command += ["--minutes", str(options.minutes)]
    # An empty compiler cache: what a user's first run pays.
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the worker's steady speed, its start-up, and in a timed run the tokens taken."""
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    side = train_miudo if options.worker.startswith("miudo") else train_peer
    began = time.perf_counter()
    times = side(options)
    gaps = [(b.wall - a.wall, b.cpu - a.cpu) for a, b in itertools.pairwise(times)]
    steady, cpu = (statistics.median(column) for column in zip(*gaps[3:], strict=True))
    # Compilation, allocation: what the first steps cost more.
    first = sum(wall for wall, _ in gaps[:3]) - 3 * steady
    result = {
        "tokens_per_s": BATCH * LENGTH / steady,
        "tokens_per_cpu_s": BATCH * LENGTH / cpu,
        "start_s": max(0.0, first),
    }
    if options.minutes:
        result["tokens"] = (len(times) - 1) * BATCH * LENGTH
        result["elapsed_s"] = time.perf_counter() - began
    return result


def train_miudo(options: argparse.Namespace) -> list[Tick]:
    """Returns the time of the start and of the end of every step of `fit`."""
    from miudo.decoder.decoder import Decoder
    from miudo.train.loop import fit
    from miudo.train.progress import Silent, StepReport
    from miudo.train.settings import FitSettings

    times: list[Tick] = []

    class Clock(Silent):
        def note(self, text: str) -> None:
            times.append(tick())  # the plan: just before the first step

        def report(self, step: StepReport) -> None:
            times.append(tick())

    steps = {"minutes": options.minutes} if options.minutes else {"steps": options.steps}
    settings = FitSettings(
        **steps,
        batch_size=BATCH,
        length=LENGTH,
        optimizer="muon" if "muon" in options.worker else "adamw",
        precision=options.precision,
        compile="off" if "eager" in options.worker else "on",
        save_every=0,
        log_every=1,
    )
    decoder = Decoder(shape(options.shape))
    decoder.initialise(0)
    with tempfile.TemporaryDirectory() as out:
        fit(decoder, RandomTokens(), settings, Path(out), progress=Clock())
    return times


def train_peer(options: argparse.Namespace) -> list[Tick]:
    """Returns the same times of a `Trainer` on a Llama of the same shape."""
    import torch
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    times: list[Tick] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *args: Any, **rest: Any) -> None:
            times.append(tick())

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            times.append(tick())
            if options.minutes and times[-1].wall - times[0].wall >= options.minutes * 60:
                control.should_training_stop = True

    config = shape(options.shape)
    layer = config.layers[0]
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            intermediate_size=layer.d_ff,
            num_hidden_layers=config.n_layers,
            num_attention_heads=layer.n_heads,
            num_key_value_heads=layer.n_kv_heads,
            head_dim=layer.head_dim,
            max_position_embeddings=config.max_positions,
            tie_word_embeddings=config.tie_embeddings,
        )
    )
    ids = torch.from_numpy(RandomTokens().ids[:, :-1].astype("int64"))
    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            output_dir=out,
            per_device_train_batch_size=BATCH,
            max_steps=10**9 if options.minutes else options.steps,
            bf16=options.precision == "bf16",
            use_cpu=True,
            optim="adamw_torch_fused",
            torch_compile="compiled" in options.worker,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        rows = [{"input_ids": row, "labels": row} for row in ids]
        Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[Clock()]).train()
    return times


class RandomTokens:
    """Ids in memory: no side waits for a disk."""

    sha256 = "random"

    def __init__(self) -> None:
        import numpy as np

        generator = np.random.Generator(np.random.Philox(0))
        self.ids = generator.integers(0, VOCABULARY, (BLOCKS, LENGTH + 1), dtype=np.int32)

    def n_blocks(self, length: int) -> int:
        """Returns how many blocks there are."""
        return BLOCKS

    def block(self, index: int, length: int) -> Any:
        """Returns ids [length + 1]."""
        return self.ids[index]

    def batch(self, seed: int, step: int, batch_size: int, length: int) -> Any:
        """Returns ids [batch_size, length + 1]."""
        import numpy as np

        return self.ids[np.arange(step * batch_size, (step + 1) * batch_size) % BLOCKS]


def shape(name: str) -> Any:
    """Returns the config that both sides train."""
    from miudo.config import ModelConfig
    from miudo.presets import load_preset

    if name == "6.9m":
        return ModelConfig.uniform(
            vocab_size=VOCABULARY, d_model=256, n_layers=6, n_heads=4, d_ff=704, max_positions=512
        )
    return replace(load_preset(name), vocab_size=VOCABULARY)


def machine() -> str:
    """Returns what the numbers hang on."""
    versions = ", ".join(f"{p} {metadata.version(p)}" for p in ("torch", "transformers"))
    cpu = next(
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return (
        f"{cpu}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}, {commit}"
    )


def table(rounds: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> None:
    """Prints medians, spread, and tokens of a 30-minute run beside the Trainer's."""
    from miudo.report import Table, text_table
    from miudo.tensors import parameter_count

    size = parameter_count(shape(options.shape))
    kind = "taken in for real" if options.minutes else f"in {RUN_S // 60} minutes (computed)"

    def taken(found: dict[str, Any]) -> float:
        if "tokens" in found:
            return float(found["tokens"]) / found["elapsed_s"]
        return float(found["tokens_per_s"]) * (RUN_S - found["start_s"]) / RUN_S

    base = statistics.median(map(taken, rounds["trainer"]))
    rows = []
    for name, found in rounds.items():
        speeds = [f["tokens_per_s"] for f in found]
        whole = statistics.median(map(taken, found))
        rows.append(
            [
                NAMES[name],
                f"{statistics.median(speeds):,.0f}",
                f"{min(speeds):,.0f}-{max(speeds):,.0f}",
                f"{statistics.median(f['tokens_per_cpu_s'] for f in found):,.0f}",
                f"{statistics.median(f['start_s'] for f in found):.1f}",
                f"{whole:,.0f}",
                f"{whole / base:.2f}",
            ]
        )
    headers = [
        "",
        "tokens/s steady",
        "spread",
        "a CPU s",
        "start s",
        f"tokens/s {kind}",
        "x Trainer",
    ]
    caption = f"{size:,} parameters, batch {BATCH} x {LENGTH}, vocabulary {VOCABULARY}, "
    caption += options.precision
    print(f"\n{caption}\n{text_table(Table(headers, rows))}")


if __name__ == "__main__":
    main()
