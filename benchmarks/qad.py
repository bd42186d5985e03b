"""What training buys at few bits: a parent rounded, rounded by GPTQ, and trained to be rounded.

For: the claim that quantisation-aware distillation keeps more of the parent than rounding, at the
same bytes, for a small share of the parent's own tokens.
Not for: rounding methods among themselves (`benchmarks/quantization.py`), or speed.
Read next: `docs/low-bits.md`.

    python benchmarks/qad.py --model models/en-6m --data DATA --out runs/qad
    python benchmarks/qad.py ... --types Q2_K TQ2_0 --shares 0.02 --seeds 0 1 2
    python benchmarks/qad.py ... --parts 4       # stops after four more cells; run again to go on

A cell that is there already is not made again, and one that was broken off goes on. Perplexity
and KL are the decoder's on weights as the file holds them, in float32, on held-out text that no
cell learned from. The parent's perplexity is of the same tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from miudo.compress.distill.lesson import Lesson, distill
from miudo.compress.distill.loss import DistillLoss
from miudo.compress.distill.terms import DistillSettings, ResponseTerm, TextTerm
from miudo.compress.prune.recover import calibration_batches
from miudo.compress.quantize.gptq import Outcome, round_matrix
from miudo.compress.quantize.order import round_in_order
from miudo.compress.quantize.plan import rounded_decoder
from miudo.compress.quantize.propagation import STRENGTH
from miudo.compress.quantize.trained import ROUNDED_FIT, ROUNDED_LOSS, RoundedStudent
from miudo.data.packed import DataSet
from miudo.decoder.decoder import Decoder
from miudo.files import sha256_file
from miudo.plain_json import write_json
from miudo.records import Record
from miudo.tensors import DType, Weights
from miudo.train.artefact import Opened, check_same_tokenizer, open_decoder
from miudo.train.plan import device_of
from miudo.train.progress import Lines
from miudo.train.settings import FitSettings

TYPES = ("Q8_0", "Q4_0", "Q4_K", "Q3_K", "Q2_K", "TQ2_0")
BEGINNINGS = ("trained", "gptq+trained")
ROWS = 8


def main() -> None:
    """Makes the cells that are missing, and prints the table after each."""
    options = parse()
    torch.set_num_threads(options.threads)
    parent = open_decoder(options.model, "model")
    data = DataSet.open(options.data)
    check_same_tokenizer(parent, data.tokenizer(), options.data)
    options.out.mkdir(parents=True, exist_ok=True)
    check_same_question(options)
    if not (options.out / "parent.json").exists():
        write_json(options.out / "parent.json", measured(parent.decoder, parent.decoder, options))
    left = options.parts
    for cell in cells(options):
        if (options.out / f"{cell['name']}.json").exists():
            continue
        if left == 0:
            break
        left -= 1
        found = make(cell, parent, data, options)
        write_json(options.out / f"{cell['name']}.json", {**cell, **found})
        print(table(options), flush=True)
    print(table(options))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="a data folder of its tokenizer")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--types", nargs="*", default=list(TYPES), choices=TYPES)
    parser.add_argument("--tables", help="type of token table and head; default: as the rest")
    parser.add_argument("--shares", nargs="*", type=float, default=[0.01, 0.03])
    parser.add_argument("--beginnings", nargs="*", default=list(BEGINNINGS), choices=BEGINNINGS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--parent-tokens", type=int, help="default: what its record says")
    parser.add_argument("--lr", type=float, default=ROUNDED_FIT["lr"])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--eval-tokens", type=int, default=131_072)
    parser.add_argument("--calibration-tokens", type=int, default=65_536)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parts", type=int, default=-1, help="how many more cells; -1: all")
    return parser.parse_args()


def check_same_question(options: argparse.Namespace) -> None:
    """Stops where the folder holds cells of another model, text or measure."""
    question = {
        "model": sha256_file(next(options.model.glob("*.safetensors"))),
        "data": sha256_file(options.data / "manifest.json"),
        **{n: getattr(options, n) for n in ("tables", "lr", "batch_size", "length", "eval_tokens")},
        "calibration_tokens": options.calibration_tokens,
    }
    path = options.out / "question.json"
    if not path.exists():
        write_json(path, question)
    elif json.loads(path.read_text()) != json.loads(json.dumps(question)):
        sys.exit(f"{path} is of another model, text or setting: give another --out")


def cells(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Cheap cells first, so that a table is there early."""
    plain = [
        {"name": f"{method}-{dtype}", "dtype": dtype, "method": method}
        for method in ("nearest", "gptq")
        for dtype in options.types
    ]
    trained = [
        {
            "name": f"{method}-{dtype}-{share:g}-{seed}",
            "dtype": dtype,
            "method": method,
            "share": share,
            "seed": seed,
        }
        for seed in options.seeds
        for share in sorted(options.shares)
        for method in options.beginnings
        for dtype in options.types
    ]
    return plain + trained


def make(
    cell: dict[str, Any], parent: Opened, data: DataSet, options: argparse.Namespace
) -> dict[str, Any]:
    dtype = DType(cell["dtype"])
    tables = DType(options.tables) if options.tables else dtype
    student = Decoder.from_weights(parent.file.config, parent.file.weights)
    rounded = RoundedStudent(student, dtype, tables)
    if cell["method"] == "gptq+trained":
        held = by_gptq(rounded, parent, data, options)
        student = rounded_decoder(student, held)
        rounded = RoundedStudent(student, dtype, tables, held)
    extra: dict[str, Any] = {"notes": list(rounded.plan.notes)}
    if cell["method"] == "nearest":
        stored: Weights = rounded.begun
    elif cell["method"] == "gptq":
        stored = by_gptq(rounded, parent, data, options)
    else:
        stored, extra = trained(cell, parent, data, rounded, options)
    bits = 8 * sum(t.data.nbytes for t in stored.values())
    parameters = sum(math.prod(t.shape) for t in stored.values())
    made = rounded_decoder(student, stored)
    return {
        **extra,
        "bits_per_weight": bits / parameters,
        **measured(parent.decoder, made, options),
    }


