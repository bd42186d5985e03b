"""Does a distilled student beat its twin trained from scratch, on real text?

For: a teacher, then per seed a student of a quarter of its non-embedding parameters and a twin
of the same shape, seed, order of text, schedule and number of tokens, without a teacher.
Not for: the best that the shapes can do; all runs are short and equal.
Read next: `miudo.compress.verbs`.

    python benchmarks/twins.py --language en --out runs/twins-en
    python benchmarks/twins.py --language pt --out runs/twins-pt
    python benchmarks/twins.py --teacher models/en-6m --data runs/en-data --tokens 20_000_000 \
        --out runs/quarters-en

With a `--teacher` that is there already, and data of its tokenizer, none is trained. Every run
has its own folder under --out; a second call skips what is finished and goes on with what is
not. About 20 minutes a language on two cores with native bf16.
"""

from __future__ import annotations

import argparse
import dataclasses
import lzma
import math
import os
import sys
from functools import partial
from pathlib import Path
from typing import IO

from miudo.compress.distill.divergence import Divergence
from miudo.compress.distill.terms import DistillSettings, LayerMap
from miudo.compress.jobs import DistillJob
from miudo.compress.verbs import run_distill, student_config
from miudo.data.pack import PackSettings
from miudo.data.packed import DataSet
from miudo.data.pipeline import PrepareSettings, prepare
from miudo.decoder.decoder import Decoder
from miudo.files import atomic_write
from miudo.formats import open_model
from miudo.plain_json import write_json
from miudo.tensors import parameter_count
from miudo.train.evaluation import held_out_loss
from miudo.train.plan import device_of
from miudo.train.pretrain import TrainJob, resume, train
from miudo.train.progress import Lines
from miudo.train.settings import FitSettings

VOCAB_SIZE = 2048
PT_BYTES = 12_000_000
SHARED = Path(os.environ.get("MIUDO_SHARED", "../shared"))


