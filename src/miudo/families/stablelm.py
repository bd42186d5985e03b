"""StableLM: Llama with layer norms and a part of each head rotated (Bellagente et al. 2024).

For: `StableLmForCausalLM` folders (StableLM-zephyr 3B, StableLM 2 1.6B) and GGUF "stablelm".
Not for: StableLM 2 12B, whose heads each have a norm of their own; it is refused.
Read next: `miudo.families.llama`.
"""

from __future__ import annotations

from typing import Any

from miudo.config import ModelConfig, Norm, Parallel, RopeKind
from miudo.errors import ModelFileError
from miudo.families.family import Family, Values, hf_flag, hf_number, refuse
from miudo.families.gguf_rope import GGUF_ROPE
from miudo.families.llama import GGUF_NAMES, HF_NAMES, gguf_reader, gguf_writer, read_hf, write_hf
from miudo.families.places import both_parts
from miudo.families.rope import scaling_misfit

__all__ = ["STABLELM"]

_EPS, _RMS_EPS = (f"stablelm.attention.layer_norm_{x}epsilon" for x in ("", "rms_"))
_SHAPE: dict[str, Any] = {
    "norm": Norm.LAYER, "norm_bias": True, "o_bias": False, "mlp_bias": False,
}  # fmt: skip
_VARIANTS: dict[str, tuple[object, ...]] = {
    "qk_layernorm": (False, None),  # a norm for each head by its index
    "rotary_scaling_factor": (1, None),
}
_READ = frozenset({
    "layer_norm_eps", "norm_eps", "use_qkv_bias", "use_parallel_residual", "rope_pct",
    "num_heads",
})  # fmt: skip


def _read(values: Values) -> ModelConfig:
    refuse(values, _VARIANTS)
    parallel = hf_flag(values, "use_parallel_residual")
    share = {"partial_rotary_factor": hf_number(values, "rope_pct", 0.25)}
    return read_hf(
        {**share, **values},
        _READ | _VARIANTS.keys(),
        rope={"positions": 4096, "partial": True},
        norm_eps=float(hf_number(values, "layer_norm_eps", values.get("norm_eps", 1e-5))),
        parallel=Parallel.ONE_NORM if parallel else Parallel.NONE,
        qkv_bias=hf_flag(values, "use_qkv_bias"),
        **_SHAPE,
    )


def _write(config: ModelConfig) -> dict[str, Any]:
    values = write_hf(config, "StableLmForCausalLM", "stablelm")
    for key in ("rms_norm_eps", "attention_bias", "mlp_bias", "head_dim"):
        del values[key]
    return {
        **values,
        # Where it is absent, a quarter is meant.
        "partial_rotary_factor": values.get("partial_rotary_factor", 1.0),
        "layer_norm_eps": config.norm_eps,
        "use_qkv_bias": config.qkv_bias,
        "use_parallel_residual": config.parallel is Parallel.ONE_NORM,
        "qk_layernorm": False,
    }


def _read_gguf(keys: Values, names: frozenset[str]) -> ModelConfig:
    if "blk.0.attn_q_norm.weight" in names:
        raise ModelFileError("has a norm for each head, which miudo does not compute")
    # The key use_parallel_residual is not always true to the model; llama.cpp goes by the norm.
    parallel = Parallel.NONE if "blk.0.ffn_norm.weight" in names else Parallel.ONE_NORM
    read = gguf_reader("stablelm", partial=True, parallel=parallel, **_SHAPE)
    return read({**keys, _RMS_EPS: keys[_EPS]}, names)


def _write_gguf(config: ModelConfig) -> dict[str, Any]:
    keys = gguf_writer("stablelm")(config)
    return {
        **{k: v for k, v in keys.items() if k != _RMS_EPS},
        _EPS: float(config.norm_eps),
        "stablelm.use_parallel_residual": config.parallel is Parallel.ONE_NORM,
    }


def _gguf_misfit(config: ModelConfig) -> str | None:
    if config.tie_embeddings:
        return "files of StableLM have a head of its own"
    layer = config.layers[0]
    if layer.n_heads * layer.head_dim != config.d_model:
        return "its heads do not add up to d_model"
    return scaling_misfit(config, RopeKind.LINEAR, RopeKind.YARN)


_NORMS_HF = {
    **both_parts(
        "model.layers.{i}.",
        {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"},
    ),
    **both_parts("model.", {"norm": "norm"}),
}
_NORMS_GGUF = {
    **both_parts("blk.{i}.", {"attn_norm": "attn_norm", "mlp_norm": "ffn_norm"}),
    **both_parts("", {"norm": "output_norm"}),
}

STABLELM = Family(
    name="stablelm",
    architectures=("StableLmForCausalLM", "StableLMEpochForCausalLM"),
    model_types=("stablelm", "stablelm_epoch"),
    hf_names=HF_NAMES | _NORMS_HF,
    config_from_hf=_read,
    config_to_hf=_write,
    hf_ignored=("rotary_emb.inv_freq",),
    gguf_architecture="stablelm",
    gguf_names=GGUF_NAMES | _NORMS_GGUF,
    gguf_keys=GGUF_ROPE | {"use_parallel_residual"},
    gguf_misfit=_gguf_misfit,
    config_from_gguf=_read_gguf,
    config_to_gguf=_write_gguf,
)
