"""Do models of real sizes fit: written, loaded, one sentence, at published shapes?

For: time and memory of whole models without their weights, which are random; each step runs in a
process of its own, so that its peak is its own.
Not for: quality, or speed beside a peer.
Read next: `miudo.formats.derived`.

    python benchmarks/real_sizes.py --out runs/real-sizes
    python benchmarks/real_sizes.py --out runs/real-sizes --only tinyllama-1.1b --dtype q8_0

Shapes are those of the models' config.json, read by the family that reads the real one. A 7 GB
file is written for the largest; each file is removed before the next is made.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from engine_models import SHAPES as ENGINE_SHAPES

from miudo.config import ModelConfig
from miudo.engine.generate import GenerateSettings, generate
from miudo.engine.native import NativeEngine
from miudo.families import by_hf_config
from miudo.formats import open_model
from miudo.formats.derived import DerivedTensor
from miudo.formats.gguf import write_gguf
from miudo.formats.model_file import ModelFile
from miudo.protocol import SamplingSettings
from miudo.records import environment
from miudo.report import Table, text_table
from miudo.tensors import DType, Role, StoredTensor, TensorSpec, parameter_count, tensor_table
from miudo.text.tokenizer import TextTokenizer
from miudo.text.tokenizer_json import TokenizerSpec, check_tokenizer

PROMPT, TOKENS = list(range(1, 17)), 16
NOISE = np.random.default_rng(1).standard_normal(1_000_003, dtype=np.float32)
GROUPS = [4] * 3 + [5] * 7 + [6] * 8 + [7] * 6 + [8] * 4  # OpenELM's keys and values a layer
WIDTHS = [*range(4, 17), 18, 18, *range(20, 33)]  # and its feed-forward, in units of 256
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2-0.5b": ENGINE_SHAPES["qwen2-0.5b"],
    "tinyllama-1.1b": ENGINE_SHAPES["tinyllama-1.1b"],
    "openelm-1.1b": {
        "architectures": ["OpenELMForCausalLM"], "model_dim": 2048, "num_transformer_layers": 28,
        "num_query_heads": [4 * n for n in GROUPS],
        "num_kv_heads": GROUPS,
        "ffn_multipliers": [256 * n / 2048 for n in WIDTHS],
        "head_dim": 64, "ffn_dim_divisor": 256, "vocab_size": 32000, "max_context_length": 2048,
        "rope_freq_constant": 10000, "rope_max_length": 4096, "normalize_qk_projections": True,
        "share_input_output_layers": True, "ffn_with_glu": True, "activation_fn_name": "swish",
        "normalization_layer_name": "rms_norm",
    },
    "gemma-2-2b": {
        "architectures": ["Gemma2ForCausalLM"], "hidden_size": 2304, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "intermediate_size": 9216, "vocab_size": 256000, "max_position_embeddings": 8192,
        "query_pre_attn_scalar": 256, "sliding_window": 4096, "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0, "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6,
    },
    "minicpm3-4b": {
        "architectures": ["MiniCPM3ForCausalLM"], "hidden_size": 2560, "num_hidden_layers": 62,
        "num_attention_heads": 40, "num_key_value_heads": 40, "q_lora_rank": 768,
        "kv_lora_rank": 256, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64,
        "intermediate_size": 6400, "vocab_size": 73448, "max_position_embeddings": 32768,
        "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256, "rms_norm_eps": 1e-5,
    },
    "mistral-nemo-12b": {
        "architectures": ["MistralForCausalLM"], "hidden_size": 5120, "num_hidden_layers": 40,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "intermediate_size": 14336, "vocab_size": 131072, "max_position_embeddings": 131072,
        "rope_theta": 1e6, "sliding_window": None, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
}  # fmt: skip


def main() -> None:
    """Writes, loads and runs each shape, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(SHAPES))
    parser.add_argument("--dtype", default="q4_0")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--part", choices=("write", "run"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.part:
        part = {"write": write, "run": run}[options.part]
        print(json.dumps(part(options.only[0], options) | {"peak": peak_bytes()}))
        return
    rows = [row(name, options) for name in options.only]
    print(", ".join(f"{k} {v}" for k, v in environment().items()))
    headers = [
        "shape", "parameters", "file", "bits/weight", "writing", "peak", "loading",
        "a token", "peak",
    ]  # fmt: skip
    print(text_table(Table(headers, rows)))