def main() -> None:
    given = arguments()
    out: Path = given.out
    data = given.data or data_folder(given.language, given.shared / "data", out)
    settings = FitSettings(tokens=given.tokens, batch_size=given.batch_size, length=given.length)
    steps = -(-given.tokens // settings.step_tokens)
    settings = dataclasses.replace(settings, eval_every=max(1, steps // 8), save_every=steps)
    teacher = given.teacher or trained(out / "teacher", data, settings, given.preset)
    rows = []
    for seed in given.seeds:
        seeded = dataclasses.replace(settings, seed=seed)
        student = distilled(out / f"student-{seed}", teacher, data, seeded, given)
        shape = student_config(given.ratio, open_model(teacher).config)
        twin = trained(out / f"twin-{seed}", data, seeded, shape)
        rows.append(row(seed, student, twin, data, settings))
    report(given, rows, teacher, data, settings)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--language", choices=("en", "pt"), default="en")
    parser.add_argument("--tokens", type=int, default=5_000_000, help="in every run")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shared", type=Path, default=SHARED, help="folder that holds data/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--preset", default="1m", help="the teacher's")
    parser.add_argument("--teacher", type=Path, help="a trained model; with --data")
    parser.add_argument("--data", type=Path, help="a data folder of its tokenizer")
    parser.add_argument("--ratio", type=float, default=0.25)
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--alpha", type=float, default=0.5)
    parser.add_argument("--loss", type=Divergence, default=Divergence.FORWARD_KL)
    parser.add_argument("--features", type=LayerMap, help="hidden states too, in the first half")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    return parser.parse_args()


def data_folder(language: str, shared: Path, out: Path) -> Path:
    """Packs the text once; held-out text is whole articles or whole novels."""
    folder = out / "data"
    if (folder / "manifest.json").exists():
        return folder
    if language == "en":
        inputs = [shared / "en_prose" / "wikitext-2" / "wiki.train.tokens.xz"]
        share = 0.03
    else:
        inputs = novels(shared / "pt_prose", out / "novels")
        share = 0.1
    prepare(
        inputs,
        folder,
        settings=PrepareSettings(vocab_size=VOCAB_SIZE, pack=PackSettings(held_out=share)),
        progress=lambda line: print(line, file=sys.stderr),
    )
    return folder


def novels(source: Path, folder: Path) -> list[Path]:
    """Cuts the first novels of the collection, up to PT_BYTES, into a file each."""
    folder.mkdir(parents=True, exist_ok=True)
    index = (source / "eltec-por_novels_dev.index.tsv").read_text(encoding="utf-8").splitlines()
    text = lzma.decompress((source / "eltec-por_novels_dev.txt.xz").read_bytes())
    files = []
    for line in index[1:]:
        offset, size, name = line.split("\t")[:3]
        start, end = int(offset), int(offset) + int(size)
        if end > PT_BYTES:
            break
        path = folder / f"{Path(name).stem}.txt"
        atomic_write(path, partial(_write, text[start:end]))
        files.append(path)
    return files


def _write(content: bytes, file: IO[bytes]) -> None:
    file.write(content)


def trained(folder: Path, data: Path, settings: FitSettings, shape: object) -> Path:
    """Trains from scratch, unless that was done; returns the model's folder."""
    print(f"== {folder.name}", file=sys.stderr)
    if not finished(folder):
        if (folder / "checkpoints").exists():
            resume(folder, Lines())
        else:
            train(TrainJob((str(data),), folder, settings, shape), Lines())  # type: ignore[arg-type]
    return folder / "model"


def distilled(
    folder: Path, teacher: Path, data: Path, settings: FitSettings, given: argparse.Namespace
) -> Path:
    """Distils, unless that was done; returns the model's folder."""
    print(f"== {folder.name}", file=sys.stderr)
    if not finished(folder):
        job = DistillJob(
            teacher=teacher,
            inputs=(str(data),),
            out=folder,
            fit=settings,
            student=given.ratio,
            loss=DistillSettings.of(
                given.loss,
                temperature=given.temperature,
                alpha=given.alpha,
                features=given.features,
            ),
        )
        run_distill(job, Lines(), resume=(folder / "checkpoints").exists())
    return folder / "model"


def finished(folder: Path) -> bool:
    return (folder / "model" / "record.json").exists()


def whole_loss(model: Path, data: Path, settings: FitSettings) -> float:
    """Mean cross-entropy in nats a token over all held-out text, float32."""
    opened = open_model(model)
    held_out = DataSet.open(data).open_split("held_out")
    every = dataclasses.replace(settings, eval_tokens=max(1, held_out.n_tokens))
    decoder = Decoder.from_weights(opened.config, opened.weights).to(device_of(settings))
    return held_out_loss(decoder, held_out, every)


def row(
    seed: int, student: Path, twin: Path, data: Path, settings: FitSettings
) -> dict[str, float]:
    student_shape, twin_shape = open_model(student).config, open_model(twin).config
    if student_shape != twin_shape:
        sys.exit(f"{student} and {twin} are not of one shape")
    losses = {
        "student": whole_loss(student, data, settings),
        "twin": whole_loss(twin, data, settings),
    }
    return {"seed": seed, **losses, "difference": losses["student"] - losses["twin"]}


def report(
    given: argparse.Namespace,
    rows: list[dict[str, float]],
    teacher: Path,
    data: Path,
    settings: FitSettings,
) -> None:
    shape = open_model(teacher).config
    small = student_config(given.ratio, shape)
    of_teacher = whole_loss(teacher, data, settings)
    inner = [parameter_count(c, embeddings=False) for c in (shape, small)]
    packed = DataSet.open(data)
    print(
        f"{given.language}: {packed.tokens('train'):,} tokens to train on, "
        f"{packed.tokens('held_out'):,} held out, vocabulary {shape.vocab_size}"
    )
    print(
        f"teacher {parameter_count(shape):,} parameters ({inner[0]:,} without embeddings), "
        f"student and twin {parameter_count(small):,} ({inner[1]:,}, {inner[1] / inner[0]:.1%})"
    )
    print(
        f"{given.tokens:,} tokens a run, batch {settings.batch_size} x {settings.length}, "
        f"{given.loss}, temperature {given.temperature}, alpha {given.alpha}"
    )
    print(f"teacher's held-out loss {of_teacher:.4f} (perplexity {math.exp(of_teacher):.2f})\n")
    print("seed  student    twin  difference  sign  gap to the teacher closed")
    for r in rows:
        closed = -r["difference"] / (r["twin"] - of_teacher)
        sign = "-" if r["difference"] < 0 else "+"
        print(
            f"{r['seed']:4.0f}  {r['student']:7.4f} {r['twin']:7.4f}  {r['difference']:+10.4f}"
            f"  {sign:>4}  {closed:25.1%}"
        )
    better = sum(r["difference"] < 0 for r in rows)
    print(f"\nthe student has the lower held-out loss in {better} of {len(rows)} seeds")
    values = {
        "language": given.language,
        "tokens": given.tokens,
        "loss": given.loss,
        "features": given.features,
        "temperature": given.temperature,
        "alpha": given.alpha,
        "teacher": of_teacher,
        "parameters": {"teacher": inner[0], "student": inner[1]},
        "seeds": rows,
        "better": better,
    }
    write_json(given.out / "twins.json", values)


if __name__ == "__main__":
    main()
