"""Gemma 2 and 3: norms that lack 1, windows in turn, two rotations, scales that are implied."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from miudo.config import Block, ModelConfig, QkNorm
from miudo.errors import ModelFileError
from miudo.families import by_hf_config
from miudo.families.family import Family
from miudo.families.fit import gguf_misfit, hf_misfit
from miudo.families.gemma import GEMMA2, GEMMA3
from miudo.families.places import sources
from miudo.tensors import Role, tensor_table

SIZES: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 7, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "intermediate_size": 80, "vocab_size": 50, "query_pre_attn_scalar": 16,
    "hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 128,
    "cache_implementation": "hybrid", "attention_bias": False,
}  # fmt: skip
TWO = SIZES | {
    "architectures": ["Gemma2ForCausalLM"], "sliding_window": 8, "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0, "rope_theta": 10000.0,
}  # fmt: skip
THREE = SIZES | {
    "architectures": ["Gemma3ForCausalLM"], "sliding_window": 8, "rope_theta": 1e6,
    "rope_local_base_freq": 10000.0, "rope_scaling": None, "sliding_window_pattern": 6,
    "attn_logit_softcapping": None, "final_logit_softcapping": None,
}  # fmt: skip
FULL, NEAR = "full_attention", "sliding_attention"


def read(values: dict[str, Any]) -> ModelConfig:
    return by_hf_config(values).config_from_hf(values)


def windows(config: ModelConfig) -> list[int | None]:
    return [layer.window for layer in config.layers]


def test_gemma_2() -> None:
    config = read(TWO)
    assert windows(config) == [8, None, 8, None, 8, None, 8]
    assert (config.attn_softcap, config.logit_softcap) == (50.0, 30.0)
    assert (config.block, config.embed_scale) == (Block.SANDWICH, 8.0)
    assert config.qk_norm is QkNorm.NONE
    assert {layer.rope_theta for layer in config.layers} == {1e4}
    assert config.attn_scale is None  # the scalar is the size of a head


def test_gemma_3() -> None:
    config = read(THREE)
    assert windows(config) == [8] * 5 + [None, 8]
    assert [layer.rope_theta for layer in config.layers] == [1e4] * 5 + [1e6, 1e4]
    assert (config.attn_softcap, config.logit_softcap) == (None, None)
    assert config.qk_norm is QkNorm.HEAD


def test_the_new_way_to_say_the_same() -> None:
    gone = ("rope_theta", "rope_local_base_freq", "sliding_window_pattern")
    new = {k: v for k, v in THREE.items() if k not in gone} | {
        "layer_types": [NEAR] * 5 + [FULL, NEAR],
        "rope_parameters": {
            FULL: {"rope_type": "default", "rope_theta": 1e6},
            NEAR: {"rope_type": "default", "rope_theta": 10000.0},
        },
        "_sliding_window_pattern": 6,
        "use_bidirectional_attention": False,
    }
    assert read(new) == read(THREE)
    plain = {k: v for k, v in TWO.items() if k != "rope_theta"}
    assert read(plain | {"rope_parameters": {"rope_theta": 1e4}}) == read(TWO)


def test_what_is_absent_has_the_default_of_the_class() -> None:
    caps = ("attn_logit_softcapping", "final_logit_softcapping", "hidden_activation")
    assert read({k: v for k, v in TWO.items() if k not in caps}) == read(TWO)
    assert read({k: v for k, v in THREE.items() if k not in caps}) == read(THREE)
    thetas = ("rope_theta", "rope_local_base_freq", "sliding_window_pattern")
    assert read({k: v for k, v in THREE.items() if k not in thetas}) == read(THREE)


@pytest.mark.parametrize("scalar", [16, 24, 144, 224, 256, 168.5])
@pytest.mark.parametrize("values", [TWO, THREE])
def test_scores_are_scaled_by_the_scalar(values: dict[str, Any], scalar: float) -> None:
    config = read(values | {"query_pre_attn_scalar": scalar})
    assert config.attn_scale == (None if scalar == 16 else scalar**-0.5)
    family = by_hf_config(values)
    assert hf_misfit(family, config) is None
    assert family.config_to_hf(config)["query_pre_attn_scalar"] == pytest.approx(scalar, rel=1e-12)
    why = gguf_misfit(family, config)  # whose readers scale by the size of a head
    assert (why is None) == (scalar == 16)


@pytest.mark.parametrize(("values", "layers"), [(TWO, 46), (THREE, 62)])
def test_other_programs_know_the_largest_by_its_depth(values: dict[str, Any], layers: int) -> None:
    wide = values | {"num_attention_heads": 2, "num_hidden_layers": layers}
    fits = read(wide | {"query_pre_attn_scalar": 64 // 2})
    family = by_hf_config(values)
    assert gguf_misfit(family, fits) is None
    assert "attn_scale" in str(gguf_misfit(family, read(wide)))


def test_norms_lack_one_in_folders_and_not_in_gguf() -> None:
    config = read(THREE)
    shifted = {
        target
        for source in sources(config, GEMMA3.hf_names, GEMMA3.hf_layout)
        if source.plus == 1.0
        for target in source.targets
    }
    assert shifted == {spec.name for spec in tensor_table(config) if spec.role is Role.NORM}
    assert not any(source.plus for source in sources(config, GEMMA3.gguf_names))


MISFITS: dict[str, tuple[Family, dict[str, Any], dict[str, Any], str]] = {
    "no cap": (GEMMA2, TWO, {"attn_softcap": None}, "attn_softcap"),
    "another cap": (GEMMA2, TWO, {"logit_softcap": 20.0}, ""),
    "a cap": (GEMMA3, THREE, {"logit_softcap": 20.0}, "logit_softcap"),
    "embeddings as they are": (GEMMA2, TWO, {"embed_scale": 1.0}, "embed_scale"),
    "a head of its own": (GEMMA2, TWO, {"tie_embeddings": False}, "head.weight"),
    "biases": (GEMMA3, THREE, {"qkv_bias": True, "o_bias": True}, "qkv_bias"),
}  # fmt: skip


@pytest.mark.parametrize(("family", "values", "changes", "why"), MISFITS.values(), ids=MISFITS)
def test_what_gguf_cannot_say(
    family: Family, values: dict[str, Any], changes: dict[str, Any], why: str
) -> None:
    config = dataclasses.replace(read(values), **changes)
    assert why in str(gguf_misfit(family, config) or "")
    assert (gguf_misfit(family, config) is None) == (why == "")


def test_another_order_of_windows_fits_folders_alone() -> None:
    config = read(THREE | {"layer_types": [FULL, NEAR] * 3 + [FULL]})
    assert windows(config) == [None, 8] * 3 + [None]
    assert hf_misfit(GEMMA3, config) is None
    assert "window" in str(gguf_misfit(GEMMA3, config))


def test_windows_that_other_writers_spell_out_in_gguf() -> None:
    config = read(THREE)
    keys = GEMMA3.config_to_gguf(config) | {
        "vocab_size": 50, "bos_id": None, "eos_ids": (), "pad_id": None,
    }  # fmt: skip
    assert "gemma3.attention.sliding_window_pattern" not in keys
    for pattern in (6, [True] * 5 + [False, True]):
        spelt = keys | {"gemma3.attention.sliding_window_pattern": pattern}
        assert GEMMA3.config_from_gguf(spelt, frozenset()) == config
    # Where it is absent, these programs take the base of the small models.
    without = {k: v for k, v in keys.items() if k != "gemma3.rope.freq_base_swa"}
    assert GEMMA3.config_from_gguf(without, frozenset()) == config


def test_a_gemma_without_windows() -> None:
    config = read(THREE | {"layer_types": [FULL] * 7})
    keys = GEMMA3.config_to_gguf(config)
    assert "gemma3.attention.sliding_window" not in keys
    assert gguf_misfit(GEMMA3, config) is None
    long = {"layer_types": [FULL] * 7, "max_position_embeddings": 8192}
    two = read(TWO | long)  # whose GGUF means 4096 where none is stated
    assert gguf_misfit(GEMMA2, two) == "layer 0: window is None, such files mean 4096"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "4B and above": (
        {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": SIZES}, "images"
    ),
    "by type": ({"model_type": "gemma3"}, "images"),
    "3n": ({"architectures": ["Gemma3nForConditionalGeneration"]}, "images"),
    "a stretch of full layers": (
        THREE | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}, "linear"
    ),
    "the same, new": (
        THREE | {"rope_parameters": {FULL: {"rope_type": "linear", "factor": 8.0}}}, "linear"
    ),
    "rope of text": (TWO | {"rope_parameters": "none"}, "no object"),
    "nested rope of text": (THREE | {"rope_parameters": {FULL: "none"}}, "none"),
    "both ways": (THREE | {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    "layer kinds": (TWO | {"layer_types": ["chunked_attention"] * 7}, "layer_types"),
    "too few kinds": (TWO | {"layer_types": [FULL]}, "layer_types"),
    "a cap of text": (TWO | {"attn_logit_softcapping": "x"}, "attn_logit_softcapping"),
    "no scale": (TWO | {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
}  # fmt: skip


@pytest.mark.parametrize(("values", "word"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_computed_is_refused_by_name(values: dict[str, Any], word: str) -> None:
    with pytest.raises(ModelFileError, match=word):
        read(values)
