"""How many tokens does a recipe need for the loss that the Hugging Face Trainer reaches?

For: the claim that the recipe reaches AdamW's held-out loss in at most 0.7 times the tokens.
Not for: tokens a second (`benchmarks/train_speed.py`).
Read next: `recipes/`.

    python benchmarks/tokens_to_loss.py --recipe recipes/en-6m.toml --data runs/en-data \
        --out runs/tokens-to-loss

The Trainer trains the same shape on the same batches in the same order with AdamW: three
learning rates on a tenth of the tokens, then the best on all of them. Each share of the tokens
is then a whole run of the recipe of its own, its learning rate falling to the end. One measure
for all: `miudo.train.evaluation.held_out_loss`. What is done already is not done again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LRS = (1e-3, 2e-3, 4e-3)
"""For some six million parameters; smaller models want more."""


def main() -> None:
    """Runs every part in a process of its own and prints the table."""
    options = parse()
    if options.part:
        kind, _, value = options.part.partition(":")
        {"trainer": trainer, "recipe": recipe}[kind](options, *map(float, value.split(",")))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    tenths = {lr: run(options, f"trainer:0.1,{lr}") for lr in options.lrs}
    best = min(tenths, key=lambda lr: tenths[lr]["held_out_loss"])
    if best in (min(tenths), max(tenths)):
        print(f"{best:g} is the edge of --lrs: try beyond it", file=sys.stderr)
    peer = run(options, f"trainer:1,{best}")
    shares = {share: run(options, f"recipe:{share}") for share in options.shares}
    table(options, tenths, peer, shares)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="a data folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, help="default: the recipe's")
    parser.add_argument("--preset", help="default: the recipe's")
    parser.add_argument("--shares", nargs="*", type=float, default=[0.7, 0.5])
    parser.add_argument("--lrs", nargs=3, type=float, default=LRS, help="the Trainer's")
    parser.add_argument("--schedule", default="linear", help="the Trainer's, to 0")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    values = tomllib.loads(options.recipe.read_text())
    options.tokens = options.tokens or values["tokens"]
    options.preset = options.preset or values["preset"]
    options.fit = {k: v for k, v in values.items() if k not in ("preset", "tokens", "prepare")}
    return options


def run(options: argparse.Namespace, part: str) -> dict[str, Any]:
    """Returns what `part` gave, running it if it has not run before."""
    path = result_path(options, part)
    if not path.exists():
        print(f"{part} ...", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, *sys.argv, "--part", part], check=True)
    found: dict[str, Any] = json.loads(path.read_text())
    if found["of"] != identity(options):
        raise SystemExit(f"{path} is of {found['of']}: give another --out")
    return found


def identity(options: argparse.Namespace) -> dict[str, Any]:
    """Returns what all parts in one folder have in common."""
    names = ("preset", "tokens", "schedule", "fit")
    return {name: getattr(options, name) for name in names}


def result_path(options: argparse.Namespace, part: str) -> Path:
    return Path(options.out / f"{part.replace(':', '-').replace(',', '-')}.json")


def settings_of(options: argparse.Namespace, share: float) -> Any:
    from miudo.train.settings import FitSettings

    tokens = int(options.tokens * share)
    return FitSettings.from_json(options.fit | {"tokens": tokens})


def recipe(options: argparse.Namespace, share: float) -> None:
    """Trains the recipe on a share of the tokens, resuming where it was broken off."""
    from miudo.plain_json import write_json
    from miudo.train.pretrain import TrainJob, resume, train
    from miudo.train.progress import Lines

    out = options.out / f"recipe-{share}"
    if (out / "checkpoints").exists():
        made = resume(out, Lines())
    else:
        settings = settings_of(options, share)
        job = TrainJob((str(options.data),), out, settings, shape=options.preset)
        made = train(job, Lines())
    found = {
        "of": identity(options),
        "held_out_loss": made.fit.held_out_loss,
        "tokens": made.fit.tokens,
        "tokens_per_s": made.fit.tokens_per_s,
    }
    write_json(result_path(options, options.part), found)


def trainer(options: argparse.Namespace, share: float, lr: float) -> None:
    """Trains a `transformers` Llama of the same shape with AdamW on the same batches."""
    import torch
    from transformers import Trainer, TrainingArguments

    from miudo.data.packed import DataSet
    from miudo.formats import open_model
    from miudo.plain_json import write_json
    from miudo.train.evaluation import held_out_loss
    from miudo.train.plan import device_of, native_bf16
    from miudo.train.pretrain import config_for

    settings, data = settings_of(options, share), DataSet.open(options.data)
    config = config_for(options.preset, data, settings.length)
    model, tokens = llama(config, settings.seed), data.open_split("train")
    steps, device = -(-settings.tokens // settings.step_tokens), device_of(settings)

    class Rows(torch.utils.data.IterableDataset[dict[str, torch.Tensor]]):
        def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
            for step in range(steps):
                for row in tokens.batch(settings.seed, step, settings.batch_size, settings.length):
                    # One id more than a row: the Trainer's loss shifts labels itself.
                    ids = torch.from_numpy(row.astype("int64"))
                    yield {"input_ids": ids, "labels": ids}

    out = options.out / f"trainer-{share}-{lr}"
    arguments = TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=settings.batch_size,
        max_steps=steps,
        learning_rate=lr,
        lr_scheduler_type=options.schedule,
        warmup_steps=max(1, int(settings.warmup * steps)),
        weight_decay=0.1,
        adam_beta2=0.95,
        max_grad_norm=settings.clip,
        optim="adamw_torch_fused",
        bf16=native_bf16(device),
        use_cpu=device == "cpu",
        seed=settings.seed,
        save_steps=500,
        save_total_limit=1,
        logging_steps=100,
        report_to="none",
        disable_tqdm=True,
    )
    made = Trainer(model=model, args=arguments, train_dataset=Rows())
    done = made.train(resume_from_checkpoint=any(out.glob("checkpoint-*")) or None)
    model.save_pretrained(out / "model")
    from miudo.decoder.decoder import Decoder

    found = open_model(out / "model")
    decoder = Decoder.from_weights(found.config, found.weights).to(device)
    loss = held_out_loss(decoder, data.open_split("held_out"), settings)
    speed = done.metrics["train_steps_per_second"] * settings.step_tokens
    result = {
        "of": identity(options),
        "held_out_loss": loss,
        "tokens": steps * settings.step_tokens,
        "tokens_per_s": speed,
    }
    write_json(result_path(options, options.part), result)


def llama(config: Any, seed: int) -> Any:
    """Returns `transformers`' own model of the shape, initialised its own way."""
    import torch
    from transformers import LlamaForCausalLM

    from miudo.families import for_config

    torch.manual_seed(seed)
    family = for_config(config)
    if family is None:
        raise SystemExit(f"{config} has no Hugging Face form to compare with")
    values = family.config_to_hf(config)
    return LlamaForCausalLM(LlamaForCausalLM.config_class(**values))


