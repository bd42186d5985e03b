"""What pruning costs, and what learning again gives back, on one trained parent.

For: SparseGPT beside Wanda and magnitude; distilled recovery beside plain training; a pruned
half beside a fresh model of the same shape at equal tokens.
Not for: speed or size of files (zeros are stored as numbers are).
Read next: `miudo.compress.prune.recover`.

    python benchmarks/pruning.py --parent models/en-1m --data runs/en-data --out runs/pruning
    python benchmarks/pruning.py ... --parts oneshot            # minutes
    python benchmarks/pruning.py ... --parts recovery --tokens 1_000_000 --seeds 0 1 2
    python benchmarks/pruning.py ... --parts structured --scratch 1 2 4 8

Every cell has a file in --out and is not done again; a broken training run goes on. `--parts
table` prints what there is. One measure for all: cross-entropy and KL to the parent over the
same held-out blocks, in float32. Calibration is on training text, never on held-out text.

Shapes: B batch, T positions, V vocab_size.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from miudo.compress.method import Method
    from miudo.compress.prune.recover import Recovered
    from miudo.data.packed import DataSet
    from miudo.decoder.decoder import Decoder
    from miudo.train.settings import FitSettings

PARTS = ("oneshot", "recovery", "structured")
METHODS = ("magnitude", "wanda", "sparsegpt")
TEACHINGS = {"kd": 1.0, "mixed": 0.5, "ce": 0.0}
"""The weight of the parent's distributions against the text."""
Cell = dict[str, float]


