"""What buys quality per token: one change at a time, at one million parameters.

For: choosing the settings of the recipes; each row is a run of the base with one change.
Not for: speed (`benchmarks/train_speed.py`).
Read next: `recipes/`, which hold what was chosen.

    python benchmarks/ablations.py --data runs/ablations-data --out runs/ablations
    python benchmarks/ablations.py ... --only muon-lr-2e-2 wsd --seeds 0 1 2

For another vocabulary, or for text that is read several times, give another data folder and
another `--out`: bits a byte compare across vocabularies, nats a token do not. A run that is there
already is not made again, one that was broken off goes on; the table is printed after each. All
runs see the same tokens in the same order, but for what they change.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Change:
    """`fit` overrides training settings, `config` fields of the shape, `layers` of each layer.

    With `first`, four fifths of the tokens are a run of its own with these settings, its rate
    level to the end, and the last fifth goes on from it, its rate falling from the start.
    """

    why: str
    fit: dict[str, Any] = field(default_factory=dict)
    first: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    layers: dict[str, Any] = field(default_factory=dict)


BASE: dict[str, Any] = {
    "muon_lr": 5e-3, "batch_size": 16, "length": 256, "save_every": 100, "keep": 1,
}  # fmt: skip
CHANGES = {
    "base": Change("Muon 5e-3, AdamW 3e-3 for tables, linear decay to 5%, weight decay 0.1"),
    "muon-lr-2.5e-3": Change("Muon's learning rate", {"muon_lr": 2.5e-3}),
    "muon-lr-1e-2": Change("Muon's learning rate", {"muon_lr": 1e-2}),
    "muon-lr-2e-2": Change("Muon's learning rate", {"muon_lr": 2e-2}),
    "table-lr-1e-3": Change("AdamW's learning rate for tables and norms", {"lr": 1e-3}),
    "table-lr-1e-2": Change("AdamW's learning rate for tables and norms", {"lr": 1e-2}),
    "adamw-1.5e-3": Change("AdamW for all", {"optimizer": "adamw", "lr": 1.5e-3}),
    "adamw-3e-3": Change("AdamW for all", {"optimizer": "adamw", "lr": 3e-3}),
    "adamw-6e-3": Change("AdamW for all", {"optimizer": "adamw", "lr": 6e-3}),
    "decay-to-0": Change("learning rate falls to nothing", {"final_lr": 0.0}),
    "wsd": Change("level, then falls over the last fifth", {"decay": "wsd", "final_lr": 0.0}),
    "cosine": Change("falls along a cosine", {"decay": "cosine", "final_lr": 0.0}),
    "batch-8": Change("half the batch, twice the steps", {"batch_size": 8}),
    "batch-32": Change("twice the batch, half the steps", {"batch_size": 32}),
    "decay-0": Change("no weight decay", {"weight_decay": 0.0}),
    "decay-0.3": Change("weight decay", {"weight_decay": 0.3}),
    "decay-1": Change("weight decay", {"weight_decay": 1.0}),
    "decay-3": Change("weight decay", {"weight_decay": 3.0}),
    "length-128": Change("rows half as long, twice as many", {"length": 128, "batch_size": 32}),
    "length-512": Change("rows twice as long, half as many", {"length": 512, "batch_size": 8}),
    "in-two": Change("two runs, to compare the next with", first={"length": 256}),
    "length-64-first": Change(
        "rows of 64, the last fifth of 256", first={"length": 64, "batch_size": 64}
    ),
    "qk-norm": Change("queries and keys normed, as Qwen3's", config={"qk_norm": "head"}),
    "untied": Change("a head of its own", config={"tie_embeddings": False}),
    "one-kv-head": Change("heads share keys and values", layers={"n_kv_heads": 1}),
}


def main() -> None:
    """Runs what is asked for, a few side by side, and prints the table."""
    options = parse()
    if options.worker:
        train_one(options.worker, options)
        return
    wanted = [(name, seed) for seed in options.seeds for name in options.only]
    with ThreadPoolExecutor(options.jobs) as pool:
        for _ in pool.map(lambda run: start(run[0], run[1], options), wanted):
            print(table(options), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a data folder of `miudo prepare`")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preset", default="1m")
    parser.add_argument("--tokens", type=int, default=2_000_000)
    parser.add_argument("--only", nargs="*", default=list(CHANGES), choices=list(CHANGES))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs side by side")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def start(name: str, seed: int, options: argparse.Namespace) -> None:
    """Runs one change in a process of its own, with one thread."""
    if (options.out / f"{name}-{seed}" / "result.json").exists():
        return
    command = [sys.executable, __file__, "--worker", f"{name}-{seed}", "--data", str(options.data)]
    command += ["--out", str(options.out), "--preset", options.preset]
    command += ["--tokens", str(options.tokens)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{name}, seed {seed}, failed:\n{done.stderr[-2000:]}", file=sys.stderr)


def train_one(run: str, options: argparse.Namespace) -> None:
    """Trains one run to its end and writes what it gave, all measured in rows of one length."""
    from miudo.config import ModelConfig
    from miudo.data.packed import DataSet
    from miudo.decoder.decoder import Decoder
    from miudo.formats import open_model
    from miudo.plain_json import write_json
    from miudo.presets import load_preset
    from miudo.train.evaluation import held_out_loss
    from miudo.train.settings import FitSettings

    name, _, seed = run.rpartition("-")
    change, out = CHANGES[name], options.out / run
    shape = load_preset(options.preset)
    layers = tuple(replace(layer, **change.layers) for layer in shape.layers)
    # Through JSON, so that plain strings become the enumerations they name.
    shape = ModelConfig.from_json(replace(shape, layers=layers).to_json() | change.config)
    fit = BASE | {"tokens": options.tokens, "eval_tokens": 1 << 17, "seed": int(seed)}
    if change.first:
        kept = options.tokens * 4 // 5
        level = fit | {"tokens": kept, "decay": "none"} | change.first
        made = run_or_resume(out / "first", level, options.data, shape=shape)
        # Other batches than the first run began with.
        rest = fit | {"tokens": options.tokens - kept, "seed": int(seed) + 1000}
        made = run_or_resume(out, rest | change.fit, options.data, init=made.folder)
    else:
        made = run_or_resume(out, fit | change.fit, options.data, shape=shape)
    model = open_model(made.folder)
    # Not the run's own figure: shorter rows have less to foretell from, and read higher.
    loss = held_out_loss(
        Decoder.from_weights(replace(model.config, max_positions=BASE["length"]), model.weights),
        DataSet.open(options.data).open_split("held_out"),
        FitSettings.from_json(fit),
    )
    found = {m.name: m.value for m in made.record.measurements}
    write_json(out / "result.json", found | {"held_out_loss": loss})


def run_or_resume(out: Path, fit: dict[str, Any], data: Path, **start: Any) -> Any:
    """Trains from `shape` or `init`, or goes on where a run in `out` was broken off."""
    from miudo.train.pretrain import TrainJob, resume, train
    from miudo.train.settings import FitSettings

    if (out / "checkpoints").exists():
        return resume(out)
    return train(TrainJob((str(data),), out, FitSettings.from_json(fit), **start))


def table(options: argparse.Namespace) -> str:
    """Returns all finished runs, the best first, each beside the base of the same seeds."""
    from miudo.data.packed import DataSet
    from miudo.report import Table, text_table

    held_out = DataSet.open(options.data).manifest["splits"]["held_out"]
    bits = held_out["tokens"] / held_out["text_bytes"] / math.log(2)

    losses: dict[str, dict[str, float]] = {}
    sizes = {}
    for path in sorted(options.out.glob("*/result.json")):
        name, _, seed = path.parent.name.rpartition("-")
        found = json.loads(path.read_text())
        losses.setdefault(name, {})[seed] = found["held_out_loss"]
        sizes[name] = found["parameters"]
    base = losses.get("base", {})
    rows = []
    for name, found in sorted(losses.items(), key=lambda item: statistics.mean(item[1].values())):
        pairs = [found[seed] - base[seed] for seed in found if seed in base]
        differences = ", ".join(f"{pair:+.4f}" for pair in pairs)
        mean = statistics.mean(found.values())
        row = [name, CHANGES[name].why, f"{sizes[name]:,.0f}"]
        rows.append([*row, f"{mean:.4f}", f"{mean * bits:.4f}", differences])
    headers = ["run", "change", "parameters", "held-out loss", "bits a byte"]
    headers.append("less the base's, by seed")
    return text_table(Table(headers, rows))


if __name__ == "__main__":
    main()
