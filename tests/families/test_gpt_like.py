"""GPT-2, BLOOM, OPT, GPT-NeoX, StableLM: what their files say, old and new, and what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from miudo.config import Activation, ModelConfig, Norm, Parallel, Position, RopeKind, RopeScaling
from miudo.errors import ModelFileError
from miudo.families import by_gguf, by_hf_config, for_config, for_gguf
from miudo.families.fit import gguf_misfit, hf_misfit
from miudo.families.neox import NEOX
from miudo.families.opt import OPT
from miudo.families.places import sources
from miudo.families.stablelm import STABLELM

GPT2: dict[str, Any] = {
    "architectures": ["GPT2Model"], "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 50,
}  # fmt: skip
# As published, with what its trainer left in the file.
BLOOM: dict[str, Any] = {
    "architectures": ["BloomForCausalLM"], "n_embed": 32, "n_layer": 2, "num_attention_heads": 4,
    "vocab_size": 50, "offset_alibi": 100, "masked_softmax_fusion": True, "skip_bias_add": True,
    "attention_softmax_in_fp32": True, "bias_dropout_fusion": True, "seq_length": 2048,
    "apply_residual_connection_post_layernorm": False, "slow_but_exact": False,
    "layer_norm_epsilon": 1e-5, "unk_token_id": 0, "n_inner": None,
}  # fmt: skip
OPT_FILE: dict[str, Any] = {
    "architectures": ["OPTForCausalLM"], "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "ffn_dim": 64, "vocab_size": 50, "max_position_embeddings": 20,
    "activation_function": "gelu", "word_embed_proj_dim": 32, "do_layer_norm_before": True,
    "layerdrop": 0.1, "dropout": 0.1, "init_std": 0.02, "_remove_final_layer_norm": False,
}  # fmt: skip
NEOX_FILE: dict[str, Any] = {
    "architectures": ["GPTNeoXForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 80, "vocab_size": 50, "hidden_act": "gelu",
    "max_position_embeddings": 32, "layer_norm_eps": 1e-5, "use_parallel_residual": True,
}  # fmt: skip
STABLELM_FILE: dict[str, Any] = {
    "architectures": ["StableLmForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 80, "vocab_size": 50, "hidden_act": "silu",
}  # fmt: skip


def read(values: dict[str, Any]) -> ModelConfig:
    return by_hf_config(values).config_from_hf(values)


def test_cerebras_is_a_gpt2_of_the_exact_gelu() -> None:
    config = read(GPT2 | {"activation_function": "gelu", "n_inner": 4 * 32})
    assert (config.activation, config.tie_embeddings) == (Activation.GELU, True)
    assert config == dataclasses.replace(read(GPT2), activation=Activation.GELU)
    assert for_config(config, "GPT2LMHeadModel") is by_hf_config(GPT2)
    # Other programs take every GGUF of this architecture to have the other gelu.
    assert for_gguf(config) is None


def test_bloom_by_its_old_and_new_names() -> None:
    new = {"hidden_size": 32, "num_hidden_layers": 2, "n_head": 4}
    old = {k: v for k, v in BLOOM.items() if k not in ("n_embed", "n_layer", "num_attention_heads")}
    config = read(BLOOM)
    assert read(old | new) == config
    assert (config.position, config.embed_norm) == (Position.ALIBI, True)
    assert (config.layers[0].d_ff, config.max_positions) == (128, 2048)
    assert not any(layer.rotary for layer in config.layers)


def test_a_bloom_of_another_width_fits_gguf_alone() -> None:
    config = read(BLOOM)
    narrow = dataclasses.replace(
        config, layers=tuple(dataclasses.replace(layer, d_ff=96) for layer in config.layers)
    )
    family = by_hf_config(BLOOM)
    assert hf_misfit(family, narrow) == "layer 0: d_ff is 96, such files mean 128"
    assert gguf_misfit(family, narrow) is None


@pytest.mark.parametrize(
    ("keys", "biases", "affine"),
    [
        ({}, True, True),
        ({"enable_bias": True, "layer_norm_elementwise_affine": True}, True, True),
        ({"enable_bias": False, "layer_norm_elementwise_affine": False}, False, False),
        ({"bias": False}, False, True),
    ],
)
def test_galactica_with_and_without_biases_and_affine_norms(
    keys: dict[str, Any], biases: bool, affine: bool
) -> None:
    config = read(OPT_FILE | keys)
    assert {config.qkv_bias, config.o_bias, config.mlp_bias} == {biases}
    assert (config.norm_weight, config.norm_bias) == (affine, affine)
    assert (config.activation, config.norm_eps) == (Activation.GELU, 1e-5)
    assert OPT.config_from_hf(OPT.config_to_hf(config)) == config


def test_two_rows_of_opt_s_positions_are_skipped() -> None:
    config = read(OPT_FILE)
    assert config.max_positions == 20
    skipped = {s.name: s.skipped for s in sources(config, OPT.hf_names, OPT.hf_layout) if s.skipped}
    assert skipped == {"model.decoder.embed_positions.weight": 2}


def test_no_program_knows_opt_in_gguf() -> None:
    config = read(OPT_FILE)
    assert gguf_misfit(OPT, config) == "other programs know no such GGUF"
    with pytest.raises(ModelFileError, match="knows no such architecture"):
        OPT.config_to_gguf(config)
    with pytest.raises(ModelFileError, match="is unknown"):
        by_gguf("")


def test_a_config_goes_back_into_the_family_that_it_came_from() -> None:
    config = read(OPT_FILE)  # which is also a GPT-2 of the exact gelu
    ours, other = for_config(config, "OPTForCausalLM"), for_config(config)
    assert (ours and ours.name, other and other.name) == ("opt", "gpt2")
    assert for_config(config, "BloomForCausalLM") == other


@pytest.mark.parametrize(
    ("keys", "theta", "rotary"),
    [
        ({}, 1e4, 4),
        ({"rotary_pct": 0.5, "rotary_emb_base": 5000}, 5000.0, 8),
        ({"rotary_pct": 1.0}, 1e4, None),
        ({"rope_parameters": {"rope_theta": 5000.0, "partial_rotary_factor": 0.5}}, 5000.0, 8),
    ],
)
def test_neox_rotates_a_part_by_old_and_new_keys(
    keys: dict[str, Any], theta: float, rotary: int | None
) -> None:
    layer = read(NEOX_FILE | keys).layers[0]
    assert (layer.rope_theta, layer.rotary_dim) == (theta, rotary)


def test_neox_side_by_side_and_in_turn() -> None:
    assert read(NEOX_FILE).parallel is Parallel.TWO_NORMS
    in_turn = read(NEOX_FILE | {"use_parallel_residual": False, "attention_bias": False})
    assert in_turn.parallel is Parallel.NONE
    assert (in_turn.qkv_bias, in_turn.o_bias, in_turn.mlp_bias) == (False, False, True)
    assert gguf_misfit(NEOX, in_turn) == "qkv_bias is False, such files mean True"
    keys = NEOX.config_to_gguf(read(NEOX_FILE))
    assert keys["gptneox.use_parallel_residual"] is True
    assert keys["gptneox.rope.dimension_count"] == 4


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"tie_embeddings": True}, "tie_embeddings"),
        ({"activation": Activation.GELU_TANH}, "activation"),
        ({"rope_scaling": RopeScaling(RopeKind.LLAMA3, 16)}, "llama3"),
    ],
)
def test_what_gguf_cannot_say_of_neox(changes: dict[str, Any], why: str) -> None:
    config = dataclasses.replace(read(NEOX_FILE), **changes)
    assert why in str(gguf_misfit(NEOX, config))


def test_stablelm_by_old_and_new_names() -> None:
    old = STABLELM_FILE | {
        "architectures": ["StableLMEpochForCausalLM"], "model_type": "stablelm_epoch",
        "rope_pct": 0.25, "norm_eps": 1e-5, "num_heads": 4, "rotary_scaling_factor": 1.0,
        "rope_theta": 10000, "max_position_embeddings": 4096,
    }  # fmt: skip
    config = read(STABLELM_FILE)
    assert read(old) == config
    layer = config.layers[0]
    assert (config.norm, config.norm_bias, layer.rotary_dim) == (Norm.LAYER, True, 4)
    assert (config.qkv_bias, config.parallel) == (False, Parallel.NONE)


def test_stablelm_2() -> None:
    given = {"use_qkv_bias": True, "use_parallel_residual": True, "partial_rotary_factor": 1.0}
    config = read(STABLELM_FILE | given)
    assert (config.qkv_bias, config.parallel) == (True, Parallel.ONE_NORM)
    assert config.layers[0].rotary_dim is None
    # A whole head has to be said: where the key is absent, a quarter is meant.
    assert STABLELM.config_from_hf(STABLELM.config_to_hf(config)) == config


def test_stablelm_s_gguf_has_no_second_norm_where_one_is_shared() -> None:
    config = read(STABLELM_FILE | {"use_parallel_residual": True})
    names = {source.name for source in sources(config, STABLELM.gguf_names)}
    assert "blk.0.attn_norm.bias" in names
    assert "blk.0.ffn_norm.weight" not in names
    # Converters write the key as true where config.json is silent: the tensors count.
    keys = STABLELM.config_to_gguf(read(STABLELM_FILE)) | {
        "stablelm.use_parallel_residual": True, "vocab_size": 50, "bos_id": None, "eos_ids": (),
        "pad_id": None,
    }  # fmt: skip
    again = STABLELM.config_from_gguf(keys, frozenset({"blk.0.ffn_norm.weight", "output.weight"}))
    assert again == read(STABLELM_FILE)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "cross attention": (GPT2 | {"add_cross_attention": True}, "add_cross_attention"),
    "cross attention of opt": (OPT_FILE | {"add_cross_attention": True}, "add_cross_attention"),
    "muP": (GPT2 | {"mup_width_scale": 0.1, "mup_output_alpha": 2.2}, "mup_output_alpha = 2.2"),
    "BTLM": ({"architectures": ["BTLMLMHeadModel"]}, "muP"),
    "BTLM by type": ({"model_type": "btlm"}, "muP"),
    "residual after the norm": (
        BLOOM | {"apply_residual_connection_post_layernorm": True}, "post_layernorm is True"
    ),
    "slow but exact": (BLOOM | {"slow_but_exact": True}, "slow_but_exact"),
    "OPT-350M norms": (OPT_FILE | {"do_layer_norm_before": False}, "do_layer_norm_before"),
    "OPT-350M width": (OPT_FILE | {"word_embed_proj_dim": 16}, "word_embed_proj_dim is 16"),
    "no final norm": (OPT_FILE | {"_remove_final_layer_norm": True}, "_remove_final"),
    "no heads": (NEOX_FILE | {"num_attention_heads": 0}, "num_attention_heads is 0"),
    "an unknown rotation": (NEOX_FILE | {"rope_scaling": {"type": "ntk"}}, "ntk"),
    "StableLM 2 12B": (STABLELM_FILE | {"qk_layernorm": True}, "qk_layernorm"),
    "an old scaling": (STABLELM_FILE | {"rotary_scaling_factor": 2.0}, "rotary_scaling_factor"),
    "MobiLlama": ({"architectures": ["MobiLlamaForCausalLM"], "model_type": "llama"}, "share"),
    "MobileLLM": ({"architectures": ["MobileLLMForCausalLM"]}, "share"),
    "LFM2": ({"architectures": ["Lfm2ForCausalLM"]}, "state"),
    "Granite 4": ({"architectures": ["GraniteMoeHybridForCausalLM"]}, "state"),
    "Mamba": ({"architectures": ["MambaForCausalLM"]}, "state"),
    "MiniCPM-MoE": ({"architectures": ["MiniCPMMoEForCausalLM"]}, "mixture of experts"),
    "MiniCPM-V": ({"architectures": ["MiniCPMV"]}, "images"),
    "Mixtral": ({"architectures": ["MixtralForCausalLM"]}, "mixture of experts"),
}  # fmt: skip


@pytest.mark.parametrize(("values", "word"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_computed_is_refused_by_name(values: dict[str, Any], word: str) -> None:
    with pytest.raises(ModelFileError, match=word):
        read(values)


def test_a_norm_for_each_head_is_refused_in_gguf() -> None:
    with pytest.raises(ModelFileError, match="norm for each head"):
        STABLELM.config_from_gguf({}, frozenset({"blk.0.attn_q_norm.weight"}))
