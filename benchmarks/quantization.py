"""What a rounding method keeps of a model's quality, beside llama.cpp's quantiser.

For: per type and method the bytes, bits a weight, perplexity ratio and KL to the parent, the
share of nearest rounding's KL that is gone, with intervals over calibration sets.
Not for: speed (`benchmarks/engine.py`), or errors of single matrices (`benchmarks/block_types.py`).
Read next: `docs/quantization.md`, then `benchmarks/quantization_peers.py`.

    python benchmarks/quantization.py models/en-6m novels.txt --types Q4_0,Q4_K \
        --methods nearest,importance,gptq --seeds 3 --out quantization.jsonl

One runtime measures all: the PyTorch decoder, dequantised weights times float activations;
with --int8 activations are rounded as the engine's int8 path does. llama.cpp's quantiser is
`ggml_quantize_chunk` in the library that xllamacpp carries, on the same tensors, types and
calibration text; its imatrix is miudo's own mean squares, those of `quantize.tables` for the
token table. A calibration set is another stretch of the text for each seed; the last part of the
text, which no set reaches, is measured on.
A row that is in --out already is not made again.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miudo.compress.method import Quantizer, Report
from miudo.compress.quantize.awq import AWQ
from miudo.compress.quantize.gptq import GPTQ, Rounding
from miudo.compress.quantize.importance import ImportanceRounding
from miudo.compress.quantize.learned import LearnedRounding
from miudo.compress.quantize.nearest import NearestRounding
from miudo.compress.quantize.rotate import rotate
from miudo.decoder.decoder import Decoder
from miudo.decoder.fake_quant import round_activations
from miudo.evaluate.texts import read_texts
from miudo.formats import ModelFile, open_model
from miudo.formats.blocks import to_f32
from miudo.tensors import DType, StoredTensor, Weights
from miudo.text.tokenizer import TextTokenizer

PEER = ("llama.cpp", "llama.cpp imatrix")
METHODS: Mapping[str, Callable[[DType], Quantizer]] = {
    "nearest": NearestRounding,
    "importance": ImportanceRounding,
    "gptq": GPTQ,
    "awq": AWQ,
    "awq+gptq": lambda dtype: AWQ(dtype, rounding=Rounding.GPTQ),
    "learned": LearnedRounding,
}
# ggml.h; the types whose quantiser takes an importance matrix.
GGML_TYPES = {
    DType.Q4_0: 2, DType.Q4_1: 3, DType.Q5_0: 6, DType.Q5_1: 7, DType.Q8_0: 8, DType.Q2_K: 10,
    DType.Q3_K: 11, DType.Q4_K: 12, DType.Q5_K: 13, DType.Q6_K: 14, DType.IQ4_NL: 20,
    DType.IQ4_XS: 23,
}  # fmt: skip
ROWS = 2
# Student's t, 97.5%, by the number of values.
T_975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


@dataclass(frozen=True)
class Task:
    """The parent, its log-probabilities on the measured text, and the calibration sets."""

    file: ModelFile
    decoder: Decoder
    measured: list[Tensor]  # B T
    reference: list[Tensor]  # B T V
    sets: list[list[Tensor]]
    loss: float


def main() -> None:
    """Makes the rows that are missing and prints the table of all."""
    given = arguments()
    torch.set_num_threads(1)
    task = prepare(given)
    made = read(given.out)
    for key in wanted(given):
        if key not in made:
            row = measure(task, *key)
            made[key] = row
            with given.out.open("a") as file:
                file.write(json.dumps(dict(zip(KEYS, key, strict=True)) | row) + "\n")
    print(f"{given.model.name}: {sum(ids.numel() for ids in task.measured)} tokens measured, ")
    print(f"{given.calibration} of calibration, loss {task.loss:.4f} nats a token\n")
    print(table({key: made[key] for key in wanted(given)}))


KEYS = ("type", "method", "seed", "rotated", "int8")
Key = tuple[str, str, int, bool, bool]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path, help="a file, .xz too")
    parser.add_argument("--types", default="Q4_0,Q4_K")
    parser.add_argument("--methods", default=",".join([*METHODS, *PEER]))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--calibration", type=int, default=32_768, help="tokens of a set")
    parser.add_argument("--measured", type=int, default=65_536, help="tokens")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--rotate", action="store_true", help="rotate the model first")
    parser.add_argument("--int8", action="store_true", help="round activations too")
    parser.add_argument("--out", type=Path, default=Path("quantization.jsonl"))
    return parser.parse_args()


def prepare(given: argparse.Namespace) -> Task:
    file = open_model(given.model)
    if file.tokenizer is None:
        raise SystemExit("the model has no tokenizer")
    decoder = Decoder.from_weights(file.config, file.weights)
    tokenizer = TextTokenizer(file.tokenizer)
    length = min(given.context, file.config.max_positions)
    wanted_rows = (given.seeds * given.calibration + given.measured) // length
    rows = torch.stack(list(text_rows(given.text, tokenizer, length, wanted_rows)))
    if len(rows) < wanted_rows:
        raise SystemExit(f"the text has {len(rows)} rows of {length} tokens, not {wanted_rows}")
    each, last = given.calibration // length, given.measured // length
    measured = list(torch.split(rows[-last:], ROWS))
    sets = [list(torch.split(rows[s * each : (s + 1) * each], ROWS)) for s in range(given.seeds)]
    reference = log_probs(decoder, measured)
    return Task(file, decoder, measured, reference, sets, loss(reference, measured))


def text_rows(path: Path, tokenizer: TextTokenizer, length: int, wanted: int) -> Iterator[Tensor]:
    ids: list[int] = []
    for document in read_texts([path], max_bytes=8 * length * wanted):
        ids += tokenizer.encode(document)
        while len(ids) >= length:
            yield torch.tensor(ids[:length])
            del ids[:length]


def wanted(given: argparse.Namespace) -> list[Key]:
    keys = []
    for dtype in given.types.split(","):
        for method in given.methods.split(","):
            once = method in ("nearest", "llama.cpp")  # they read no text
            for seed in range(1 if once else given.seeds):
                keys.append((dtype, method, seed, given.rotate, given.int8))
    return keys


def measure(
    task: Task, dtype: str, method: str, seed: int, rotated: bool, int8: bool
) -> dict[str, Any]:
    decoder = rotate(task.decoder, seed).decoder if rotated else task.decoder
    start = time.process_time()
    if method in PEER:
        stored, bits = llama_cpp(decoder, DType(dtype), task.sets[seed], method.endswith("matrix"))
        notes: tuple[str, ...] = ()
    else:
        stored, report = rounded(METHODS[method](DType(dtype)), decoder, task.sets[seed])
        bits, notes = report.bits_per_weight, report.notes
    spent = time.process_time() - start
    made = Decoder.from_weights(decoder.config, stored)
    if int8:
        blocks = [name for name, t in stored.items() if t.dtype.block > 1]
        round_activations(made, blocks)
    found = log_probs(made, task.measured)
    return {
        "bytes": sum(t.data.nbytes for t in stored.values()),
        "bits": bits,
        "ratio": math.exp(loss(found, task.measured) - task.loss),
        "kl": divergence(task.reference, found),
        "cpu_s": spent,
        "notes": notes,
    }


def rounded(method: Quantizer, decoder: Decoder, batches: list[Tensor]) -> tuple[Weights, Report]:
    return method.store(decoder, method.calibrate(decoder, batches))


def llama_cpp(
    decoder: Decoder,
    dtype: DType,
    batches: list[Tensor],
    matrix: bool,
    tables: DType | None = None,
) -> tuple[Weights, float]:
    """llama.cpp's own quantisation of the tensors that miudo would store in blocks."""
    _, report = NearestRounding(dtype, tables).store(decoder)
    measured = ImportanceRounding(dtype, tables)
    weighed = measured.calibrate(decoder, batches) if matrix else {}
    stored = dict(decoder.to_weights())
    for name, kind in report.stored_dtypes().items():
        if kind.block > 1:
            stored[name] = theirs(to_f32(stored[name]), kind, weighed.get(name))
    return stored, report.bits_per_weight


