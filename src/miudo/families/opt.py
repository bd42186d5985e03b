"""OPT: learned positions that begin at row 2 (Zhang et al. 2022), as Galactica has them.

For: `OPTForCausalLM` folders with norms before the sublayers (Galactica, OPT but 350M).
Not for: OPT-350M, which norms after the sublayers and projects its embeddings; it is refused.
Read next: `miudo.families.gpt2`.
"""

from __future__ import annotations

from typing import Any

from miudo.config import Mlp, ModelConfig, Norm, Position
from miudo.families.family import (
    Family,
    Values,
    activation_name,
    hf_activation,
    hf_flag,
    hf_number,
    hf_token_ids,
    hf_token_keys,
    refuse,
    refuse_unknown,
)
from miudo.families.places import Layout, both_parts

__all__ = ["OPT"]

_LAYER = {
    "attn_norm": "self_attn_layer_norm", "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj", "attn.v": "self_attn.v_proj", "attn.o": "self_attn.out_proj",
    "mlp_norm": "final_layer_norm", "mlp.up": "fc1", "mlp.down": "fc2",
}  # fmt: skip
_VARIANTS: dict[str, tuple[object, ...]] = {
    "do_layer_norm_before": (True, None),
    "_remove_final_layer_norm": (False, None),
    "add_cross_attention": (False, None),
    "learned_embeddings": (True, None),
    "scale_embeddings": (False, None),
}
_READ = frozenset({
    "hidden_size", "num_hidden_layers", "num_attention_heads", "ffn_dim", "vocab_size",
    "max_position_embeddings", "activation_function", "enable_bias", "bias",
    "layer_norm_elementwise_affine", "word_embed_proj_dim",
    "dropout", "activation_dropout", "layerdrop", "init_std",
})  # fmt: skip


def _read_hf(values: Values) -> ModelConfig:
    refuse(values, _VARIANTS)
    d_model = hf_number(values, "hidden_size")
    refuse(values, {"word_embed_proj_dim": (d_model, None)})
    refuse_unknown(values, _READ | _VARIANTS.keys())
    biases = hf_flag(values, "enable_bias", default=hf_flag(values, "bias", default=True))
    affine = hf_flag(values, "layer_norm_elementwise_affine", default=True)
    return ModelConfig.uniform(
        n_layers=hf_number(values, "num_hidden_layers"),
        d_model=d_model,
        n_heads=hf_number(values, "num_attention_heads"),
        d_ff=hf_number(values, "ffn_dim"),
        vocab_size=hf_number(values, "vocab_size"),
        max_positions=hf_number(values, "max_position_embeddings", 2048),
        norm=Norm.LAYER,
        norm_eps=1e-5,  # no key says another
        norm_weight=affine,
        norm_bias=affine,
        position=Position.LEARNED,
        mlp=Mlp.PLAIN,
        activation=hf_activation(values, "activation_function", "relu"),
        qkv_bias=biases,
        o_bias=biases,
        mlp_bias=biases,
        tie_embeddings=hf_flag(values, "tie_word_embeddings", default=True),
        **hf_token_ids(values),
    )


def _write_hf(config: ModelConfig) -> dict[str, Any]:
    layer = config.layers[0]
    return {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "hidden_size": config.d_model,
        "word_embed_proj_dim": config.d_model,
        "ffn_dim": layer.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": layer.n_heads,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_positions,
        "activation_function": activation_name(config.activation),
        "do_layer_norm_before": True,
        "enable_bias": config.o_bias,
        "layer_norm_elementwise_affine": config.norm_weight,
        "tie_word_embeddings": config.tie_embeddings,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "layerdrop": 0.0,
        **hf_token_keys(config),
    }


OPT = Family(
    name="opt",
    architectures=("OPTForCausalLM", "OPTModel"),
    model_types=("opt",),
    hf_names={
        "embed.weight": "model.decoder.embed_tokens.weight",
        "position.weight": "model.decoder.embed_positions.weight",
        **both_parts(
            "model.decoder.layers.{i}.",
            _LAYER,
        ),
        **both_parts("model.decoder.", {"norm": "final_layer_norm"}),
        "head.weight": "lm_head.weight",
    },
    config_from_hf=_read_hf,
    config_to_hf=_write_hf,
    # Rows 0 and 1 are those of positions that are masked out.
    hf_layout=Layout(skipped={"position.weight": 2}),
)