def table(
    options: argparse.Namespace,
    tenths: dict[float, dict[str, Any]],
    peer: dict[str, Any],
    shares: dict[float, dict[str, Any]],
) -> None:
    """Prints every run, and whether the recipe reached the Trainer's loss."""
    from miudo.records import environment
    from miudo.report import Table, text_table

    rows = [
        [f"Trainer, AdamW {lr:g}", *columns(found), "to choose the learning rate"]
        for lr, found in tenths.items()
    ]
    rows.append(["Trainer, AdamW, the best of these", *columns(peer), "1 x the tokens"])
    for share, found in shares.items():
        difference = found["held_out_loss"] - peer["held_out_loss"]
        word = "reached" if difference <= 0 else "not reached"
        rows.append(
            [f"recipe, {share:g} x the tokens", *columns(found), f"{difference:+.4f} {word}"]
        )
    print(", ".join(f"{k} {v}" for k, v in environment().items()))
    print(
        f"{options.preset}, {options.recipe.name}, {dataclasses.asdict(settings_of(options, 1.0))}"
    )
    headers = ["run", "tokens", "tokens/s", "held-out loss", ""]
    print(text_table(Table(headers, rows)))


def columns(found: dict[str, Any]) -> list[str]:
    return [
        f"{found['tokens']:,}", f"{found['tokens_per_s']:,.0f}", f"{found['held_out_loss']:.4f}",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
