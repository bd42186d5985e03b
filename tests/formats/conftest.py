"""Small models of every family, with a tokenizer, template and record."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from miudo.config import Activation, Mlp, ModelConfig, Norm, Position, QkNorm
from miudo.formats.model_file import ModelFile
from miudo.records import Artefact, Record
from miudo.tensors import StoredTensor, tensor_table
from miudo.text.tokenizer_json import parse_tokenizer_json

SHAPE: dict[str, Any] = {
    "n_layers": 2, "d_model": 32, "n_heads": 4, "d_ff": 64, "vocab_size": 40, "max_positions": 24,
    "bos_id": 0, "eos_ids": (0, 2), "pad_id": 1,
}  # fmt: skip
PLAIN = {
    "norm": Norm.LAYER, "norm_bias": True, "position": Position.LEARNED, "mlp": Mlp.PLAIN,
    "activation": Activation.GELU_TANH, "qkv_bias": True, "o_bias": True, "mlp_bias": True,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": SHAPE | {"n_kv_heads": 2},
    "llama-untied": SHAPE | {"tie_embeddings": False, "rope_theta": 5e5, "norm_eps": 1e-6},
    "llama-biases": SHAPE | {"qkv_bias": True, "o_bias": True, "mlp_bias": True, "head_dim": 16},
    "qwen2": SHAPE | {"n_kv_heads": 2, "qkv_bias": True},
    "qwen3": SHAPE | {"n_kv_heads": 1, "qk_norm": QkNorm.HEAD, "head_dim": 16},
    "gpt2": SHAPE | PLAIN,
}
WORDS = ("<|end|>", "<|pad|>", "</s>", *"abcdefgh", "Ġ", "ab", "Ġa", "Ġab")
MERGES = (("a", "b"), ("Ġ", "a"), ("Ġ", "ab"))


def tokenizer_json(**changes: Any) -> bytes:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    values: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": WORDS[i], **plain, "special": True} for i in range(3)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "decoder": {"type": "ByteLevel"},
        "model": {
            "type": "BPE",
            "vocab": {word: i for i, word in enumerate(WORDS)},
            "merges": [list(m) for m in MERGES],
        },
    }
    return json.dumps(values | changes).encode()


def made(name: str = "llama", **changes: Any) -> ModelFile:
    """A model whose every number is noise; `changes` are fields of the config."""
    config = ModelConfig.uniform(**(CONFIGS[name] | changes))
    rng = np.random.default_rng(7)
    return ModelFile(
        config=config,
        weights={
            spec.name: StoredTensor.from_f32(rng.standard_normal(spec.shape).astype("<f4"))
            for spec in tensor_table(config)
        },
        tokenizer=parse_tokenizer_json(tokenizer_json()),
        chat_template="{% for m in messages %}{{ m.content }}{% endfor %} é",
        record=Record(
            verb="train", name="tiny", licence="CC0-1.0", inputs=(Artefact("data", "x", "0" * 64),)
        ),
        architecture=name,
        path=None,
    )


def same_weights(a: ModelFile, b: ModelFile) -> None:
    assert list(a.weights) == list(b.weights)
    for name, tensor in a.weights.items():
        assert (tensor.dtype, tensor.shape) == (b.weights[name].dtype, b.weights[name].shape), name
        np.testing.assert_array_equal(tensor.data, b.weights[name].data, err_msg=name)


@pytest.fixture
def make_model() -> Callable[..., ModelFile]:
    return made


@pytest.fixture
def make_tokenizer() -> Callable[..., bytes]:
    return tokenizer_json


@pytest.fixture
def assert_same_weights() -> Callable[[ModelFile, ModelFile], None]:
    return same_weights


@pytest.fixture(params=CONFIGS)
def any_model(request: pytest.FixtureRequest) -> ModelFile:
    return made(request.param)


@pytest.fixture
def unequal_model() -> ModelFile:
    """Layers of 64 and 33 hidden units."""
    whole = made()
    narrow = dataclasses.replace(whole.config.layers[1], d_ff=33)
    config = dataclasses.replace(whole.config, layers=(whole.config.layers[0], narrow))
    rng = np.random.default_rng(8)
    weights = {
        spec.name: StoredTensor.from_f32(rng.standard_normal(spec.shape).astype("<f4"))
        for spec in tensor_table(config)
    }
    return dataclasses.replace(whole, config=config, weights=weights)
