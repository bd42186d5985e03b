"""GPT-NeoX: attention and feed-forward side by side, a part of each head rotated.

For: `GPTNeoXForCausalLM` folders (Pythia, RedPajama; Black et al. 2022) and GGUF "gptneox".
Not for: StableLM, which shares one norm between the two.
Read next: `miudo.families.stablelm`.
"""

from __future__ import annotations

from typing import Any

from miudo.config import Activation, Mlp, ModelConfig, Norm, Parallel, RopeKind
from miudo.errors import ModelFileError
from miudo.families.family import (
    Family,
    Values,
    activation_name,
    hf_activation,
    hf_flag,
    hf_number,
    hf_token_ids,
    hf_token_keys,
    refuse_unknown,
)
from miudo.families.gguf_rope import GGUF_ROPE, read_gguf_rope, write_gguf_rope
from miudo.families.gpt2 import GGUF_NAMES, read_gguf_sizes, write_gguf_sizes
from miudo.families.places import Layout, both_parts
from miudo.families.rope import HF_ROPE, read_rope, scaling_misfit, write_rope

__all__ = ["NEOX"]

_FUSED = ("attn.q", "attn.k", "attn.v")
_LAYER = {
    "attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm",
    **dict.fromkeys(_FUSED, "attention.query_key_value"), "attn.o": "attention.dense",
    "mlp.up": "mlp.dense_h_to_4h", "mlp.down": "mlp.dense_4h_to_h",
}  # fmt: skip
_SHAPE: dict[str, Any] = {
    "norm": Norm.LAYER, "norm_bias": True, "mlp": Mlp.PLAIN, "mlp_bias": True,
}  # fmt: skip
_READ = HF_ROPE | frozenset({
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size",
    "layer_norm_eps", "hidden_act", "use_parallel_residual", "attention_bias", "rotary_pct",
    "rotary_emb_base", "classifier_dropout", "attention_probs_dropout_prob",
    "hidden_dropout_prob",
})  # fmt: skip


def _read_hf(values: Values) -> ModelConfig:
    refuse_unknown(values, _READ)
    d_model, heads = hf_number(values, "hidden_size"), hf_number(values, "num_attention_heads")
    if heads < 1:
        raise ModelFileError(f"num_attention_heads is {heads}", where="config.json")
    parallel = hf_flag(values, "use_parallel_residual", default=True)
    bias = hf_flag(values, "attention_bias", default=True)
    renamed = {
        "rope_theta": values.get("rotary_emb_base"),
        "partial_rotary_factor": hf_number(values, "rotary_pct", 0.25),
    }
    return ModelConfig.uniform(
        n_layers=hf_number(values, "num_hidden_layers"),
        d_model=d_model,
        n_heads=heads,
        d_ff=hf_number(values, "intermediate_size"),
        vocab_size=hf_number(values, "vocab_size"),
        norm_eps=float(hf_number(values, "layer_norm_eps", 1e-5)),
        parallel=Parallel.TWO_NORMS if parallel else Parallel.NONE,
        activation=hf_activation(values, "hidden_act", "gelu"),
        qkv_bias=bias,
        o_bias=bias,
        tie_embeddings=hf_flag(values, "tie_word_embeddings"),
        **read_rope({**renamed, **values}, d_model // heads, partial=True),
        **_SHAPE,
        **hf_token_ids(values),
    )


def _write_hf(config: ModelConfig) -> dict[str, Any]:
    layer, rope = config.layers[0], write_rope(config)
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "hidden_size": config.d_model,
        "intermediate_size": layer.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": layer.n_heads,
        "vocab_size": config.vocab_size,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": activation_name(config.activation),
        "use_parallel_residual": config.parallel is Parallel.TWO_NORMS,
        "attention_bias": config.o_bias,
        **rope,
        "rotary_emb_base": layer.rope_theta,
        "rotary_pct": rope.get("partial_rotary_factor", 1.0),
        "tie_word_embeddings": config.tie_embeddings,
        **hf_token_keys(config),
    }


def _read_gguf(keys: Values, _: frozenset[str]) -> ModelConfig:
    sizes = read_gguf_sizes(keys, "gptneox")
    head_dim = sizes["d_model"] // sizes["n_heads"]
    parallel = keys["gptneox.use_parallel_residual"]
    return ModelConfig.uniform(
        parallel=Parallel.TWO_NORMS if parallel else Parallel.NONE,
        activation=Activation.GELU,  # no key names it: that of all published models is meant
        qkv_bias=True,
        o_bias=True,
        tie_embeddings=False,
        **_SHAPE,
        **sizes | read_gguf_rope(keys, "gptneox.", head_dim, partial=True),
    )


def _write_gguf(config: ModelConfig) -> dict[str, Any]:
    return {
        **write_gguf_sizes(config, "gptneox"),
        **write_gguf_rope(config, "gptneox."),
        "gptneox.use_parallel_residual": config.parallel is Parallel.TWO_NORMS,
    }


NEOX = Family(
    name="neox",
    architectures=("GPTNeoXForCausalLM", "GPTNeoXModel"),
    model_types=("gpt_neox",),
    hf_names={
        "embed.weight": "gpt_neox.embed_in.weight",
        **both_parts("gpt_neox.layers.{i}.", _LAYER),
        **both_parts("gpt_neox.", {"norm": "final_layer_norm"}),
        "head.weight": "embed_out.weight",
    },
    config_from_hf=_read_hf,
    config_to_hf=_write_hf,
    hf_prefix="gpt_neox.",
    hf_layout=Layout(by_head=frozenset(both_parts("", dict.fromkeys(_FUSED, "")))),
    hf_ignored=(".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq"),
    gguf_architecture="gptneox",
    gguf_names=GGUF_NAMES,
    gguf_keys=GGUF_ROPE | {"use_parallel_residual"},
    gguf_misfit=lambda c: scaling_misfit(c, RopeKind.LINEAR, RopeKind.YARN),
    gguf_note=lambda _: "llama.cpp computes the tanh form of GELU, the model the exact one",
    config_from_gguf=_read_gguf,
    config_to_gguf=_write_gguf,
)
