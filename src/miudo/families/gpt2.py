"""GPT-2: layer norm with bias, learned positions, plain feed-forward (Radford et al. 2019).

For: `GPT2LMHeadModel` folders (GPT-2, Cerebras-GPT, LaMini-GPT) and GGUF "gpt2".
Not for: cross attention and the scaling variants of the class, which are refused.
Read next: `miudo.families.family`.
"""

from __future__ import annotations

from typing import Any

from miudo.config import Activation, Mlp, ModelConfig, Norm, Position, QkNorm
from miudo.errors import ModelFileError
from miudo.families.family import ACTIVATIONS, Family, Values, hf_number, hf_token_ids, refuse

__all__ = ["GPT2"]

_PARTS = ("weight", "bias")
_LAYER_HF = {
    "attn_norm": "ln_1", "attn.q": "attn.c_attn", "attn.k": "attn.c_attn",
    "attn.v": "attn.c_attn", "attn.o": "attn.c_proj", "mlp_norm": "ln_2", "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}  # fmt: skip
_LAYER_GGUF = {
    "attn_norm": "attn_norm", "attn.q": "attn_qkv", "attn.k": "attn_qkv", "attn.v": "attn_qkv",
    "attn.o": "attn_output", "mlp_norm": "ffn_norm", "mlp.up": "ffn_up", "mlp.down": "ffn_down",
}  # fmt: skip
_SHAPE: dict[str, Any] = {
    "norm": Norm.LAYER, "norm_bias": True, "position": Position.LEARNED, "mlp": Mlp.PLAIN,
    "qkv_bias": True, "o_bias": True, "mlp_bias": True,
}  # fmt: skip


def _read_hf(values: Values) -> ModelConfig:
    refuse(
        values,
        {
            "scale_attn_by_inverse_layer_idx": (False,),
            "scale_attn_weights": (True,),
            "add_cross_attention": (False,),
        },
    )
    act = values.get("activation_function", "gelu_new")
    if act not in ACTIVATIONS:
        raise ModelFileError(f"activation_function {act!r} is unknown", where="config.json")
    d_model = hf_number(values, "n_embd")
    return ModelConfig.uniform(
        n_layers=hf_number(values, "n_layer"),
        d_model=d_model,
        n_heads=hf_number(values, "n_head"),
        d_ff=hf_number(values, "n_inner", 4 * d_model),
        vocab_size=hf_number(values, "vocab_size"),
        max_positions=hf_number(values, "n_positions", 1024),
        norm_eps=float(hf_number(values, "layer_norm_epsilon", 1e-5)),
        activation=ACTIVATIONS[act],
        tie_embeddings=bool(values.get("tie_word_embeddings", True)),
        **_SHAPE,
        **hf_token_ids(values),
    )


def _write_hf(config: ModelConfig) -> dict[str, Any]:
    layer, eos = config.layers[0], list(config.eos_ids)
    names = {v: k for k, v in ACTIVATIONS.items() if k not in ("swish", "gelu_pytorch_tanh")}
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": config.d_model,
        "n_inner": layer.d_ff,
        "n_layer": config.n_layers,
        "n_head": layer.n_heads,
        "n_positions": config.max_positions,
        "n_ctx": config.max_positions,
        "vocab_size": config.vocab_size,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": names[config.activation],
        "tie_word_embeddings": config.tie_embeddings,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "bos_token_id": config.bos_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "pad_token_id": config.pad_id,
    }


def _read_gguf(keys: Values, names: frozenset[str]) -> ModelConfig:
    return ModelConfig.uniform(
        n_layers=keys["gpt2.block_count"],
        d_model=keys["gpt2.embedding_length"],
        n_heads=keys["gpt2.attention.head_count"],
        d_ff=keys["gpt2.feed_forward_length"],
        max_positions=keys["gpt2.context_length"],
        norm_eps=float(f"{keys['gpt2.attention.layer_norm_epsilon']:.7g}"),
        activation=Activation.GELU_TANH,
        tie_embeddings="output.weight" not in names,
        **_SHAPE,
        **{k: keys[k] for k in ("vocab_size", "bos_id", "eos_ids", "pad_id")},
    )


def _write_gguf(config: ModelConfig) -> dict[str, Any]:
    layer = config.layers[0]
    return {
        "gpt2.context_length": config.max_positions,
        "gpt2.embedding_length": config.d_model,
        "gpt2.block_count": config.n_layers,
        "gpt2.feed_forward_length": layer.d_ff,
        "gpt2.attention.head_count": layer.n_heads,
        "gpt2.attention.layer_norm_epsilon": config.norm_eps,
        "gpt2.vocab_size": config.vocab_size,
    }


def _expresses(config: ModelConfig) -> bool:
    first = config.layers[0]
    return (
        all(getattr(config, name) == value for name, value in _SHAPE.items())
        and config.qk_norm is QkNorm.NONE
        and all(layer == first for layer in config.layers)
        and not first.rotary
        and first.window is None
        and first.n_heads == first.n_kv_heads
        and first.head_dim == first.v_head_dim
        and first.n_heads * first.head_dim == config.d_model
    )


GPT2 = Family(
    name="gpt2",
    architectures=("GPT2LMHeadModel", "GPT2Model"),
    model_types=("gpt2",),
    gguf_architecture="gpt2",
    hf_names={
        "embed.weight": "transformer.wte.weight",
        "position.weight": "transformer.wpe.weight",
        **{
            f"{k}.{p}": f"transformer.h.{{i}}.{v}.{p}" for k, v in _LAYER_HF.items() for p in _PARTS
        },
        "norm.weight": "transformer.ln_f.weight",
        "norm.bias": "transformer.ln_f.bias",
        "head.weight": "lm_head.weight",
    },
    gguf_names={
        "embed.weight": "token_embd.weight",
        "position.weight": "position_embd.weight",
        **{f"{k}.{p}": f"blk.{{i}}.{v}.{p}" for k, v in _LAYER_GGUF.items() for p in _PARTS},
        "norm.weight": "output_norm.weight",
        "norm.bias": "output_norm.bias",
        "head.weight": "output.weight",
    },
    expresses=_expresses,
    config_from_hf=_read_hf,
    config_to_hf=_write_hf,
    config_from_gguf=_read_gguf,
    config_to_gguf=_write_gguf,
    hf_prefix="transformer.",
    hf_transposed=tuple(f"{k}.weight" for k in _LAYER_HF if not k.endswith("norm")),
    hf_ignored=("attn.bias", "attn.masked_bias"),
)
