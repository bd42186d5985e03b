"""DCLM: Llama's block with layer norms, and norms over all heads of queries and keys.

For: `OpenLMForCausalLM` folders (DCLM, Li et al. 2024), which only their authors' code and miudo
read, in both shapes of config.json: flat, and under `params_args_dict`.
Not for: experts, other norms and rotations of that code, which are refused by name.
Read next: `miudo.families.llama`.
"""

from __future__ import annotations

from typing import Any

from miudo.config import ModelConfig, Norm, QkNorm
from miudo.config.parts import in_range
from miudo.errors import ModelFileError
from miudo.families.family import (
    Family,
    Values,
    hf_flag,
    hf_number,
    hf_token_ids,
    hf_token_keys,
    refuse,
    refuse_unknown,
)
from miudo.limits import LIMITS

__all__ = ["DCLM"]

_LAYER = {
    "attn_norm": "attention_norm", "attn.q": "attention.in_proj", "attn.k": "attention.in_proj",
    "attn.v": "attention.in_proj", "attn.q_norm": "attention.q_norm",
    "attn.k_norm": "attention.k_norm", "attn.o": "attention.out_proj", "mlp_norm": "ffn_norm",
    "mlp.gate": "feed_forward.w12", "mlp.up": "feed_forward.w12", "mlp.down": "feed_forward.w3",
}  # fmt: skip
_NESTED = "params_args_dict"
_NORM = "gain_only_lp_layer_norm"
# "head_rotary" turns by the number of the head, "llama_rotary" pairs neighbours.
_VARIANTS: dict[str, tuple[object, ...]] = {
    "positional_embedding_type": ("rotary",),
    "model_norm": (_NORM, "gain_only_layer_norm"),
    "norm_type": (_NORM, "gain_only_layer_norm"),
    "ffn_type": ("swiglu_torch", "swiglu"),
    "moe_freq": (0, None),
    "attn_name": ("auto", "torch_attn", "xformers_attn", None),
}
# The rest says how the model was trained, or sizes of experts that it does not have.
_READ = frozenset({
    "dim", "n_layers", "n_heads", "vocab_size", "seq_len", "norm_eps", "weight_tying",
    "apply_qk_norm", "qk_norm", "post_embed_norm", "model", "params", "attn_func", "linear_type",
    "linear_device", "moe_loss_weight", "moe_capacity_factor", "moe_num_experts", "moe_top_k",
    "moe_expert_model_parallelism", "moe_weight_parallelism",
})  # fmt: skip


def _read_hf(values: Values) -> ModelConfig:
    nested = values.get(_NESTED) or {}
    if not isinstance(nested, dict):
        raise ModelFileError(f"{_NESTED} is no object", where="config.json")
    given = {**values, **nested}
    refuse(given, _VARIANTS)
    refuse_unknown(given, _READ | _VARIANTS.keys() | {_NESTED})
    d_model = hf_number(given, "dim")
    in_range("dim", d_model, 1, LIMITS.d_model)
    normed = hf_flag(given, "apply_qk_norm", default=hf_flag(given, "qk_norm"))
    return ModelConfig.uniform(
        n_layers=hf_number(given, "n_layers"),
        d_model=d_model,
        n_heads=hf_number(given, "n_heads"),
        d_ff=_width(d_model),
        vocab_size=hf_number(given, "vocab_size"),
        max_positions=hf_number(given, "seq_len", 2048),
        norm=Norm.LAYER,
        norm_eps=float(hf_number(given, "norm_eps", 1e-5)),
        embed_norm=hf_flag(given, "post_embed_norm"),
        qk_norm=QkNorm.FULL if normed else QkNorm.NONE,
        tie_embeddings=hf_flag(given, "weight_tying"),
        **hf_token_ids(values),
    )


def _width(d_model: int) -> int:
    """Eight thirds of `d_model`, up to the next multiple of 256."""
    return -(-int(8 * d_model / 3) // 256) * 256


def _write_hf(config: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["OpenLMForCausalLM"],
        "model_type": "openlm",
        _NESTED: {
            "dim": config.d_model,
            "n_layers": config.n_layers,
            "n_heads": config.layers[0].n_heads,
            "vocab_size": config.vocab_size,
            "seq_len": config.max_positions,
            "model_norm": _NORM,
            "norm_eps": config.norm_eps,
            "apply_qk_norm": config.qk_norm is QkNorm.FULL,
            "post_embed_norm": config.embed_norm,
            "positional_embedding_type": "rotary",
            "ffn_type": "swiglu_torch",
            "weight_tying": config.tie_embeddings,
            "moe_freq": 0,
        },
        "tie_word_embeddings": config.tie_embeddings,
        **hf_token_keys(config),
    }


DCLM = Family(
    name="dclm",
    architectures=("OpenLMForCausalLM", "OpenLMModel"),
    model_types=("openlm",),
    hf_names={
        "embed.weight": "model.tok_embeddings.weight",
        "embed_norm.weight": "model.post_embed_norm.weight",
        **{f"{k}.weight": f"model.layers.{{i}}.{v}.weight" for k, v in _LAYER.items()},
        "norm.weight": "model.norm.weight",
        "head.weight": "model.output.weight",
    },
    config_from_hf=_read_hf,
    config_to_hf=_write_hf,
    hf_ignored=("pos_embed.inv_freq",),
    foreign=True,
)