def main() -> None:
    """Does every cell that has no file yet, then prints the tables."""
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.parts != ["table"]:
        bench = Bench(options)
        for part in (part for part in options.parts if part != "table"):
            {"oneshot": oneshot, "recovery": recovery, "structured": structured}[part](bench)
    tables(options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parent", type=Path, required=True, help="a trained model")
    parser.add_argument("--data", type=Path, required=True, help="a data folder of its tokenizer")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=(*PARTS, "table"), default=list(PARTS))
    parser.add_argument("--patterns", nargs="+", default=["0.5", "0.7", "2:4"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--ridges", nargs="+", type=float, default=[0.0, 0.01], help="0: no repair")
    parser.add_argument("--calibration", type=int, default=65_536, help="tokens")
    parser.add_argument("--tokens", type=int, default=1_000_000, help="tokens of a recovery")
    parser.add_argument(
        "--teachings", nargs="+", choices=tuple(TEACHINGS), default=list(TEACHINGS),
        help="of a recovery: from the parent, from parent and text, from the text",
    )  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--scratch", nargs="+", type=float, default=[1, 2, 4, 8],
        help="tokens of the fresh model, in recoveries",
    )  # fmt: skip
    parser.add_argument("--scratch-lr", type=float, help="of its token table; default: the usual")
    parser.add_argument("--eval-tokens", type=int, default=65_536)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument(
        "--lr-share", type=float, default=0.3, help="of the learning rates, where a model goes on"
    )
    parser.add_argument("--threads", type=int, help="default: PyTorch's own choice")
    return parser.parse_args()


class Bench:
    """The parent, its text, and a file for each cell."""

    def __init__(self, options: argparse.Namespace) -> None:
        import torch

        from miudo.compress.prune.recover import calibration_batches
        from miudo.data.packed import DataSet
        from miudo.train.artefact import open_decoder
        from miudo.train.plan import device_of

        if options.threads:
            torch.set_num_threads(options.threads)
        self.options = options
        self.parent: Decoder = open_decoder(options.parent, "model").decoder.eval()
        self.data: DataSet = DataSet.open(options.data)
        self.length = min(options.length, self.parent.config.max_positions)
        self.device = device_of(self.settings(1, 0, 1.0))
        train = self.data.open_split("train")
        self.batches = calibration_batches(train, tokens=options.calibration, length=self.length)

    def cell(self, name: str, make: Callable[[], Cell]) -> Cell:
        """Returns what is in the cell's file, making it where there is none."""
        from miudo.plain_json import write_json

        path = self.options.out / f"{name}.json"
        if not path.exists():
            print(f"{name} ...", file=sys.stderr, flush=True)
            write_json(path, make())
        found: Cell = json.loads(path.read_text())
        print(f"{name}: loss {found['loss']:.4f}  kl {found['kl']:.4f}", file=sys.stderr)
        return found

    def measured(self, decoder: Decoder) -> Cell:
        """Returns cross-entropy and KL(parent || decoder) in nats a token, and zeros."""
        import torch
        from torch.nn import functional as F  # noqa: N812 - the name the field uses

        from miudo.tensors import parameter_count

        decoder.eval().to(self.device)
        self.parent.to(self.device)
        loss = divergence = count = 0.0
        with torch.no_grad():
            for ids in (rows.to(self.device) for rows in self._held_out()):
                inputs, targets = ids[:, :-1], ids[:, 1:].flatten().long()
                ours = decoder.logits(decoder(inputs)).float().flatten(0, 1).log_softmax(-1)  # N V
                theirs = self.parent.logits(self.parent(inputs)).float().flatten(0, 1)
                loss += float(F.nll_loss(ours, targets, reduction="sum"))
                theirs = theirs.log_softmax(-1)
                divergence += float(F.kl_div(ours, theirs, log_target=True, reduction="sum"))
                count += len(targets)
        decoder.to("cpu")  # where calibration is
        self.parent.to("cpu")
        blocks = [
            p for n, p in decoder.named_parameters() if n.startswith("layers.") and p.dim() > 1
        ]
        return {
            "loss": loss / count,
            "kl": divergence / count,
            "zeros": sum(int((p == 0).sum()) for p in blocks) / sum(p.numel() for p in blocks),
            "parameters": parameter_count(decoder.config, embeddings=False),
            "eval_tokens": count,
        }

    def _held_out(self) -> Iterator[Any]:
        import numpy as np
        import torch

        data = self.data.open_split("held_out")
        there = data.n_blocks(self.length)
        count = min(self.options.eval_tokens // self.length, there)
        places = [i * there // count for i in range(count)]
        for at in range(0, count, 8):
            rows = np.stack([data.block(i, self.length) for i in places[at : at + 8]])
            yield torch.from_numpy(rows)

    def pruned(self, methods: tuple[Method, ...], ridge: float | None = None) -> Recovered:
        """Returns what `methods` leave of the parent."""
        from miudo.compress.prune.recover import prune_and_recover

        return prune_and_recover(self.parent, methods, self.batches, ridge=ridge)

    def settings(self, tokens: float, seed: int, share: float) -> FitSettings:
        """Returns a run of `tokens` at `share` of the usual learning rates."""
        from miudo.train.settings import FitSettings

        plain = FitSettings(tokens=int(tokens))
        return dataclasses.replace(
            plain,
            seed=seed,
            length=self.length,
            batch_size=self.options.batch_size,
            lr=plain.lr * share,
            muon_lr=plain.muon_lr * share,
        )

    def taught(
        self, name: str, student: Callable[[], Recovered], fit: FitSettings, alpha: float
    ) -> Cell:
        """Returns the cell of a student that learned, by `alpha` from the parent."""

        def make() -> Cell:
            from miudo.compress.distill.lesson import Lesson, distill
            from miudo.compress.distill.terms import DistillSettings
            from miudo.train.progress import Lines

            made, folder = student(), self.options.out / name
            learned = DistillSettings.of(temperature=1.0, alpha=alpha)
            lesson = Lesson(self.data.open_split("train"), fit, learned)
            result = distill(
                [self.parent],
                made.decoder,
                lesson,
                folder,
                masks=made.masks,
                progress=Lines(),
                resume=(folder / "checkpoints").exists(),
            )
            return {**self.measured(made.decoder), "tokens": result.tokens}

        return self.cell(name, make)


def sparse(pattern: str, method: str) -> tuple[Method, ...]:
    """Returns the one way of setting weights to zero."""
    from miudo.compress.prune.sparse import SparseMethod, SparsePruning

    return (SparsePruning(pattern, SparseMethod(method)),)


def oneshot(bench: Bench) -> None:
    """Every method at every pattern, without training, plain and repaired."""
    bench.cell("dense", lambda: bench.measured(bench.parent))
    for pattern in bench.options.patterns:
        for method in bench.options.methods:
            for ridge in bench.options.ridges:

                def make(p: str = pattern, m: str = method, r: float = ridge) -> Cell:
                    return bench.measured(bench.pruned(sparse(p, m), r or None).decoder)

                repaired = f" ridge {ridge:g}" if ridge else ""
                bench.cell(f"oneshot {name_of(pattern)} {method}{repaired}", make)


def recovery(bench: Bench) -> None:
    """SparseGPT's zeros kept while the rest learns: from the parent, or from the text alone."""
    from miudo.compress.prune.recover import Recovered
    from miudo.decoder.decoder import Decoder

    o = bench.options
    for seed in o.seeds:
        fit = bench.settings(o.tokens, seed, o.lr_share)
        for teaching in o.teachings:
            for pattern in o.patterns:
                name = f"recovery {name_of(pattern)} {teaching} seed {seed}"
                begun = partial(bench.pruned, sparse(pattern, "sparsegpt"))
                bench.taught(name, begun, fit, TEACHINGS[teaching])

        def twin() -> Recovered:
            parent = bench.parent
            return Recovered(Decoder.from_weights(parent.config, parent.to_weights()), ())

        if "ce" in o.teachings:
            # More training alone may help the parent too: what is given back is beside this.
            bench.taught(f"recovery dense ce seed {seed}", twin, fit, 0.0)


def structured(bench: Bench) -> None:
    """Half the parent in every layer, against a fresh model of the same shape."""
    from miudo.compress.prune.heads import HeadPruning
    from miudo.compress.prune.recover import Recovered
    from miudo.compress.prune.width import WidthPruning
    from miudo.decoder.decoder import Decoder

    o, methods = bench.options, (HeadPruning(groups=0.5), WidthPruning(keep=0.5))
    for ridge in o.ridges:
        name = f"structured{f' ridge {ridge:g}' if ridge else ''}"
        bench.cell(name, lambda r=ridge: bench.measured(bench.pruned(methods, r or None).decoder))
    shape = bench.pruned(methods).decoder.config

    def fresh(seed: int) -> Recovered:
        decoder = Decoder(shape)
        decoder.initialise(seed)
        return Recovered(decoder, ())

    for seed in o.seeds:
        fit = bench.settings(o.tokens, seed, o.lr_share)
        for teaching, alpha in (("kd", 1.0), ("ce", 0.0)):
            name = f"structured {teaching} seed {seed}"
            bench.taught(name, lambda: bench.pruned(methods, 0.01), fit, alpha)

    def from_scratch(tokens: float, seed: int) -> FitSettings:
        fit = bench.settings(tokens, seed, 1.0)
        return dataclasses.replace(fit, lr=o.scratch_lr or fit.lr)

    seed = o.seeds[0]
    rate = f" lr {o.scratch_lr:g}" if o.scratch_lr else ""
    for times in o.scratch:  # each a whole run, its learning rate falling to the end
        long = from_scratch(o.tokens * times, seed)
        bench.taught(f"scratch {times:g} ce{rate} seed {seed}", lambda: fresh(seed), long, 0.0)
    once = from_scratch(o.tokens, seed)
    bench.taught(f"scratch 1 kd{rate} seed {seed}", lambda: fresh(seed), once, 1.0)


def name_of(pattern: str) -> str:
    return pattern.replace(":", "of")


def tables(options: argparse.Namespace) -> None:
    """Prints what there is, seeds of one cell together."""
    cells: dict[str, list[Cell]] = {}
    for path in sorted(options.out.glob("*.json")):
        cells.setdefault(path.stem.split(" seed ")[0], []).append(json.loads(path.read_text()))
    if "dense" not in cells:
        raise SystemExit("no dense parent was measured: run --parts oneshot")
    dense = cells["dense"][0]["loss"]
    tokens = cells["dense"][0]["eval_tokens"]
    print(f"parent {options.parent.name}, {dense:.4f} nats/token over {tokens:.0f} held-out tokens")
    print(
        f"{'':34} {'ppl ratio':>9} {'(sd)':>8} {'KL':>8} {'zeros':>6} {'params':>10} "
        f"{'tokens':>11} {'of magnitude':>12}"
    )
    for name, rows in cells.items():
        ratios = [math.exp(row["loss"] - dense) for row in rows]
        deviation = f"{statistics.stdev(ratios):.4f}" if len(ratios) > 1 else "-"
        kl = statistics.mean(row["kl"] for row in rows)
        print(
            f"{name:34} {statistics.mean(ratios):9.4f} {deviation:>8} {kl:8.4f} "
            f"{rows[0]['zeros']:6.1%} {rows[0]['parameters']:10,.0f} "
            f"{rows[0].get('tokens', 0):11,.0f} {removed(name, rows, cells, dense):>12}"
        )


def removed(name: str, rows: list[Cell], cells: dict[str, list[Cell]], dense: float) -> str:
    """The share of magnitude's loss gap that is gone."""
    words = name.split()
    if words[0] not in ("oneshot", "recovery") or words[1] == "dense":
        return ""
    plain = cells.get(f"oneshot {words[1]} magnitude")
    if plain is None or plain[0]["loss"] <= dense:
        return ""
    gap = statistics.mean(row["loss"] for row in rows) - dense
    return f"{1 - gap / (plain[0]['loss'] - dense):.1%}"


if __name__ == "__main__":
    main()