def by_gptq(
    rounded: RoundedStudent, parent: Opened, data: DataSet, options: argparse.Namespace
) -> Weights:
    """Returns the parent in the same types, rounded by GPTQ."""
    batches = calibration_batches(
        data.open_split("train"), tokens=options.calibration_tokens, length=options.length
    )
    outcome = Outcome()
    return round_in_order(
        parent.decoder,
        tuple(batches),
        rounded.plan,
        lambda name, weight, gram, kind: round_matrix(name, weight, gram, kind, outcome),
        propagation=STRENGTH,
    )


def trained(
    cell: dict[str, Any],
    parent: Opened,
    data: DataSet,
    rounded: RoundedStudent,
    options: argparse.Namespace,
) -> tuple[Weights, dict[str, Any]]:
    tokens = max(1, round(cell["share"] * (options.parent_tokens or parents_tokens(parent))))
    values = {
        **ROUNDED_FIT, "lr": options.lr, "tokens": tokens, "batch_size": options.batch_size,
        "length": options.length, "seed": cell["seed"], "save_every": 50, "keep": 1,
    }  # fmt: skip
    lesson = Lesson(data.open_split("train"), FitSettings.from_json(values), ROUNDED_LOSS)
    folder = options.out / "runs" / cell["name"]
    fit = distill(
        [parent.decoder],
        rounded.student,
        lesson,
        folder,
        progress=Lines(),
        resume=folder.exists(),
        stand_in=rounded.weights,
    )
    return rounded.weights.store(), {"tokens": fit.tokens, "training_s": fit.elapsed_s}


def parents_tokens(parent: Opened) -> int:
    """What its training record says, all stages that it went on from added up."""

    def of(record: Record) -> int:
        here = [m.value for m in record.measurements if m.name == "training_tokens"]
        return int(sum(here)) + sum(of(p) for p in record.parents)

    found = 0 if parent.file.record is None else of(parent.file.record)
    if not found:
        sys.exit("the model's record names no training tokens: give --parent-tokens")
    return found


@torch.no_grad()
def measured(parent: Decoder, made: Decoder, options: argparse.Namespace) -> dict[str, float]:
    """Returns KL to the parent and cross-entropy, nats a token, on evenly spaced held-out text."""
    held_out = DataSet.open(options.data).open_split("held_out")
    if held_out is None:
        sys.exit("the data holds nothing out")
    there = held_out.n_blocks(options.length)
    count = min(there, options.eval_tokens // options.length)
    blocks = np.stack([held_out.block(i * there // count, options.length) for i in range(count)])
    # A model is its own twin's pupil where it is measured against itself.
    teacher = Decoder.from_weights(parent.config, parent.to_weights())
    loss = DistillLoss([teacher], made.config, DistillSettings((ResponseTerm(), TextTerm())))
    device = device_of(FitSettings(tokens=1))
    made.to(device)
    sums = np.zeros(2)
    for ids in torch.split(torch.from_numpy(blocks), ROWS):
        parts = loss(made, ids.to(device))[1]
        sums += np.array([parts["forward_kl"], parts["cross_entropy"]]) * len(ids)
    made.to("cpu")  # where files are made
    kl, cross_entropy = (sums / count).tolist()
    return {"kl": kl, "cross_entropy": cross_entropy, "eval_tokens": count * options.length}


def table(options: argparse.Namespace) -> str:
    """Rows are types; a trained cell is the mean over seeds, with the spread where there are some.

    `closed` is the share of the KL of rounding that is gone.
    """
    parent = json.loads((options.out / "parent.json").read_text())
    base = parent["cross_entropy"]
    found = [
        json.loads(path.read_text())
        for path in sorted(options.out.glob("*.json"))
        if path.stem not in ("parent", "question")
    ]
    lines = [
        f"parent: perplexity {math.exp(base):.3f} on {parent['eval_tokens']} held-out tokens",
        "type    method              tokens  seeds  bits/weight  ppl ratio          "
        "KL                 closed",
    ]
    for dtype in options.types:
        here = [row for row in found if row["dtype"] == dtype]
        nearest = next((row["kl"] for row in here if row["method"] == "nearest"), math.nan)
        keys = sorted({(row["method"], row.get("share", 0.0)) for row in here}, key=_order)
        for method, share in keys:
            rows = [r for r in here if (r["method"], r.get("share", 0.0)) == (method, share)]
            ratios = [math.exp(row["cross_entropy"] - base) for row in rows]
            kls = [row["kl"] for row in rows]
            name = method if not share else f"{method} {share:.2%}"
            lines.append(
                f"{dtype:8}{name:20}{rows[0].get('tokens', 0):7}{len(rows):7}"
                f"{rows[0]['bits_per_weight']:13.3f}  {_spread(ratios, 4):18} {_spread(kls, 5):18} "
                f"{1 - statistics.fmean(kls) / nearest:6.1%}"
            )
    return "\n".join(lines)


def _order(key: tuple[str, float]) -> tuple[int, float]:
    return ("nearest", "gptq", "trained", "gptq+trained").index(key[0]), key[1]


def _spread(values: list[float], digits: int) -> str:
    mean = statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {statistics.stdev(values):.{digits}f}"


if __name__ == "__main__":
    main()
