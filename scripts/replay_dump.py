"""Dumps a model, ids and the decoder's logits for `miudo_replay`, which compares without Python.

A dump is a GGUF container of architecture `miudo.replay`. Its keys: the numbers of miudo_config
in native/core/miudo.h by their names; `n_layers`; of layer i `layers.i` (n_heads, n_kv_heads,
head_dim, v_head_dim, d_ff, window), `layers.i.frequencies` and `layers.i.slopes` where it has
them; `ids`; `tokens`, what follows greedily; `int8_activations` and `cache_type` of miudo_options;
`bound`, the greatest absolute difference of a logit. Its tensors: the model's, and `logits` [T, V].

    python scripts/replay_dump.py model.gguf dump.gguf --ids 64
    build/aarch64/miudo_replay dump.gguf
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from miudo.decoder.decoder import Decoder
from miudo.decoder.torch_engine import TorchEngine
from miudo.engine.native import CACHE_TYPES, CacheType, RunnableModel
from miudo.engine.native_door import config_values, layer_values
from miudo.files import atomic_write
from miudo.formats import open_model
from miudo.formats.gguf_writer import write_container
from miudo.protocol import Engine, SeqWork, Want
from miudo.tensors import StoredTensor

FLOAT_BOUND = 1e-4
"""The design's bound on absolute logit differences of the float path."""
TOKENS = 16


def write_dump(
    path: Path,
    model: RunnableModel,
    truth: Engine,
    ids: Sequence[int],
    *,
    int8: bool = False,
    cache: CacheType = "f32",
    bound: float = FLOAT_BOUND,
) -> None:
    """Writes what `truth` makes of `ids`, its greedy continuation, and all of `model`.

    `int8` and `cache` say with which activations and keys to replay.
    """
    (out,) = truth.step([SeqWork(truth.open(), list(ids), want=Want.ALL_LOGITS)])
    keys: dict[str, Any] = {"general.architecture": "miudo.replay"}
    keys |= config_values(model.config)
    keys["n_layers"] = model.config.n_layers
    for i, (*sizes, frequencies, slopes) in enumerate(layer_values(model.config)):
        keys |= {f"layers.{i}": sizes} | _arrays(i, frequencies=frequencies, slopes=slopes)
    keys |= {"ids": list(ids), "tokens": _greedy(truth, ids)}
    keys |= {"int8_activations": int(int8), "cache_type": CACHE_TYPES.index(cache), "bound": bound}
    logits = StoredTensor.from_f32(np.asarray(out.logits))
    tensors = [*model.weights.items(), ("logits", logits)]
    atomic_write(path, lambda file: write_container(file, keys, tensors))


def _arrays(layer: int, **arrays: Sequence[float]) -> Mapping[str, list[float]]:
    return {
        f"layers.{layer}.{name}": [float(x) for x in values]
        for name, values in arrays.items()
        if values
    }


def _greedy(engine: Engine, ids: Sequence[int]) -> list[int]:
    room = engine.config.max_positions - len(ids)
    conversation, pending, found = engine.open(), list(ids), list[int]()
    for _ in range(min(TOKENS, room)):
        (out,) = engine.step([SeqWork(conversation, pending)])
        pending = [int(out.token or 0)]
        found += pending
    return found


def main() -> None:
    """Dumps what the command line names."""
    parser = argparse.ArgumentParser(description="Dumps a model for miudo_replay.")
    parser.add_argument("model", type=Path, help="a folder or a GGUF file")
    parser.add_argument("out", type=Path)
    parser.add_argument("--ids", type=int, default=64, help="how many ids the prompt has")
    asked = parser.parse_args()
    model = open_model(asked.model)
    rng = np.random.default_rng(0)
    ids = [int(i) for i in rng.integers(0, model.config.vocab_size, asked.ids)]
    truth = TorchEngine(Decoder.from_weights(model.config, model.weights))
    write_dump(asked.out, model, truth, ids)


if __name__ == "__main__":
    main()
