r"""Makes the models of `engine.py`: three shapes with random weights, in each runtime's files.

For: one folder with `hf/` (what the converters read), `gguf/` (F16, and quantised by llama.cpp,
so that miudo and llama.cpp run one file), `ort/` and `ov/` (made by the peers' own converters).
Not for: text. The vocabularies have their real sizes and a merge for each token, as reading them
is part of a start; the tokens mean nothing.
Read next: `engine.py`.

    python benchmarks/engine_models.py runs/engine \
        --llama-cpp PYTHON --onnx PYTHON --openvino PYTHON

Each PYTHON has that peer (`engine.py` says which packages). Without one its files are not made.
What is there is kept. Takes 8 GB of disk and some ten minutes.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from miudo.config import ModelConfig
from miudo.families import by_hf_config
from miudo.files import atomic_write
from miudo.formats.derived import DerivedTensor
from miudo.formats.gguf import write_gguf
from miudo.formats.gguf_reader import read_container
from miudo.formats.gguf_tokenizer import WHOLE_TOKENIZER
from miudo.formats.gguf_writer import write_container
from miudo.formats.hf import write_folder
from miudo.formats.model_file import ModelFile
from miudo.tensors import DType, Role, StoredTensor, TensorSpec, tensor_table
from miudo.text.tokenizer_json import TokenizerSpec, check_tokenizer

SIZE_OF_WEIGHTS = 0.03  # standard deviation
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2-0.5b": {
        "architectures": ["Qwen2ForCausalLM"], "hidden_size": 896, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "intermediate_size": 4864,
        "vocab_size": 151936, "max_position_embeddings": 32768, "rope_theta": 1e6,
        "tie_word_embeddings": True, "rms_norm_eps": 1e-6,
    },
    "tinyllama-1.1b": {
        "architectures": ["LlamaForCausalLM"], "hidden_size": 2048, "num_hidden_layers": 22,
        "num_attention_heads": 32, "num_key_value_heads": 4, "intermediate_size": 5632,
        "vocab_size": 32000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
    },
    "llama-15m": {
        "architectures": ["LlamaForCausalLM"], "hidden_size": 288, "num_hidden_layers": 6,
        "num_attention_heads": 6, "num_key_value_heads": 6, "intermediate_size": 768,
        "vocab_size": 32000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    },
}  # fmt: skip
CONVERTED = ("qwen2-0.5b", "llama-15m")  # for the peers whose figures are asked for
FILE_TYPES = {"q4_0": "LLAMA_FTYPE_MOSTLY_Q4_0", "q8_0": "LLAMA_FTYPE_MOSTLY_Q8_0"}
QUANTISE = """
import sys, llama_cpp
source, target, kind = sys.argv[1:]
params = llama_cpp.llama_model_quantize_default_params()
params.ftype, params.nthread = getattr(llama_cpp, kind), 2
sys.exit(llama_cpp.llama_model_quantize(source.encode(), target.encode(), params))
"""
RESERVED = ["<pad>", "<s>", "</s>"]
TOKEN_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LONGEST = 10  # characters of a token


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--shapes", nargs="+", choices=tuple(SHAPES), default=list(SHAPES))
    for peer in ("llama-cpp", "onnx", "openvino"):
        parser.add_argument(f"--{peer}", type=Path, metavar="PYTHON")
    given = parser.parse_args()
    for folder in ("hf", "gguf", "ort", "ov"):
        (given.out / folder).mkdir(parents=True, exist_ok=True)
    for name in given.shapes:
        original(given.out, name)
        if given.llama_cpp:
            quantised(given.out, name, given.llama_cpp)
    for name in set(CONVERTED) & set(given.shapes):
        if given.onnx:
            to_onnx(given.out, name, given.onnx)
        if given.openvino:
            to_openvino(given.out, name, given.openvino)


def original(out: Path, name: str) -> None:
    """Writes the folder, and the F16 file with the keys that other converters write."""
    folder, file = out / "hf" / name, out / "gguf" / f"{name}-f16.gguf"
    if folder.exists() and file.exists():
        return
    values = SHAPES[name] | TOKEN_IDS
    config = by_hf_config(values).config_from_hf(values)
    weights = {spec.name: noise(spec) for spec in tensor_table(config)}
    model = ModelFile(config, weights, tokenizer(config), None, None, name, None)
    if not folder.exists():
        write_folder(folder, model, dtype=DType.BF16)
    if not file.exists():
        whole = file.with_suffix(".whole")
        write_gguf(whole, model, dtype=DType.F16)
        without_json(whole, file)
        whole.unlink()


def noise(spec: TensorSpec) -> StoredTensor:
    def make() -> npt.NDArray[np.uint8]:
        draw = np.random.default_rng(zlib.crc32(spec.name.encode()))
        value = SIZE_OF_WEIGHTS * draw.standard_normal(spec.shape, dtype=np.float32)
        if spec.role is Role.NORM:
            value[...] = 1
        return value.reshape(-1).view(np.uint8)

    return DerivedTensor(DType.F32, spec.shape, make)


def tokenizer(config: ModelConfig) -> TokenizerSpec:
    """Returns a byte-level BPE: every token past the bytes is two earlier ones, merged."""
    draw = random.Random(0)  # noqa: S311 - the same vocabulary each time
    alphabet = [*map(chr, (*range(33, 127), *range(161, 173), *range(174, 324)))]
    # Of ASCII alone: a server holds back bytes that are no whole character yet.
    tokens, vocab = alphabet[:94], dict.fromkeys([*RESERVED, *alphabet])
    merges: list[list[str]] = []
    while len(vocab) < config.vocab_size:
        pair = [draw.choice(tokens), draw.choice(tokens)]
        token = "".join(pair)
        if len(token) <= LONGEST and token not in vocab:
            vocab[token] = None
            tokens.append(token)
            merges.append(pair)
    level = {"type": "ByteLevel", "add_prefix_space": False}
    level |= {"use_regex": True, "trim_offsets": True}
    model = {"type": "BPE", "vocab": {t: i for i, t in enumerate(vocab)}, "merges": merges}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": i, "content": t, "special": True} | flags for i, t in enumerate(RESERVED)]
    return check_tokenizer(
        {"model": model, "pre_tokenizer": level, "decoder": level, "added_tokens": added}
    )


def without_json(source: Path, target: Path) -> None:
    """Copies a GGUF file without the key that only miudo writes."""
    container = read_container(source)
    keys = {k: v for k, v in container.keys.items() if k != WHOLE_TOKENIZER}
    for key in ("tokens", "merges"):
        keys[f"tokenizer.ggml.{key}"] = container.strings(f"tokenizer.ggml.{key}")
    types = "tokenizer.ggml.token_type"
    keys[types] = container.numbers(types, {5}).tolist()
    tensors = list(container.tensors.items())
    atomic_write(target, lambda file: write_container(file, keys, tensors))


def quantised(out: Path, name: str, python: Path) -> None:
    source = out / "gguf" / f"{name}-f16.gguf"
    for kind, number in FILE_TYPES.items():
        target = out / "gguf" / f"{name}-{kind}.gguf"
        if not target.exists():
            command = [python, "-c", QUANTISE, source, target, number]
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
            print(f"{target.name}: {target.stat().st_size / 1e6:.0f} MB", flush=True)


def to_onnx(out: Path, name: str, python: Path) -> None:
    target = out / "ort" / f"{name}-int4"
    command = [python, "-m", "onnxruntime_genai.models.builder", "-m", out / "hf" / name]
    command += ["-p", "int4", "-e", "cpu", "-c", out / "cache"]
    converted(target, [*command, "-o"], ["--extra_options", "int4_accuracy_level=4"])


def to_openvino(out: Path, name: str, python: Path) -> None:
    target = out / "ov" / f"{name}-int8"
    command = [python.parent / "optimum-cli", "export", "openvino", "-m", out / "hf" / name]
    command += ["--task", "text-generation-with-past", "--weight-format", "int8"]
    converted(target, command, [])


def converted(target: Path, before: list[Any], after: list[str]) -> None:
    """Runs a converter, with the folder's name between its arguments; whole or not at all."""
    if target.exists():
        return
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    done = subprocess.run([*before, part, *after], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{target.name} was not made:\n{done.stderr[-2000:]}")
    part.rename(target)
    print(f"{target.name} made", flush=True)


if __name__ == "__main__":
    main()
