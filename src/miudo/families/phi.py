"""Phi-3.5 and Phi-4-mini: Llama with fused matrices and rotations stretched by LongRoPE.

For: `Phi3ForCausalLM` folders (Phi-3, Phi-3.5-mini, Phi-4-mini) and GGUF "phi3".
Not for: mixtures of experts and models that see or hear, which have other architecture names.
Read next: `miudo.families.llama`.
"""

from __future__ import annotations

from typing import Any

from miudo.config import ModelConfig, RopeKind
from miudo.families.family import Family, Values, hf_number, refuse
from miudo.families.gguf_rope import GGUF_ROPE
from miudo.families.llama import GGUF_NAMES, HF_NAMES, gguf_reader, gguf_writer, read_hf, write_hf
from miudo.families.mistral import with_window
from miudo.families.rope import scaling_misfit, write_rope

__all__ = ["PHI"]

_FUSED_HF = {f"attn.{x}.weight": "model.layers.{i}.self_attn.qkv_proj.weight" for x in "qkv"}
_FUSED_GGUF = {f"attn.{x}.weight": "blk.{i}.attn_qkv.weight" for x in "qkv"}
for _part in ("gate", "up"):
    _FUSED_HF[f"mlp.{_part}.weight"] = "model.layers.{i}.mlp.gate_up_proj.weight"
    _FUSED_GGUF[f"mlp.{_part}.weight"] = "blk.{i}.ffn_up.weight"
_NO_BIAS: dict[str, Any] = {"qkv_bias": False, "o_bias": False, "mlp_bias": False}
_WEIGHTS_HF = {k: v for k, v in HF_NAMES.items() if not k.endswith("bias")}
_WEIGHTS_GGUF = {k: v for k, v in GGUF_NAMES.items() if not k.endswith("bias")}
# In old files "su" and "yarn" both mean LongRoPE, with its two lists of factors.
_ROPE: dict[str, Any] = {
    "positions": 4096, "partial": True, "renamed": {"su": "longrope", "yarn": "longrope"},
}  # fmt: skip
# Of Phi-4-mini: other values would leave attention out of some layers or stretch positions.
_VARIANTS: dict[str, tuple[object, ...]] = {
    "full_attn_mod": (1, None), "interpolate_factor": (1, None), "lm_head_bias": (False, None),
}  # fmt: skip
_READ = frozenset({"sliding_window"}) | _VARIANTS.keys()
_ORIGINAL = "original_max_position_embeddings"


def _read(values: Values) -> ModelConfig:
    given = {**values, _ORIGINAL: values.get(_ORIGINAL) or 4096}
    eps = float(hf_number(values, "rms_norm_eps", 1e-5))
    refuse(values, _VARIANTS)
    config = read_hf(given, _READ, rope=_ROPE, norm_eps=eps, **_NO_BIAS)
    window = values.get("sliding_window")
    return with_window(config, None if window is None else hf_number(values, "sliding_window"))


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        **write_hf(config, "Phi3ForCausalLM", "phi3"),
        **write_rope(config, bare=True),
        "sliding_window": config.layers[0].window,
    }


def _hf_misfit(config: ModelConfig) -> str | None:
    layer = config.layers[0]
    if config.d_model // layer.n_heads != layer.head_dim:  # the class checks factors by it
        return f"{layer.n_heads} heads of {layer.head_dim} are not d_model {config.d_model}"
    return scaling_misfit(config, RopeKind.LONGROPE)


def _write_gguf(config: ModelConfig) -> dict[str, Any]:
    # llama.cpp computes no windows here; 0 says that there is none.
    return {**gguf_writer("phi3")(config), "phi3.attention.sliding_window": 0}


PHI = Family(
    name="phi",
    architectures=("Phi3ForCausalLM",),
    model_types=("phi3",),
    hf_names=_WEIGHTS_HF | _FUSED_HF,
    config_from_hf=_read,
    config_to_hf=_write,
    hf_misfit=_hf_misfit,
    hf_ignored=("rotary_emb.inv_freq",),
    gguf_architecture="phi3",
    gguf_names=_WEIGHTS_GGUF | _FUSED_GGUF,
    gguf_keys=GGUF_ROPE | {"attention.sliding_window"},
    config_from_gguf=gguf_reader("phi3", partial=True, **_NO_BIAS),
    config_to_gguf=_write_gguf,
    gguf_misfit=_hf_misfit,
)
