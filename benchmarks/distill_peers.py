"""miudo's distillation beside TRL's GKD trainer: the same teacher, student, rows and loss.

For: what a run of equal tokens gives (held-out loss) and takes (CPU seconds), the optimiser equal
and then miudo's own.
Not for: distillation on the student's own samples, which TRL's other trainer does, or what the
best settings of either would give.
Read next: `benchmarks/twins.py`, students against their twins without a teacher.

    python benchmarks/distill_peers.py --teacher models/en-6m --data DATA --out runs/distill-peers

TRL is no dependency of miudo. In an environment of its own that has miudo: pip install --no-deps
trl==1.16.0. GKDTrainer (trl.experimental.gkd) is run with lmbda 0 (the text, no samples) and beta
0 (forward KL); it takes no temperature into its loss, so that is 1 for both. Its optimiser is
PyTorch's AdamW with miudo's groups, betas and schedule, its rows are miudo's in miudo's order.
Both start from the same folder. A run that is done is not made again.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from quantization_peers import as_weights, load
from torch import Tensor

from miudo.compress.distill.lesson import Lesson, distill
from miudo.compress.distill.terms import DistillSettings, ResponseTerm
from miudo.compress.verbs import student_config
from miudo.data.packed import DataSet
from miudo.decoder.decoder import Decoder
from miudo.formats.hf import write_folder
from miudo.plain_json import write_json
from miudo.train.artefact import Opened, check_same_tokenizer, open_decoder
from miudo.train.evaluation import held_out_loss
from miudo.train.plan import lr_scale
from miudo.train.settings import FitSettings, Optimizer, Precision
from miudo.train.stepper import Tokens


def main() -> None:
    """Makes the runs that are missing and prints the table of all."""
    given = arguments()
    torch.set_num_threads(given.threads)
    teacher = open_decoder(given.teacher, "teacher")
    data = DataSet.open(given.data)
    check_same_tokenizer(teacher, data.tokenizer(), given.data)
    given.out.mkdir(parents=True, exist_ok=True)
    for seed, name in itertools.product(given.seeds, RUNS):
        path = given.out / f"{name}-{seed}.json"
        if not path.exists():
            print(f"== {name}, seed {seed}", file=sys.stderr, flush=True)
            write_json(path, made(given, teacher, data, name, seed))
    print(table(given, teacher, data))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="a data folder of its tokenizer")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=200_000, help="in every run")
    parser.add_argument("--ratio", type=float, default=0.25, help="student's size")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--eval-tokens", type=int, default=32_768)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def settings(given: argparse.Namespace, seed: int, optimizer: Optimizer) -> FitSettings:
    return FitSettings(
        tokens=given.tokens,
        batch_size=given.batch_size,
        length=given.length,
        optimizer=optimizer,
        precision=Precision.F32,  # TRL too
        eval_tokens=given.eval_tokens,
        seed=seed,
        save_every=0,
        log_every=1,
    )


def made(
    given: argparse.Namespace, teacher: Opened, data: DataSet, name: str, seed: int
) -> dict[str, Any]:
    """Returns a run's losses, nats a token, and its seconds."""
    student = begun(given, teacher, seed)
    optimizer, run = RUNS[name]
    fit = settings(given, seed, optimizer)
    folder = given.out / f"{name}-{seed}"
    if run is by_trl:
        importlib.import_module("trl.experimental.gkd")  # not part of its time
    wall, cpu = time.perf_counter(), time.process_time()
    trained, first = run(given.teacher, student, data.open_split("train"), fit, folder)
    spent = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    held_out = data.open_split("held_out")
    steps = -(-given.tokens // fit.step_tokens)
    return {
        "tokens": steps * fit.step_tokens,
        "first_loss": first,
        "held_out_loss": held_out_loss(trained, held_out, fit),
        **spent,
    }


def begun(given: argparse.Namespace, teacher: Opened, seed: int) -> Path:
    """Returns the folder of a student with new weights, written once a seed."""
    folder: Path = given.out / f"student-{seed}"
    if not folder.exists():
        student = Decoder(student_config(given.ratio, teacher.file.config))
        student.initialise(seed)
        file = dataclasses.replace(
            teacher.file, config=student.config, weights=student.to_weights(), record=None
        )
        write_folder(folder, file)
    return folder


def by_miudo(
    teacher: Path, student: Path, data: Tokens, fit: FitSettings, out: Path
) -> tuple[Decoder, float]:
    """Returns the trained student, and the loss of the first step."""
    trained = open_decoder(student, "student").decoder
    lesson = Lesson(data, fit, DistillSettings((ResponseTerm(),)))
    distill([open_decoder(teacher, "teacher").decoder], trained, lesson, out)
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return trained, float(json.loads(lines[0])["loss"])


def by_trl(
    teacher: Path, student: Path, data: Tokens, fit: FitSettings, out: Path
) -> tuple[Decoder, float]:
    """Returns the trained student, and the loss of the first step, as TRL counts it."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    model = load(student).train()
    steps = -(-(fit.tokens or 0) // fit.step_tokens)
    batches = (data.batch(fit.seed, step, fit.batch_size, fit.length) for step in range(steps))
    rows = [{"input_ids": row.tolist()} for batch in batches for row in batch]
    trainer = GKDTrainer(
        model=model,
        teacher_model=load(teacher),
        args=GKDConfig(
            output_dir=str(out), lmbda=0.0, beta=0.0, temperature=1.0, max_steps=steps,
            per_device_train_batch_size=fit.batch_size, max_grad_norm=fit.clip, seed=fit.seed,
            train_sampling_strategy="sequential", gradient_checkpointing=False, bf16=False,
            use_cpu=True, save_strategy="no", logging_steps=1, report_to=[], disable_tqdm=True,
        ),
        data_collator=together,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(student),
        optimizers=same_optimizer(model, fit, steps),
    )  # fmt: skip
    trainer.train()
    logged = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    values = {name: p.detach() for name, p in model.named_parameters()}
    weights = as_weights(student, values)
    return Decoder.from_weights(open_decoder(student, "student").file.config, weights), logged[0]


def together(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Returns a batch; the last id is a target alone, as everywhere in miudo."""
    ids = torch.tensor([row["input_ids"] for row in rows])  # B T+1
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


def same_optimizer(model: Any, fit: FitSettings, steps: int) -> tuple[Any, Any]:
    """Returns AdamW and a schedule as `miudo.train.optimizer` and `.plan` have them."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": fit.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=fit.lr, betas=(0.9, 0.95), fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: lr_scale(fit, steps, s))
    return optimizer, scheduler


Run = Callable[[Path, Path, Tokens, FitSettings, Path], tuple[Decoder, float]]
RUNS: dict[str, tuple[Optimizer, Run]] = {
    "trl-adamw": (Optimizer.ADAMW, by_trl),
    "miudo-adamw": (Optimizer.ADAMW, by_miudo),
    "miudo-muon": (Optimizer.MUON, by_miudo),
}


def table(given: argparse.Namespace, teacher: Opened, data: DataSet) -> str:
    """One line a run: losses of each seed, and means of what it took."""
    fit = settings(given, 0, Optimizer.ADAMW)
    best = held_out_loss(teacher.decoder, data.open_split("held_out"), fit)
    lines = [
        f"teacher's held-out loss {best:.4f} nats a token; batches of {given.batch_size} rows of "
        f"{given.length}; seeds {given.seeds}\n",
        "| run | tokens | first step's loss | held-out loss, a seed each | mean "
        "| tokens a CPU second | tokens a second |",
        "| --- | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    for name in RUNS:
        rows = [json.loads((given.out / f"{name}-{s}.json").read_text()) for s in given.seeds]
        losses = [row["held_out_loss"] for row in rows]
        cpu, wall = (
            statistics.fmean(r["tokens"] / r[k] for r in rows) for k in ("cpu_s", "wall_s")
        )
        first = ", ".join(f"{row['first_loss']:.4f}" for row in rows)
        lines.append(
            f"| {name} | {rows[0]['tokens']:,} | {first} "
            f"| {', '.join(f'{loss:.4f}' for loss in losses)} | {statistics.fmean(losses):.4f} "
            f"| {cpu:,.0f} | {wall:,.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