def row(name: str, options: argparse.Namespace) -> list[str]:
    """Runs both parts of one shape; prints its sentence."""
    written, ran = (alone(part, name, options) for part in ("write", "run"))
    (options.out / f"{name}.gguf").unlink()
    print(f"{name}: {ran['text']}", flush=True)
    return [
        name,
        f"{written['parameters'] / 1e9:.2f} B",
        f"{written['size'] / 1e9:.2f} GB",
        f"{written['bits']:.2f}",
        f"{written['seconds']:.0f} s",
        f"{written['peak'] / 1e9:.2f} GB",
        f"{ran['loading']:.1f} s",
        f"{ran['token']:.2f} s",
        f"{ran['peak'] / 1e9:.2f} GB",
    ]


def alone(part: str, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Returns what `part` measured in a process of its own."""
    given = ["--out", str(options.out), "--dtype", options.dtype, "--context", str(options.context)]
    command = [sys.executable, __file__, *given, "--only", name, "--part", part]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    values: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return values


def write(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Streams random weights of the shape into a GGUF file."""
    config = by_hf_config(SHAPES[name]).config_from_hf(SHAPES[name])
    weights = {spec.name: noise(spec) for spec in tensor_table(config)}
    model = ModelFile(config, weights, numbered(config), None, None, name, None)
    start = time.perf_counter()
    report = write_gguf(options.out / f"{name}.gguf", model, dtype=DType(options.dtype.upper()))
    return {
        "parameters": parameter_count(config),
        "size": report.size_bytes,
        "bits": report.bits_per_weight,
        "seconds": time.perf_counter() - start,
    }


def noise(spec: TensorSpec) -> StoredTensor:
    """Values that keep the size of what passes through, made when they are asked for."""

    def make() -> npt.NDArray[np.uint8]:
        if spec.role in (Role.NORM, Role.BIAS):
            value = np.full(spec.shape, spec.role is Role.NORM, dtype=np.float32)
        else:  # a million numbers over and over, from another place on in each tensor
            start = zlib.crc32(spec.name.encode()) % NOISE.size
            value = np.resize(np.roll(NOISE, -start), spec.shape)
            value *= np.float32(spec.shape[-1] ** -0.5)
        return value.reshape(-1).view(np.uint8)

    return DerivedTensor(DType.F32, spec.shape, make)


def numbered(config: ModelConfig) -> TokenizerSpec:
    """A tokenizer of the model's size, each of whose tokens is a word that tells its id."""
    level: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False}
    level |= {"use_regex": True, "trim_offsets": True}
    vocab = {f"\u0120{i}": i for i in range(config.vocab_size)}
    model = {"type": "BPE", "vocab": vocab, "merges": []}
    return check_tokenizer({"model": model, "pre_tokenizer": level, "decoder": level})


def run(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Loads the file into the native engine and writes a sentence."""
    start = time.perf_counter()
    model = open_model(options.out / f"{name}.gguf")
    engine = NativeEngine(model, context=min(options.context, model.config.max_positions))
    tokenizer = TextTokenizer(model.tokenizer or numbered(model.config))
    loaded = time.perf_counter()
    drawn = SamplingSettings(temperature=0.8, seed=1)
    settings = GenerateSettings(max_tokens=TOKENS, sampling=drawn)
    events = list(generate(engine, tokenizer, PROMPT, settings))
    return {
        "loading": loaded - start,
        "token": (time.perf_counter() - loaded) / (len(PROMPT) + TOKENS),
        "text": "".join(event.text for event in events).strip(),
    }


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
