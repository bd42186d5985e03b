"""Published models by their config.json: what it says, gotchas included, has their size."""

from __future__ import annotations

from typing import Any

import pytest

from miudo.config import ModelConfig
from miudo.families import by_hf_config, for_gguf
from miudo.tensors import parameter_count

_OLD = {
    "torch_dtype": "bfloat16", "transformers_version": "4.43.0", "use_cache": True,
    "initializer_range": 0.02, "attention_dropout": 0.0, "hidden_act": "silu",
}  # fmt: skip


def _shape(
    architecture: str, sizes: tuple[int, ...], positions: int, **more: Any
) -> dict[str, Any]:
    names = (
        "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads",
        "intermediate_size", "vocab_size",
    )  # fmt: skip
    return {
        **_OLD,
        "architectures": [architecture + "ForCausalLM"],
        **dict(zip(names, sizes, strict=True)),
        "max_position_embeddings": positions,
        **more,
    }


LLAMA3 = {
    "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192, "rope_type": "llama3",
}  # fmt: skip
_PHI: dict[str, Any] = {
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "original_max_position_embeddings": 4096,
    "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [1.5] * 48},
    "sliding_window": 262144, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attention_bias": False,
    "auto_map": {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"},
}  # fmt: skip
_GRANITE: dict[str, Any] = {
    "embedding_multiplier": 12.0, "residual_multiplier": 0.22, "attention_multiplier": 0.015625,
    "logits_scaling": 8.0, "rms_norm_eps": 1e-5, "rope_theta": 5000000.0, "rope_scaling": None,
    "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True,
}  # fmt: skip
_MINICPM: dict[str, Any] = {
    "scale_emb": 12, "dim_model_base": 256, "scale_depth": 1.4, "rms_norm_eps": 1e-5,
    "auto_map": {"AutoModelForCausalLM": "modeling_minicpm.MiniCPMForCausalLM"},
}  # fmt: skip
STATIC = {"type": "longrope", "short_factor": [1.25] * 16, "long_factor": [1.25] * 16}

# Published parameter counts, and the architecture of the GGUF file that other programs take.
PUBLISHED: dict[str, tuple[dict[str, Any], int, str]] = {
    "TinyLlama 1.1B": (
        _shape("Llama", (22, 2048, 32, 4, 5632, 32000), 2048, rms_norm_eps=1e-5),
        1_100_048_384,
        "llama",
    ),
    "Llama 3.1 8B": (
        _shape(
            "Llama", (32, 4096, 32, 8, 14336, 128256), 131072, rope_theta=5e5,
            rope_scaling=LLAMA3 | {"factor": 8.0}, pretraining_tp=1, mlp_bias=False,
            eos_token_id=[128001, 128008, 128009],
        ),
        8_030_261_248,
        "llama",
    ),
    "Llama 3.2 1B": (
        _shape(
            "Llama", (16, 2048, 32, 8, 8192, 128256), 131072, rope_theta=5e5,
            rope_scaling=LLAMA3, head_dim=64, tie_word_embeddings=True,
        ),
        1_235_814_400,
        "llama",
    ),
    "SmolLM2 135M": (
        _shape(
            "Llama", (30, 576, 9, 3, 1536, 49152), 8192, rope_theta=100000, rope_scaling=None,
            tie_word_embeddings=True, is_llama_config=True, rope_interleaved=False,
        ),
        134_515_008,
        "llama",
    ),
    "Mistral 7B v0.1": (
        _shape(
            "Mistral", (32, 4096, 32, 8, 14336, 32000), 32768, sliding_window=4096,
            rope_theta=10000.0,
        ),
        7_241_732_096,
        "",  # other programs' files have no windows
    ),
    "Mistral 7B v0.3": (
        _shape(
            "Mistral", (32, 4096, 32, 8, 14336, 32768), 32768, sliding_window=None, rope_theta=1e6
        ),
        7_248_023_552,
        "llama",
    ),
    "Mistral Nemo 12B": (
        _shape(
            "Mistral", (40, 5120, 32, 8, 14336, 131072), 131072, sliding_window=None,
            head_dim=128, rope_theta=1e6,
        ),
        12_247_782_400,
        "llama",
    ),
    "Qwen2 0.5B": (
        _shape(
            "Qwen2", (24, 896, 14, 2, 4864, 151936), 131072, rope_theta=1e6,
            sliding_window=131072, max_window_layers=24, use_sliding_window=False,
            tie_word_embeddings=True, rms_norm_eps=1e-6,
        ),
        494_032_768,
        "qwen2",
    ),
    "Phi-3.5-mini": (
        _shape("Phi3", (32, 3072, 32, 32, 8192, 32064), 131072, **_PHI),
        3_821_079_552,
        "phi3",
    ),
    "Phi-4-mini": (
        _shape(
            "Phi3", (32, 3072, 24, 8, 8192, 200064), 131072, **_PHI, partial_rotary_factor=0.75,
            tie_word_embeddings=True, full_attn_mod=1, interpolate_factor=1, lm_head_bias=False,
            mlp_bias=False,
        ),
        3_836_021_760,
        "phi3",
    ),
    "Granite 3.1 2B": (
        _shape("Granite", (40, 2048, 32, 8, 8192, 49155), 131072, **_GRANITE),
        2_533_531_648,
        "granite",
    ),
    "SmolLM3 3B": (
        _shape(
            "SmolLM3", (36, 2048, 16, 4, 11008, 128256), 65536, rope_theta=5e6,
            no_rope_layers=[1, 1, 1, 0] * 9, no_rope_layer_interval=4, max_window_layers=28,
            layer_types=["full_attention"] * 36, use_sliding_window=False, sliding_window=None,
            mlp_bias=False, attention_bias=False, pretraining_tp=2, rms_norm_eps=1e-6,
        ),
        3_075_098_624,
        "smollm3",
    ),
    "OLMo 2 7B": (
        _shape(
            "Olmo2", (32, 4096, 32, 32, 11008, 100352), 4096, rope_theta=500000,
            rope_scaling=None, attention_bias=False, rms_norm_eps=1e-6, tie_word_embeddings=False,
        ),
        7_298_617_344,
        "olmo2",
    ),
    "MiniCPM 2B": (
        _shape("MiniCPM", (40, 2304, 36, 36, 5760, 122753), 4096, **_MINICPM, rope_scaling=None),
        2_724_880_896,
        "minicpm",
    ),
    "MiniCPM 2B 128k": (
        _shape(
            "MiniCPM", (40, 2304, 36, 36, 5760, 122760), 65536, **_MINICPM, rope_theta=1e6,
            rope_scaling={"type": "dynamic", "factor": 4.0}, tie_word_embeddings=False,
        ),
        3_007_736_064,
        "minicpm",
    ),
    "MiniCPM3 4B": (
        _shape(
            "MiniCPM3", (62, 2560, 40, 40, 6400, 73448), 32768, **_MINICPM, q_lora_rank=768,
            kv_lora_rank=256, qk_nope_head_dim=64, qk_rope_head_dim=32, eos_token_id=[2, 73440],
            rope_scaling=STATIC | {"original_max_position_embeddings": 32768},
        ),
        4_073_875_968,
        "minicpm3",
    ),
}  # fmt: skip


def read(name: str) -> ModelConfig:
    values = PUBLISHED[name][0]
    return by_hf_config(values).config_from_hf(values)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_its_size(name: str) -> None:
    _, parameters, architecture = PUBLISHED[name]
    config = read(name)
    assert parameter_count(config) == parameters
    family = for_gguf(config)
    assert (family.gguf_architecture if family else "") == architecture


def test_a_short_session_of_mistral_needs_no_windows() -> None:
    family = for_gguf(read("Mistral 7B v0.1").with_context(4096))
    assert family is not None
    assert family.gguf_architecture == "llama"
