"""Do features and relations teach a student more than the teacher's distributions alone?

For: the sign and size of every term beside the logits, at equal tokens, over seeds.
Not for: tuning a term's weight; each is divided by its first value and then weighs as said.
Read next: `miudo.compress.distill.terms`.

    python benchmarks/terms.py --teacher runs/en-1m/model --data runs/en-1m-data --out runs/terms

The gap is that between the teacher and a student of logits alone; a student's share of it is
what its own terms closed of it. Intervals are of the difference within a seed (Student's t,
95%). Every run has its own folder under --out; a second call goes on with what is not done.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import sys
from pathlib import Path

from twins import finished, whole_loss

from miudo.compress.distill.terms import (
    DistillSettings,
    Feature,
    FeatureTerm,
    LayerMap,
    Relation,
    RelationTerm,
    Schedule,
    Term,
)
from miudo.compress.jobs import DistillJob
from miudo.compress.verbs import run_distill
from miudo.plain_json import write_json
from miudo.train.progress import Lines
from miudo.train.settings import FitSettings

T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571}
"""Student's t for a two-sided 95%, by degrees of freedom."""


def main() -> None:
    given = arguments()
    steps = -(-given.tokens // (given.batch_size * given.length))
    plain = FitSettings(tokens=given.tokens, batch_size=given.batch_size, length=given.length)
    losses: dict[str, list[float]] = {}
    for seed in given.seeds:
        fit = dataclasses.replace(plain, seed=seed, eval_every=0, save_every=steps)
        for name in ("logits", *(name for name in given.terms if name != "logits")):
            model = taught(given, name, fit)
            losses.setdefault(name, []).append(whole_loss(model, given.data, fit))
            print(f"{name} seed {seed}: {losses[name][-1]:.4f}", file=sys.stderr, flush=True)
    report(given, whole_loss(given.teacher, given.data, plain), losses)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="a data folder of its tokenizer")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=2_000_000, help="in every run")
    parser.add_argument("--ratio", type=float, default=0.25)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--terms", nargs="+", choices=tuple(EXTRA), default=list(EXTRA))
    parser.add_argument("--weight", type=float, default=0.1, help="of each term beside the logits")
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--alpha", type=float, default=0.5)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    return parser.parse_args()


def feature(kind: Feature) -> FeatureTerm:
    return FeatureTerm(kind, LayerMap.UNIFORM, schedule=Schedule.FALL, normalise=True)


def relation(kind: Relation) -> RelationTerm:
    return RelationTerm(kind, schedule=Schedule.FALL, normalise=True)


EXTRA: dict[str, tuple[Term, ...]] = {
    "logits": (),
    "hidden": (feature(Feature.HIDDEN),),
    "cosine": (feature(Feature.COSINE),),
    "distance": (relation(Relation.DISTANCE),),
    "angle": (relation(Relation.ANGLE),),
    "cka": (relation(Relation.CKA),),
    "minilm-v2": (relation(Relation.MINILM_V2),),
    "hidden+distance": (feature(Feature.HIDDEN), relation(Relation.DISTANCE)),
}
"""Name to the terms beside the logits and the text; each falls to nothing by half the run."""


def taught(given: argparse.Namespace, name: str, fit: FitSettings) -> Path:
    """Distils a student with the terms called `name`, unless that was done; returns its folder."""
    folder: Path = given.out / f"{name}-{fit.seed}"
    if not finished(folder):
        base = DistillSettings.of(temperature=given.temperature, alpha=given.alpha)
        extra = tuple(dataclasses.replace(term, weight=given.weight) for term in EXTRA[name])
        job = DistillJob(
            teacher=given.teacher,
            inputs=(str(given.data),),
            out=folder,
            fit=fit,
            student=given.ratio,
            loss=DistillSettings((*base.terms, *extra)),
        )
        run_distill(job, Lines(), resume=(folder / "checkpoints").exists())
    return folder / "model"


def report(given: argparse.Namespace, teacher: float, losses: dict[str, list[float]]) -> None:
    alone = losses["logits"]
    gap = statistics.mean(alone) - teacher
    print(f"teacher {teacher:.4f} nats/token; {given.tokens:,} tokens a run, seeds {given.seeds}")
    print(f"{'beside the logits':18} {'loss':>8} {'difference':>11} {'95%':>9} {'of the gap':>11}")
    rows = []
    for name, found in losses.items():
        differences = [a - b for a, b in zip(found, alone, strict=True)]
        mean, half = statistics.mean(differences), interval(differences)
        rows.append({"terms": name, "losses": found, "difference": mean, "half_width": half})
        print(
            f"{name:18} {statistics.mean(found):8.4f} {mean:+11.4f} {f'±{half:.4f}':>9} "
            f"{-mean / gap:+11.1%}"
        )
    write_json(given.out / "terms.json", {"teacher": teacher, "rows": rows})


def interval(values: list[float]) -> float:
    """Returns half the width of the mean's 95% interval; infinite for one value."""
    if len(values) < 2:
        return math.inf
    return T95[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))


if __name__ == "__main__":
    main()
