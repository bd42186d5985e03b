"""Families: both generations of config.json, what is refused by name, who can say what."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from family_examples import LATENT, LONG, MINICPM3_SCALES, PLAIN, SCALES, SHAPE

from miudo.config import (
    Activation,
    Block,
    ModelConfig,
    Norm,
    QkNorm,
)
from miudo.errors import ModelFileError
from miudo.families import FAMILIES, by_gguf, by_hf_config, for_config, for_gguf, misfits
from miudo.families.family import Family, plain_float
from miudo.families.fit import gguf_misfit, hf_misfit
from miudo.families.places import sources
from miudo.tensors import tensor_table

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50,
}  # fmt: skip
QWEN2 = LLAMA | {"architectures": ["Qwen2ForCausalLM"]}
QWEN3 = LLAMA | {"architectures": ["Qwen3ForCausalLM"]}
GPT2: dict[str, Any] = {
    "architectures": ["GPT2LMHeadModel"], "n_embd": 32, "n_layer": 2, "n_head": 4,
    "vocab_size": 50,
}  # fmt: skip


# What other programs read, but miudo does not write.
READ_ONLY = {"minicpm"}


def read(values: dict[str, Any]) -> ModelConfig:
    return by_hf_config(values).config_from_hf(values)


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(ModelFileError) as caught:
        read(values)
    return str(caught.value)


def test_the_old_and_the_new_way_to_say_theta() -> None:
    old = read(LLAMA | {"rope_theta": 5e5, "rope_scaling": None})
    new = read(LLAMA | {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}})
    assert old == new
    assert {layer.rope_theta for layer in old.layers} == {5e5}


def test_what_is_absent_has_the_default_of_the_class() -> None:
    config = read(LLAMA)
    layer = config.layers[0]
    assert (layer.n_kv_heads, layer.head_dim, layer.rope_theta) == (4, 8, 1e4)
    assert (config.norm_eps, config.activation) == (1e-6, Activation.SILU)
    assert (config.bos_id, config.eos_ids, config.pad_id) == (None, (), None)
    assert read(QWEN3).layers[0].head_dim == 128
    plain = read(GPT2)
    assert (plain.layers[0].d_ff, plain.max_positions, plain.norm_eps) == (128, 1024, 1e-5)
    assert plain.activation is Activation.GELU_TANH
    assert plain.tie_embeddings


def test_biases_and_norms_follow_from_the_class_not_from_a_name() -> None:
    assert (read(QWEN2).qkv_bias, read(QWEN2).o_bias) == (True, False)
    assert read(QWEN3).qk_norm is QkNorm.HEAD
    named = LLAMA | {"_name_or_path": "Qwen/Qwen2-7B", "model_type": "qwen2"}
    assert read(named) == read(LLAMA)


def test_architectures_come_first_then_model_type() -> None:
    assert by_hf_config({"model_type": "qwen3"}).name == "qwen3"
    assert by_hf_config({"architectures": [], "model_type": "gpt2"}).name == "gpt2"
    assert by_hf_config({"architectures": ["GPT2Model"]}).name == "gpt2"
    # Shares one feed-forward among its layers, and calls itself "llama".
    with pytest.raises(ModelFileError, match="MobiLlamaForCausalLM"):
        by_hf_config({"architectures": ["MobiLlamaForCausalLM"], "model_type": "llama"})


@pytest.mark.parametrize(
    "named",
    [
        "RWForCausalLM",
        3,
        ["x"],
        {"a": 1},
        "x" * 999,
    ],
)
def test_unknown_architectures(named: object) -> None:
    with pytest.raises(ModelFileError, match="Known are LlamaForCausalLM") as caught:
        by_hf_config({"architectures": [named]})
    assert len(str(caught.value)) < 900


def test_no_architecture_at_all() -> None:
    for values in ({}, {"model_type": None}, {"architectures": "LlamaForCausalLM"}):
        with pytest.raises(ModelFileError):
            by_hf_config(values)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "part of a head": (LLAMA | {"partial_rotary_factor": 0.5}, "0.5"),
    "new part of a head": (LLAMA | {"rope_parameters": {"partial_rotary_factor": 0.25}}, "0.25"),
    "rope of text": (LLAMA | {"rope_scaling": "linear"}, "no object"),
    "quantised": (LLAMA | {"quantization_config": {"bits": 4}}, "quantization_config"),
    "experts": (LLAMA | {"num_local_experts": 8}, "num_local_experts = 8"),
    "multipliers": (LLAMA | {"embedding_multiplier": 12, "a": 0}, "embedding_multiplier = 12"),
    "a softcap": (QWEN2 | {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    "a window of llama": (LLAMA | {"sliding_window": 8}, "sliding_window"),
    "layer kinds": (LLAMA | {"layer_types": ["sliding_attention"] * 2}, "layer_types"),
    "too few layer kinds": (
        QWEN2
        | {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["full_attention"]},
        "layer_types",
    ),
    "scale by layer": (GPT2 | {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse"),
    "no scale": (GPT2 | {"scale_attn_weights": False}, "scale_attn_weights"),
    "cross attention": (GPT2 | {"add_cross_attention": True}, "add_cross_attention"),
    "activation": (LLAMA | {"hidden_act": "xielu"}, "silu, swish, gelu"),
    "a size missing": ({k: v for k, v in LLAMA.items() if k != "vocab_size"}, "vocab_size"),
}


@pytest.mark.parametrize(("values", "word"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_computed_is_refused_by_name(values: dict[str, Any], word: str) -> None:
    assert word in refusal(values)


def test_keys_that_change_nothing_pass() -> None:
    noise = {
        "auto_map": {"AutoModel": "evil.Model"}, "torch_dtype": "os.system", "use_cache": True,
        "transformers_version": "9.9", "attention_dropout": 0.1, "pretraining_tp": 2,
        "initializer_range": 0.02, "rope_interleaved": False, "some_new_switch": False,
        "some_new_list": [], "id2label": {"0": "x"}, "layer_types": ["full_attention"] * 2,
    }  # fmt: skip
    assert read(LLAMA | noise) == read(LLAMA)


def test_windows_that_are_stated_but_not_used() -> None:
    stated = {"sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 1}
    assert read(QWEN2 | stated) == read(QWEN2)


def test_windows_by_the_old_and_the_new_keys() -> None:
    window = {"use_sliding_window": True, "sliding_window": 8}
    old = read(QWEN3 | window | {"max_window_layers": 1})
    new = read(QWEN3 | window | {"layer_types": ["full_attention", "sliding_attention"]})
    assert old == new
    assert [layer.window for layer in old.layers] == [None, 8]


def test_ids_in_all_their_spellings() -> None:
    assert read(LLAMA | {"eos_token_id": 3}).eos_ids == (3,)
    assert read(LLAMA | {"eos_token_id": [3, 4], "bos_token_id": -1}).eos_ids == (3, 4)
    assert read(LLAMA | {"pad_token_id": -1}).pad_id is None


SAYABLE: dict[str, tuple[dict[str, Any], str, str]] = {
    "plain": ({}, "llama", "llama"),
    "all biases": ({"qkv_bias": True, "o_bias": True, "mlp_bias": True}, "llama", "llama"),
    "other activation": ({"activation": Activation.GELU}, "llama", ""),
    "heads that leave d_model": ({"n_heads": 5, "head_dim": 8}, "mistral", "llama"),
    "qkv biases": ({"qkv_bias": True}, "qwen2", "qwen2"),
    "qkv biases and a window": ({"qkv_bias": True, "window": 4}, "qwen2", ""),
    "norms": ({"qk_norm": QkNorm.HEAD, "n_heads": 5, "head_dim": 8}, "qwen3", "qwen3"),
    "norms and biases": (
        {"qk_norm": QkNorm.HEAD, "qkv_bias": True, "o_bias": True}, "qwen3", ""
    ),
    "gpt2": (PLAIN, "gpt2", "gpt2"),
    "exact gelu": (PLAIN | {"activation": Activation.GELU}, "gpt2", ""),
    "gpt2 with grouped queries": (PLAIN | {"n_kv_heads": 2}, "", ""),
    "gpt2 without a bias": (PLAIN | {"o_bias": False}, "", ""),
    "layer norm and rotation": ({"norm": Norm.LAYER, "norm_bias": True}, "stablelm", ""),
    "a window": ({"window": 4}, "mistral", ""),
    "a window and biases": ({"window": 4, "o_bias": True}, "", ""),
    "part of a head": ({"rotary_dim": 4}, "phi", "phi"),
    "part of a head, longrope": (
        {"rotary_dim": 4, "rope_scaling": LONG}, "phi", "phi"
    ),
    "scales": (SCALES, "granite", "minicpm"),
    "scales of all": (SCALES | {"attn_scale": 0.5}, "granite", "granite"),
    "norms of outputs": (
        {"block": Block.POST, "qk_norm": QkNorm.FULL, "tie_embeddings": False}, "olmo2", "olmo2"
    ),
    "norms of outputs, tied": ({"block": Block.POST, "qk_norm": QkNorm.FULL}, "olmo2", ""),
    "norms of outputs alone": ({"block": Block.POST}, "", ""),
    "latents of any scale": (LATENT, "minicpm3", ""),
    "latents": (LATENT | MINICPM3_SCALES, "minicpm3", "minicpm3"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "hf", "gguf"), SAYABLE.values(), ids=SAYABLE)
def test_who_can_say_a_config(changes: dict[str, Any], hf: str, gguf: str) -> None:
    config = ModelConfig.uniform(**(SHAPE | changes))
    for family, name in ((for_config(config), hf), (for_gguf(config), gguf)):
        assert (family.name if family else "") == name
    if not hf:
        assert all(f"{family.name}: " in misfits(config) for family in FAMILIES)


@pytest.mark.parametrize("changes", [{"v_head_dim": 4}, {"n_kv_heads": 2}, {"rope_theta": 5.0}])
def test_layers_that_differ(changes: dict[str, Any]) -> None:
    config = ModelConfig.uniform(**SHAPE)
    layers = (config.layers[0], dataclasses.replace(config.layers[1], **changes))
    config = dataclasses.replace(config, layers=layers)
    assert for_config(config) is None
    assert for_gguf(config) is None
    assert "llama: layer 1" in misfits(config)


def test_what_a_family_writes_in_a_folder_it_reads(family: Family, example: ModelConfig) -> None:
    assert (hf_misfit(family, example) is None) == (family.name not in READ_ONLY)
    if family.name not in READ_ONLY:
        written = family.config_to_hf(example)
        assert by_hf_config(written) is family
        assert family.config_from_hf(written) == example


def test_what_a_family_writes_in_gguf_it_reads(family: Family, example: ModelConfig) -> None:
    if not family.gguf_architecture:
        assert gguf_misfit(family, example) is not None
        return
    assert gguf_misfit(family, example) is None
    assert by_gguf(family.gguf_architecture) is family


def test_every_tensor_has_one_place(family: Family, example: ModelConfig) -> None:
    for names in (family.hf_names, family.gguf_names or family.hf_names):
        placed = [target for s in sources(example, names) for target in s.targets]
        assert sorted(placed) == sorted(spec.name for spec in tensor_table(example))


def test_a_tensor_without_a_place_is_named() -> None:
    config = ModelConfig.uniform(**(SHAPE | {"qk_norm": QkNorm.HEAD}))
    with pytest.raises(ModelFileError, match="q_norm"):
        sources(config, by_gguf("llama").gguf_names)


@pytest.mark.parametrize("meant", [1e-5, 1e-6, 10000.0, 500000.0, 3e-7, 0.1, 0.0])
def test_a_float32_is_the_decimal_that_was_meant(meant: float) -> None:
    assert plain_float(float(np.float32(meant))) == meant


def test_a_float32_keeps_every_bit() -> None:
    bits = np.random.default_rng(3).integers(0, 0x7F800000, 2000, dtype=np.uint32)
    for value in bits.view(np.float32):
        assert np.float32(plain_float(float(value))) == value


def test_a_number_that_is_no_float32_is_kept() -> None:
    assert plain_float(1 / 3) == 1 / 3
    assert plain_float(1e300) == 1e300
    with pytest.raises(TypeError):
        plain_float(True)
