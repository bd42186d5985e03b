"""OpenELM, whose layers differ, and DCLM, whose config.json has two shapes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from miudo.config import ModelConfig, Norm, QkNorm
from miudo.errors import ConfigError, ModelFileError
from miudo.families import by_hf_config
from miudo.families.dclm import DCLM
from miudo.families.fit import gguf_misfit, hf_misfit
from miudo.families.openelm import OPENELM
from miudo.tensors import parameter_count

# The published 270M; its tensors add up to 271.5 million numbers.
OPENELM_270M: dict[str, Any] = {
    "architectures": ["OpenELMForCausalLM"], "model_type": "openelm", "model_dim": 1280,
    "auto_map": {"AutoModelForCausalLM": "modeling_openelm.OpenELMForCausalLM"},
    "num_transformer_layers": 16, "head_dim": 64, "num_gqa_groups": 4,
    "num_query_heads": [12] * 5 + [16] * 7 + [20] * 4,
    "num_kv_heads": [3] * 5 + [4] * 7 + [5] * 4,
    "ffn_multipliers": [
        0.5, 0.73, 0.97, 1.2, 1.43, 1.67, 1.9, 2.13, 2.37, 2.6, 2.83, 3.07, 3.3, 3.53, 3.77, 4.0,
    ],
    "ffn_dim_divisor": 256, "ffn_with_glu": True, "activation_fn_name": "swish",
    "normalization_layer_name": "rms_norm", "normalize_qk_projections": True,
    "qkv_multipliers": [0.5, 1.0], "rope_freq_constant": 10000, "rope_max_length": 4096,
    "max_context_length": 2048, "share_input_output_layers": True, "vocab_size": 32000,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
WIDTHS = [
    768, 1024, 1280, 1536, 1792, 2048, 2560, 2816, 3072, 3328, 3584, 3840, 4352, 4608, 4864, 5120,
]  # fmt: skip
PARAMS: dict[str, Any] = {
    "dim": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 50, "seq_len": 32, "norm_eps": 1e-6,
    "weight_tying": False, "post_embed_norm": False, "positional_embedding_type": "rotary",
    "moe_freq": 0, "moe_num_experts": 8, "moe_top_k": 2, "moe_loss_weight": 0.1,
}  # fmt: skip
NESTED: dict[str, Any] = {
    "architectures": ["OpenLMModel"], "model_type": "openlm", "params": None,
    "params_args_dict": PARAMS
    | {
        "model_norm": "gain_only_lp_layer_norm", "ffn_type": "swiglu_torch", "qk_norm": True,
        "model": "open_lm_1b_swiglutorch", "attn_name": "auto", "attn_activation": None,
    },
}  # fmt: skip
FLAT: dict[str, Any] = PARAMS | {
    "architectures": ["OpenLMForCausalLM"], "norm_type": "gain_only_lp_layer_norm",
    "ffn_type": "swiglu", "apply_qk_norm": True,
}  # fmt: skip


def read(values: dict[str, Any]) -> ModelConfig:
    return by_hf_config(values).config_from_hf(values)


def test_openelm_of_270m() -> None:
    config = read(OPENELM_270M)
    assert [layer.d_ff for layer in config.layers] == WIDTHS
    assert [layer.n_heads for layer in config.layers] == OPENELM_270M["num_query_heads"]
    assert [layer.n_kv_heads for layer in config.layers] == OPENELM_270M["num_kv_heads"]
    assert (config.norm_eps, config.qk_norm, config.tie_embeddings) == (1e-6, QkNorm.HEAD, True)
    assert round(parameter_count(config) / 1e6, 1) == 271.5
    assert hf_misfit(OPENELM, config) is None
    assert gguf_misfit(OPENELM, config) is None


@pytest.mark.parametrize("divisor", [1, 32, 100, 256])
def test_widths_that_are_written_come_back(divisor: int) -> None:
    config = read(OPENELM_270M)
    for step in range(1, 40):
        width = max(step * 97 // divisor, 1) * divisor
        layer = dataclasses.replace(config.layers[0], d_ff=width)
        odd = dataclasses.replace(config, layers=(layer, *config.layers[1:]))
        assert hf_misfit(OPENELM, odd) is None, width


def test_one_number_for_all_layers() -> None:
    same = {"num_query_heads": 12, "num_kv_heads": 3, "ffn_multipliers": 4.0}
    config = read(OPENELM_270M | same)
    assert {(x.n_heads, x.n_kv_heads, x.d_ff) for x in config.layers} == {(12, 3, 5120)}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"norm_eps": 1e-5}, "norm_eps"),
        ({"qk_norm": QkNorm.NONE}, "qk_norm"),
        ({"qkv_bias": True}, "no place for layers.0.attn.q.bias"),
    ],
)
def test_what_a_folder_of_openelm_cannot_say(change: dict[str, Any], why: str) -> None:
    config = dataclasses.replace(read(OPENELM_270M), **change)
    assert why in str(hf_misfit(OPENELM, config))


def test_gguf_of_openelm_has_no_head_of_its_own() -> None:
    config = read(OPENELM_270M | {"share_input_output_layers": False})
    assert hf_misfit(OPENELM, config) is None
    assert gguf_misfit(OPENELM, config) == "this family has no place for head.weight"


def test_both_shapes_of_dclm_say_the_same() -> None:
    config = read(NESTED)
    assert read(FLAT) == config
    assert (config.norm, config.norm_bias, config.qk_norm) == (Norm.LAYER, False, QkNorm.FULL)
    assert (config.norm_eps, config.layers[0].d_ff, config.max_positions) == (1e-6, 256, 32)
    assert not config.tie_embeddings
    assert gguf_misfit(DCLM, config) == "other programs know no such GGUF"


def test_dclm_of_1b_is_as_wide_as_published() -> None:
    large = PARAMS | {"dim": 2048, "n_layers": 24, "n_heads": 16, "vocab_size": 50432}
    config = read(NESTED | {"params_args_dict": NESTED["params_args_dict"] | large})
    assert config.layers[0].d_ff == 5632
    assert round(parameter_count(config) / 1e9, 2) == 1.44


def test_dclm_without_norms_of_heads_and_with_one_of_embeddings() -> None:
    config = read(FLAT | {"apply_qk_norm": False, "post_embed_norm": True, "weight_tying": True})
    assert (config.qk_norm, config.embed_norm, config.tie_embeddings) == (QkNorm.NONE, True, True)
    assert DCLM.config_from_hf(DCLM.config_to_hf(config)) == config


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "heads turned": (FLAT | {"positional_embedding_type": "head_rotary"}, "head_rotary"),
    "neighbours turned": (FLAT | {"positional_embedding_type": "llama_rotary"}, "llama_rotary"),
    "another norm": (FLAT | {"norm_type": "rms_norm"}, "rms_norm"),
    "another norm, nested": (
        NESTED | {"params_args_dict": PARAMS | {"model_norm": "default_layer_norm"}},
        "default_layer_norm",
    ),
    "experts": (FLAT | {"moe_freq": 2}, "moe_freq is 2"),
    "linear attention": (FLAT | {"attn_name": "linear_attn"}, "linear_attn"),
    "another feed-forward": (FLAT | {"ffn_type": "gemma_geglu"}, "gemma_geglu"),
    "an activation of scores": (FLAT | {"attn_activation": "relu"}, "attn_activation"),
    "nested text": (NESTED | {"params_args_dict": "x"}, "params_args_dict"),
    "no norms of heads": (OPENELM_270M | {"normalize_qk_projections": False}, "normalize_qk"),
    "no gate": (OPENELM_270M | {"ffn_with_glu": False}, "ffn_with_glu"),
    "layer norms": (OPENELM_270M | {"normalization_layer_name": "layer_norm"}, "layer_norm"),
    "too few heads": (OPENELM_270M | {"num_query_heads": [12] * 15}, "15 numbers, not 16"),
    "no width": (OPENELM_270M | {"ffn_multipliers": [0.0] * 16}, "no width"),
    "no divisor": (OPENELM_270M | {"ffn_dim_divisor": 0}, "no width"),
}  # fmt: skip


@pytest.mark.parametrize(("values", "word"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_computed_is_refused_by_name(values: dict[str, Any], word: str) -> None:
    with pytest.raises(ModelFileError, match=word):
        read(values)


def test_more_layers_than_can_be() -> None:
    for layers in (1 << 40, 0, 2.0):
        with pytest.raises(ConfigError, match="num_transformer_layers"):
            read(OPENELM_270M | {"num_transformer_layers": layers, "num_query_heads": 12})
