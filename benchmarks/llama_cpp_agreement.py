"""How near are miudo and llama.cpp on one file and one text, and what keeps them apart?

For: same most probable id (teacher-forced), KL and log-probabilities against llama.cpp, with
its rule of rounding activations tried piece by piece, and each program against itself.
Not for: greedy ids and tokenizers (`tests/parity/test_formats_llama_cpp.py`), or speed.
Read next: `miudo.decoder.fake_quant`.

    python benchmarks/llama_cpp_agreement.py model.gguf text.txt --positions 5000

llama.cpp runs with keys and values in float32 and without flash attention, unless a row says
otherwise. Its log-probabilities come by its server: one request a position, all ids asked for.
A rule of rounding is "float32" or "float16" for the type of the scale, "divided" by the scale or
"times" its inverse: ggml's on x86 is "float16, times".

Shapes: T positions of a window, V vocab_size.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import xllamacpp
from torch import Tensor

from miudo.decoder.decoder import Decoder
from miudo.decoder.fake_quant import GROUP, round_activations
from miudo.engine.native import NativeEngine
from miudo.evaluate.perplexity import document_ids
from miudo.evaluate.texts import read_texts
from miudo.formats import ModelFile, open_model
from miudo.protocol import Engine, SeqWork, Want
from miudo.report import Table, text_table
from miudo.tensors import DType
from miudo.text.tokenizer import TextTokenizer

LogProbs = npt.NDArray[np.float64]
Run = Callable[[Sequence[int]], LogProbs]
"""Log-probabilities [T, V] of what follows each of T ids, which start a conversation."""

Z = 1.959964  # 95% of a normal distribution
NEAR = 1e-3  # sums in another order give 1e-5; one value rounded to another step gives more
THEIRS, OURS, FLOAT = "llama.cpp", "miudo int8", "miudo float"
RULES = {  # (float16 scale, times the inverse)
    "decoder, float32, divided": (False, False),
    "decoder, float16, divided": (True, False),
    "decoder, float32, times": (False, True),
    "decoder, float16, times": (True, True),
}
BATCH, SHORT_CACHE = "prompt in one batch", "float16 cache"
IN_DOUBLE = "{}, in float64"


def main() -> None:
    given = arguments()
    torch.set_num_threads(1)
    model = open_model(given.model)
    quantised = [n for n, t in model.weights.items() if t.dtype is DType.Q8_0]
    runs = all_runs(given.model, model, quantised)
    against, inside = pairs(bool(quantised))
    stats = {pair: Distance() for pair in against + inside}
    n = 0
    for ids in windows(model, given.text, given.context, given.positions):
        rows = {name: run(ids) for name, run in runs.items()}
        for (a, b), distance in stats.items():
            distance.add(rows[a], rows[b])
        n += len(ids)
        print(f"\r{n} positions", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    print(f"{given.model.name} on {given.text.name}: {n} positions in windows of {given.context}")
    print(f"{len(quantised)} of {len(model.weights)} tensors Q8_0\n")
    print(table(f"against {THEIRS}", {b: stats[a, b] for a, b in against}))
    print(table("each against itself", {f"{a} | {b}": stats[a, b] for a, b in inside}))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path, help="a file, .xz too, or a data folder's held-out part")
    parser.add_argument("--positions", type=int, default=5000)
    parser.add_argument("--context", type=int, default=128, help="ids of a window")
    return parser.parse_args()


def windows(model: ModelFile, text: Path, context: int, positions: int) -> Iterator[list[int]]:
    """Yields windows of ids, each read from nothing, until there were `positions`."""
    if model.tokenizer is None:
        sys.exit("the model has no tokenizer")
    tokenizer = TextTokenizer(model.tokenizer)
    left = positions
    for document in read_texts([text], max_bytes=64 * positions):
        ids = document_ids(document, tokenizer, model.config)
        for begin in range(0, len(ids) - context + 1, context):
            if left <= 0:
                return
            yield ids[begin : begin + min(context, left)]
            left -= context


def pairs(rounds: bool) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Returns what is compared: with llama.cpp, and programs with themselves."""
    others = [FLOAT, *([OURS, *RULES] if rounds else [])]
    inside = [
        (THEIRS, f"{THEIRS}, {BATCH}"),
        (THEIRS, f"{THEIRS}, {SHORT_CACHE}"),
        (FLOAT, f"{FLOAT}, portable"),
    ]
    if rounds:
        inside += [(OURS, f"{OURS}, portable"), (FLOAT, OURS)]
        inside += [(OURS, rule) for rule in RULES]
        inside += [(rule, IN_DOUBLE.format(rule)) for rule in RULES]
    return [(THEIRS, other) for other in others], inside


def all_runs(path: Path, model: ModelFile, quantised: Sequence[str]) -> dict[str, Run]:
    runs: dict[str, Run] = {
        THEIRS: llama_cpp(path, model),
        f"{THEIRS}, {BATCH}": llama_cpp(path, model, one_by_one=False),
        f"{THEIRS}, {SHORT_CACHE}": llama_cpp(path, model, cache="F16"),
        FLOAT: native(model, "float"),
        f"{FLOAT}, portable": native(model, "float", "portable"),
    }
    if quantised:
        runs[OURS] = native(model, "int8")
        runs[f"{OURS}, portable"] = native(model, "int8", "portable")
        for name, rule in RULES.items():
            runs[name] = decoder(model, quantised, rule, torch.float32)
            runs[IN_DOUBLE.format(name)] = decoder(model, quantised, rule, torch.float64)
    return runs


