"""miudo's rounding beside six other programs: the same matrices, text and runtime for all.

For: auto-round, GPTQModel, torchao, llm-compressor, quanto, llama.cpp; bits a weight as each
format stores them, perplexity ratio, KL, CPU seconds and memory.
Not for: speed of what comes out, or miudo's types among themselves (`benchmarks/quantization.py`).
Read next: `benchmarks/compression.md`.

    python benchmarks/quantization_peers.py models/en-6m wiki.valid.tokens --bits 4 --seeds 3
    python benchmarks/quantization_peers.py ... --only auto-round --seeds 1

The peers are no dependencies of miudo, and some ask for other versions of PyTorch and
transformers than they are run with here. In an environment of their own that has miudo:

    pip install --no-deps auto-round==0.16.1 torchao==0.18.0 llmcompressor==0.14.0.1 \
        optimum-quanto==0.2.7 compressed-tensors==0.19.0 py-cpuinfo loguru nvidia-ml-py
    BUILD_CUDA_EXT=0 pip install --no-deps --no-build-isolation gptqmodel==7.7.0 device-smi \
        pypcre tokenicer logbar defuser

Only the blocks' matrices are rounded; the token table stays as it is, ours too. What a peer gives
is put back as floats into the PyTorch decoder. Peers run on float32 weights on the CPU; where a
format keeps 16-bit scales and the peer left float32 ones, these are used and counted as 16 bits.
A row that is in --out already is not made again.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import gc
import importlib
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from quantization import METHODS, Task, divergence, half_width, llama_cpp, log_probs, loss, prepare
from safetensors.torch import save_file
from torch import Tensor

from miudo.decoder.decoder import Decoder
from miudo.formats import open_model
from miudo.meter import peak_memory, resident_bytes
from miudo.tensors import DType, Weights

GROUP = 32
TABLES = DType.BF16  # what models/en-6m is stored in: nothing is lost
MISREAD = 1.0  # nats a position; of real rounding to 3 bits come hundredths
SAME_LOGITS = 1e-4  # of absolute difference: two orders of summation in float32
Sets = list[Tensor]  # ids, B T
Values = Mapping[str, Tensor]
Peer = Callable[[Any, Sets], Values]
"""Given a transformers model and ids, returns its parameters by name, those rounded as floats."""


def auto_round(model: Any, batches: Sets, *, bits: int, sym: bool, iters: int) -> Values:
    from auto_round import AutoRound
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model.name_or_path)  # asked for; ids are given
    rows = sum(len(ids) for ids in batches)
    made, _ = AutoRound(
        model, tokenizer, bits=bits, group_size=GROUP, sym=sym, dataset=batches, iters=iters,
        nsamples=rows, seqlen=batches[0].shape[1], batch_size=len(batches[0]),
        device_map="cpu", enable_torch_compile=False,
    ).quantize()  # fmt: skip
    return {name: p.detach().float() for name, p in made.named_parameters()}


def torchao(model: Any, _: Sets, *, bits: int, sym: bool, hqq: bool = False) -> Values:
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup, quantize_
    from torchao.quantization.quant_primitives import MappingType
    from torchao.quantization.quantize_.workflows import IntxChooseQParamsAlgorithm as Choice

    config = IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{bits}"),
        granularity=PerGroup(GROUP),
        mapping_type=MappingType.SYMMETRIC if sym else MappingType.ASYMMETRIC,
        scale_dtype=torch.float16,
        intx_choose_qparams_algorithm=Choice.HQQ_SCALE_ONLY if hqq else Choice.AFFINE,
    )
    quantize_(model.model.layers, config)
    return {
        name: (p.dequantize() if hasattr(p, "qdata") else p).detach().float()
        for name, p in model.named_parameters()
    }


def llm_compressor(model: Any, batches: Sets, *, method: str, bits: int, sym: bool) -> Values:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, fake_quantize
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.pipelines.cache import IntermediatesCache

    # AWQ pins memory for a GPU, which PyTorch refuses where there is none.
    IntermediatesCache.pin_memory = lambda *_: None
    weights = QuantizationArgs(num_bits=bits, symmetric=sym, strategy="group", group_size=GROUP)
    scheme = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
    rounding = GPTQModifier if method == "GPTQ" else QuantizationModifier
    recipe = [rounding(config_groups=scheme, ignore=["lm_head"])]
    if method == "AWQ":
        recipe = [AWQModifier(), *recipe]
    rows = [{"input_ids": r[None], "attention_mask": torch.ones_like(r[None])}
            for ids in batches for r in ids]  # fmt: skip
    names = {name for name, _ in model.named_parameters()}
    oneshot(
        model=model, recipe=recipe, num_calibration_samples=len(rows),
        dataset=torch.utils.data.DataLoader(rows, batch_size=None),
    )  # fmt: skip
    values = {n: p.detach().float() for n, p in model.named_parameters() if n in names}
    for name, module in model.named_modules():
        if (given := getattr(module, "quantization_scheme", None)) is not None:
            values[f"{name}.weight"] = fake_quantize(
                module.weight.detach(), module.weight_scale, module.weight_zero_point, given.weights
            ).float()
    return values


def gptqmodel(model: Any, batches: Sets, *, bits: int, sym: bool) -> Values:
    # Its pool asks for two workers, and where there are two cores gives itself one.
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    config = QuantizeConfig(bits=bits, group_size=GROUP, sym=sym, device="cpu")
    own = GPTQModel.load(model.name_or_path, config, dtype=torch.float32)
    rows = [{"input_ids": r, "attention_mask": torch.ones_like(r)} for ids in batches for r in ids]
    own.quantize(rows, batch_size=len(batches[0]))
    values = {name: p.detach() for name, p in model.named_parameters()}
    # Until a file was read, zero points are those of another version of the format.
    with tempfile.TemporaryDirectory(prefix="miudo-") as made:
        own.save(made)
        held = GPTQModel.load(
            made, device="cpu", backend=BACKEND.GPTQ_TORCH, dtype=torch.float16
        ).model
        for name, module in held.named_modules():
            if hasattr(module, "dequantize_weight"):
                values[f"{name}.weight"] = module.dequantize_weight().T.float()
    return values


def quanto(model: Any, _: Sets, *, group: int) -> Values:
    from optimum.quanto import freeze, qint4, quantize

    quantize(model, weights=qint4, exclude="lm_head")
    for module in model.modules():
        if hasattr(module, "weight_group_size"):  # 128 where it fits; there is no other setting
            module.weight_group_size = group
    freeze(model)
    return {
        name: (p.dequantize() if hasattr(p, "qtype") else p).detach().float()
        for name, p in model.named_parameters()
    }


SYM, ASYM = "symmetric", "asymmetric"
SCALE, TWO_FLOATS = 16 / GROUP, 32 / GROUP  # bits a weight of one, and of two, 16-bit numbers


def packed_zero(bits: int) -> float:
    """Bits a weight of a zero point in as many bits as a code."""
    return bits / GROUP


def peers(bits: int) -> dict[str, tuple[float, bool, str, Peer]]:
    """Name to bits a weight, whether it reads text, the module to import, and what to call.

    GPTQ's format, auto-round's too, keeps zero points for symmetric codes as well; torchao's take
    eight bits.
    """
    gptq = bits + SCALE + packed_zero(bits)
    found: dict[str, tuple[float, bool, str, Peer]] = {}
    for name, sym in ((SYM, True), (ASYM, False)):
        for iters in (200, 1000):  # the default; what its documentation calls best
            made = partial(auto_round, bits=bits, sym=sym, iters=iters)
            found[f"auto-round {name}, {iters}"] = (gptq, True, "auto_round", made)
        for method in ("GPTQ", "AWQ"):
            stored = bits + SCALE + (0.0 if sym else packed_zero(bits))
            made = partial(llm_compressor, method=method, bits=bits, sym=sym)
            found[f"llm-compressor {method} {name}"] = (stored, True, "llmcompressor", made)
        made = partial(gptqmodel, bits=bits, sym=sym)
        found[f"GPTQModel {name}"] = (gptq, True, "gptqmodel", made)
        stored = bits + SCALE + (0.0 if sym else 8 / GROUP)
        made = partial(torchao, bits=bits, sym=sym)
        found[f"torchao {name}"] = (stored, False, "torchao.quantization", made)
    made = partial(torchao, bits=bits, sym=True, hqq=True)
    found[f"torchao {SYM}, hqq"] = (bits + SCALE, False, "torchao.quantization", made)
    if bits == 4:  # quanto has 2, 4 and 8
        for group in (32, 128):
            stored = bits + TWO_FLOATS * GROUP / group
            made = partial(quanto, group=group)
            found[f"quanto {ASYM}, groups of {group}"] = (stored, False, "optimum.quanto", made)
    return found


TYPES = {4: (DType.Q4_0, DType.Q4_1, DType.Q4_K), 3: (DType.Q3_K,)}


def ours(bits: int) -> dict[str, tuple[str, DType]]:
    """Name to method and type: miudo's methods, and llama.cpp's on the same types."""
    methods = ("nearest", "importance", "llama.cpp imatrix", "gptq", "awq", "awq+gptq", "learned")
    return {
        f"{m if m.startswith('llama.cpp') else f'miudo {m}'} {dtype}": (m, dtype)
        for dtype in TYPES[bits]
        for m in methods
    }


def main() -> None:
    """Makes the rows that are missing and prints the table of all."""
    given = arguments()
    torch.set_num_threads(1)
    task = prepare(given)
    check_same_logits(given.model, task)
    made = read(given.out)
    # Where sets end, the measured text begins: rows of other sizes are not of the same text.
    text = f"{given.seeds} x {given.calibration} + {given.measured}"
    for name, seed in wanted(given):
        key = (name, seed, given.bits, text)
        if key not in made:
            row = measure(given, task, name, seed)
            made[key] = row
            print(f"{name}, {seed}: {row}", flush=True)
            with given.out.open("a") as file:
                file.write(json.dumps(dict(zip(KEYS, key, strict=True)) | row) + "\n")
    print(table({key: row for key, row in made.items() if key[2:] == (given.bits, text)}))


KEYS = ("name", "seed", "bits", "text")
Key = tuple[str, int, int, str]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path, help="a file, .xz too")
    parser.add_argument("--bits", type=int, choices=(3, 4), default=4)
    parser.add_argument("--only", nargs="*", help="rows whose name begins with one of these")
    parser.add_argument("--seeds", type=int, default=3, help="calibration sets")
    parser.add_argument("--calibration", type=int, default=16_384, help="tokens of a set")
    parser.add_argument("--measured", type=int, default=16_384, help="tokens")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path("quantization-peers.jsonl"))
    return parser.parse_args()


def wanted(given: argparse.Namespace) -> list[tuple[str, int]]:
    reads = {name: method != "nearest" for name, (method, _) in ours(given.bits).items()}
    reads |= {name: text for name, (_, text, _, _) in peers(given.bits).items()}
    only = tuple(given.only or ("",))
    return [
        (name, seed)
        for seed in range(given.seeds)
        for name, text in reads.items()
        if name.startswith(only) and (text or seed == 0)
    ]


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def check_same_logits(folder: Path, task: Task) -> None:
    """Stops unless transformers computes what the decoder does: peers round what it shows them."""
    ids = task.measured[0]
    with torch.no_grad():
        off = load(folder)(ids).logits - task.decoder.logits(task.decoder(ids))
    if float(off.abs().max()) > SAME_LOGITS:
        raise SystemExit(f"transformers' logits are {float(off.abs().max()):.2g} off")


def measure(given: argparse.Namespace, task: Task, name: str, seed: int) -> dict[str, Any]:
    batches, known = task.sets[seed], peers(given.bits)
    if name in known:
        stored_bits, _, module, peer = known[name]
        importlib.import_module(module)
        model = load(given.model)
        values, spent = timed(lambda: peer(model, batches))
        weights: Weights = as_weights(given.model, values)
    else:
        method, dtype = ours(given.bits)[name]
        weights, spent = timed(lambda: rounded(task.decoder, method, dtype, batches))
        blocks = [t for t in weights.values() if t.dtype.block > 1]
        size = 8 * sum(t.data.nbytes for t in blocks)
        stored_bits = size / sum(math.prod(t.shape) for t in blocks)
    found = log_probs(Decoder.from_weights(task.decoder.config, weights), task.measured)
    kl = divergence(task.reference, found)
    if kl > MISREAD:
        raise SystemExit(f"{name}: a KL of {kl:.2f} says that its format was misread")
    return {
        "bits_stored": stored_bits,
        "ratio": math.exp(loss(found, task.measured) - task.loss),
        "kl": kl,
        **spent,
    }


def rounded(decoder: Decoder, method: str, dtype: DType, batches: Sets) -> Weights:
    if method == "llama.cpp imatrix":
        return llama_cpp(decoder, dtype, batches, matrix=True, tables=TABLES)[0]
    quantizer = dataclasses.replace(METHODS[method](dtype), tables=TABLES)  # type: ignore[type-var]
    return quantizer.store(decoder, quantizer.calibrate(decoder, batches))[0]


def timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Returns what `work` gives, its CPU seconds, and by how many bytes memory grew at most."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what is free and kept would hide what is taken
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew, proc(5)
    before, start = resident_bytes() or 0.0, time.process_time()
    result = work()
    spent = time.process_time() - start
    return result, {"cpu_s": spent, "memory": peak_memory().value - before}


def as_weights(folder: Path, values: Values) -> Weights:
    """Returns parameters named as transformers does under our names."""
    with tempfile.TemporaryDirectory(prefix="miudo-") as made:
        config = json.loads((folder / "config.json").read_text())
        (Path(made) / "config.json").write_text(json.dumps(config | {"torch_dtype": "float32"}))
        kept = {name: value.contiguous() for name, value in values.items()}
        save_file(kept, Path(made) / "model.safetensors", metadata={"format": "pt"})
        return dict(Decoder.from_weights(*opened(Path(made))).to_weights())


def opened(folder: Path) -> tuple[Any, Weights]:
    file = open_model(folder)
    return file.config, file.weights


def read(path: Path) -> dict[Key, dict[str, Any]]:
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {tuple(row.pop(key) for key in KEYS): row for row in rows}


def table(rows: Mapping[Key, dict[str, Any]]) -> str:
    """One line a method, least bits first, then least KL; 95% interval of the KL over sets."""
    lines = [
        "| method | bits a weight | perplexity ratio | KL | sets | CPU s | memory, MB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    found = []
    for name in dict.fromkeys(key[0] for key in rows):
        same = [row for key, row in rows.items() if key[0] == name]
        mean = {k: statistics.fmean(row[k] for row in same) for k in same[0]}
        kls = [row["kl"] for row in same]
        line = (
            f"| {name} | {mean['bits_stored']:.3f} | {mean['ratio']:.4f} | {mean['kl']:.5f} "
            f"{half_width(kls)} | {len(kls)} | {mean['cpu_s']:.1f} | {mean['memory'] / 1e6:.0f} |"
        )
        found.append((mean["bits_stored"], mean["kl"], line))
    return "\n".join([*lines, *(line for _, _, line in sorted(found))])


if __name__ == "__main__":
    main()