def theirs(values: Any, dtype: DType, weights: Any) -> StoredTensor:
    import xllamacpp

    (library,) = Path(xllamacpp.__file__).parent.glob("*.so")
    quantize = ctypes.CDLL(str(library)).ggml_quantize_chunk
    size, pointer = ctypes.c_int64, ctypes.c_void_p
    quantize.argtypes = [ctypes.c_int, pointer, pointer, size, size, size, pointer]
    out = np.zeros(dtype.size_bytes(values.shape), dtype=np.uint8)
    values = np.ascontiguousarray(values, dtype=np.float32)
    at = None if weights is None else np.ascontiguousarray(weights, dtype=np.float32).ctypes.data
    quantize(GGML_TYPES[dtype], values.ctypes.data, out.ctypes.data, 0, *values.shape, at)
    return StoredTensor(dtype, values.shape, out)


@torch.no_grad()
def log_probs(decoder: Decoder, batches: list[Tensor]) -> list[Tensor]:
    return [decoder.logits(decoder(ids)).log_softmax(-1) for ids in batches]


def loss(log_p: list[Tensor], batches: list[Tensor]) -> float:
    found = [
        -float(p[:, :-1].gather(-1, ids[:, 1:, None]).double().sum())
        for p, ids in zip(log_p, batches, strict=True)
    ]
    return sum(found) / sum(ids.numel() - len(ids) for ids in batches)


def divergence(reference: list[Tensor], found: list[Tensor]) -> float:
    """Mean KL(parent || made) in nats a position."""
    sums = [
        float((p.exp() * (p - q)).sum().double()) for p, q in zip(reference, found, strict=True)
    ]
    return sum(sums) / sum(p.shape[0] * p.shape[1] for p in reference)


def read(path: Path) -> dict[Key, dict[str, Any]]:
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {tuple(row.pop(key) for key in KEYS): row for row in rows}


def table(rows: dict[Key, dict[str, Any]]) -> str:
    """One line a type and method: means over seeds, 95% interval of the KL (Student's t)."""
    lines = [
        "| type | method | bytes | bits/weight | ppl ratio | KL | 95% | nearest's gone | CPU s |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    nearest = {key[0]: row["kl"] for key, row in rows.items() if key[1] == "nearest"}
    for dtype, method in dict.fromkeys(key[:2] for key in rows):
        same = [row for key, row in rows.items() if key[:2] == (dtype, method)]
        kls = [row["kl"] for row in same]
        kl = statistics.fmean(kls)
        gone = f"{1 - kl / nearest[dtype]:.0%}" if dtype in nearest else ""
        ratio = statistics.fmean(row["ratio"] for row in same)
        spent = statistics.fmean(row["cpu_s"] for row in same)
        lines.append(
            f"| {dtype} | {method} | {same[0]['bytes']:,} | {same[0]['bits']:.3f} | {ratio:.4f} "
            f"| {kl:.5f} | {half_width(kls)} | {gone} | {spent:.1f} |"
        )
    return "\n".join(lines)


def half_width(values: list[float]) -> str:
    if len(values) < 2:
        return ""
    deviation = statistics.stdev(values) / len(values) ** 0.5
    return f"± {T_975[min(len(values), 10)] * deviation:.5f}"


if __name__ == "__main__":
    main()
