"""OLMo 2: Llama with norms on the sublayers' outputs and on whole queries and keys.

For: `Olmo2ForCausalLM` folders and GGUF "olmo2".
Not for: OLMo 1 and 3, which have other architecture names.
Read next: `miudo.families.llama`.
"""

from __future__ import annotations

from typing import Any

from miudo.config import Block, ModelConfig, QkNorm, RopeKind
from miudo.families.family import Family, Values, hf_number
from miudo.families.gguf_rope import GGUF_ROPE
from miudo.families.llama import GGUF_NAMES, HF_NAMES, gguf_reader, gguf_writer, read_hf, write_hf
from miudo.families.rope import scaling_misfit

__all__ = ["OLMO2"]

_NORMS_HF = {
    "attn_post_norm.weight": "model.layers.{i}.post_attention_layernorm.weight",
    "mlp_post_norm.weight": "model.layers.{i}.post_feedforward_layernorm.weight",
    "attn.q_norm.weight": "model.layers.{i}.self_attn.q_norm.weight",
    "attn.k_norm.weight": "model.layers.{i}.self_attn.k_norm.weight",
}
_NORMS_GGUF = {
    "attn_post_norm.weight": "blk.{i}.post_attention_norm.weight",
    "mlp_post_norm.weight": "blk.{i}.post_ffw_norm.weight",
    "attn.q_norm.weight": "blk.{i}.attn_q_norm.weight",
    "attn.k_norm.weight": "blk.{i}.attn_k_norm.weight",
}
_SHAPE: dict[str, Any] = {"block": Block.POST, "qk_norm": QkNorm.FULL, "mlp_bias": False}
_BIASES: dict[str, Any] = {"qkv_bias": False, "o_bias": False}


def _read(values: Values) -> ModelConfig:
    return read_hf(values, norm_eps=float(hf_number(values, "rms_norm_eps", 1e-5)), **_SHAPE)


def _gguf_misfit(config: ModelConfig) -> str | None:
    layer = config.layers[0]
    if config.tie_embeddings:
        return "files of OLMo 2 have a head of its own"
    if layer.n_heads * layer.head_dim != config.d_model:
        return "its heads do not add up to d_model"
    return scaling_misfit(config, RopeKind.LINEAR, RopeKind.YARN)


OLMO2 = Family(
    name="olmo2",
    architectures=("Olmo2ForCausalLM",),
    model_types=("olmo2",),
    hf_names=HF_NAMES | _NORMS_HF,
    config_from_hf=_read,
    config_to_hf=lambda config: write_hf(config, "Olmo2ForCausalLM", "olmo2"),
    hf_ignored=("rotary_emb.inv_freq",),
    gguf_architecture="olmo2",
    gguf_names=GGUF_NAMES | _NORMS_GGUF,
    gguf_keys=GGUF_ROPE,
    config_from_gguf=gguf_reader("olmo2", **_SHAPE, **_BIASES),
    config_to_gguf=gguf_writer("olmo2"),
    gguf_misfit=_gguf_misfit,
)