def native(model: ModelFile, activations: Literal["int8", "float"], isa: str | None = None) -> Run:
    if isa is not None:
        os.environ["MIUDO_ISA"] = isa  # read when an engine is made
    made = NativeEngine(model, threads=1, activations=activations)
    os.environ.pop("MIUDO_ISA", None)
    return of_engine(made)


def decoder(
    model: ModelFile, quantised: Sequence[str], rule: tuple[bool, bool], dtype: torch.dtype
) -> Run:
    """The PyTorch decoder, with a rule of rounding before every Q8_0 matrix."""
    half, inverse = rule
    made = Decoder.from_weights(model.config, model.weights).to(dtype)
    round_activations(made, quantised, lambda x: rounded(x, half=half, inverse=inverse))

    def run(ids: Sequence[int]) -> LogProbs:
        with torch.inference_mode():
            return log_softmax(made.logits(made(torch.tensor([list(ids)])))[0].double().numpy())

    return run


def rounded(x: Tensor, *, half: bool, inverse: bool) -> Tensor:
    """Returns x rounded to int8 in groups: llama.cpp's x86 rule where both switches are on."""
    groups = x.float().reshape(*x.shape[:-1], -1, GROUP)  # ... D/32 32
    most = groups.abs().amax(-1, keepdim=True)
    one = torch.ones_like(most)
    scale = most / 127.0
    by = torch.where(scale > 0, scale, one)
    ratio = groups * (127.0 / torch.where(most > 0, most, one)) if inverse else groups / by
    kept = scale.half().float() if half else scale
    # In float64 a product of quant and scale is exact, as int32 sums times scales are.
    return (torch.round(ratio).clamp(-127, 127).to(x.dtype) * kept.to(x.dtype)).flatten(-2)


def of_engine(engine: Engine) -> Run:
    def run(ids: Sequence[int]) -> LogProbs:
        conversation = engine.open()
        (out,) = engine.step([SeqWork(conversation, ids, Want.ALL_LOGITS)])
        engine.close(conversation)
        if out.logits is None:
            raise RuntimeError("the engine returned no logits")
        return log_softmax(out.logits.astype(np.float64))

    return run


def llama_cpp(path: Path, model: ModelFile, *, one_by_one: bool = True, cache: str = "F32") -> Run:
    """One request a position; `one_by_one` keeps what earlier positions left in the cache."""
    running, shown = server(path, cache), whole_character(model)

    def run(ids: Sequence[int]) -> LogProbs:
        out = np.full((len(ids), model.config.vocab_size), np.nan)
        for n in range(1, len(ids) + 1):
            answer = running.handle_completions(
                {
                    "prompt": list(ids[:n]),
                    "n_predict": 1,
                    "n_probs": model.config.vocab_size,
                    "cache_prompt": one_by_one and n > 1,
                    # Half a character would be held back, and its log-probabilities with it.
                    # The bias chooses what is drawn; what is reported is before it.
                    "temperature": 0,
                    "logit_bias": [[shown, 1e6]],
                }
            )
            put(answer, out[n - 1])
        if np.isnan(out).any():
            raise RuntimeError("llama.cpp did not report every id")
        return out

    return run


def server(path: Path, cache: str = "F32") -> xllamacpp.Server:
    """Opens a file on one thread; raises RuntimeError where llama.cpp does not know it."""
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 512, 1, False, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    kind = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{cache}")
    params.cache_type_k = params.cache_type_v = kind
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.Server(params)


def put(answer: Any, row: LogProbs) -> None:
    for entry in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
        row[entry["id"]] = entry["logprob"]


def whole_character(model: ModelFile) -> int:
    """Returns an id whose text is one letter."""
    if model.tokenizer is None:
        raise RuntimeError("the model has no tokenizer")
    tokenizer = TextTokenizer(model.tokenizer)
    return next(i for i in range(model.config.vocab_size) if tokenizer.token_bytes(i).isalpha())


def log_softmax(logits: LogProbs) -> LogProbs:
    shifted = logits - logits.max(-1, keepdims=True)
    out: LogProbs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return out


@dataclass
class Distance:
    """What two runs' rows [T, V] have in common, added up window by window."""

    n: int = 0
    same: int = 0
    near: int = 0
    kl: float = 0.0
    greatest: float = 0.0

    def add(self, p: LogProbs, q: LogProbs) -> None:
        """Takes in the rows of one window."""
        difference = p - q
        most = np.abs(difference).max(-1)
        self.n += len(p)
        self.same += int((p.argmax(-1) == q.argmax(-1)).sum())
        self.near += int((most <= NEAR).sum())
        self.kl += float((np.exp(p) * difference).sum())
        self.greatest = max(self.greatest, float(most.max()))


def wilson(k: int, n: int) -> tuple[float, float]:
    """Returns the 95% interval of a share (Wilson 1927)."""
    p, z2 = k / n, Z * Z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return centre - half, centre + half


def table(title: str, rows: dict[str, Distance]) -> str:
    headers = (title, "n", "same top-1", "95% interval", "mean KL", "greatest", f"within {NEAR:g}")
    cells = []
    for name, d in rows.items():
        low, high = wilson(d.same, d.n)
        interval = f"{low:.2%} to {high:.2%}"
        share, kl, near = f"{d.same / d.n:.2%}", f"{d.kl / d.n:.1e}", f"{d.near / d.n:.1%}"
        cells.append((name, f"{d.n}", share, interval, kl, f"{d.greatest:.1e}", near))
    return text_table(Table(headers, cells)) + "\n"


if __name__ == "__main__":
    main()
