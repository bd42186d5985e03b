"""Gemma 2 and 3: norms on both sides of a sublayer, windows, capped scores and logits.

For: `Gemma2ForCausalLM`, `Gemma3ForCausalLM` folders (Gemma 3 270M and 1B, which read text) and
GGUF "gemma2", "gemma3" (Gemma Team 2024, 2025).
Not for: Gemma 3 from 4B on, wrapped with an image reader; refused by architecture.
Read next: `miudo.families.llama`, whose readers these use.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from miudo.config import Activation, Block, ModelConfig, QkNorm
from miudo.config.parts import in_range
from miudo.errors import ModelFileError
from miudo.families.family import (
    Family,
    Values,
    activation_name,
    hf_activation,
    hf_flag,
    hf_number,
    plain_float,
    refuse,
)
from miudo.families.llama import (
    GGUF_NAMES,
    HF_NAMES,
    gguf_reader,
    gguf_writer,
    hf_misfit,
    read_hf,
    write_hf,
)
from miudo.families.places import Layout
from miudo.limits import LIMITS

__all__ = ["GEMMA2", "GEMMA3"]

_FULL, _SLIDING = "full_attention", "sliding_attention"
_NORMS = {
    "attn_norm": "input_layernorm", "attn_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm", "mlp_post_norm": "post_feedforward_layernorm",
}  # fmt: skip
_HEAD_NORMS = {f"attn.{x}_norm": f"self_attn.{x}_norm" for x in "qk"}
_NORMS_GGUF = {
    "attn_norm": "attn_norm", "attn_post_norm": "post_attention_norm", "mlp_norm": "ffn_norm",
    "mlp_post_norm": "post_ffw_norm",
}  # fmt: skip
_READ = frozenset({
    "layer_types", "sliding_window", "sliding_window_pattern", "_sliding_window_pattern",
    "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping",
    "hidden_activation", "cache_implementation",
})  # fmt: skip
# Read here, not with Llama's keys; the legacy hidden_act says "gelu" and means nothing.
_OTHERWISE = ("rope_parameters", "rope_scaling", "rope_local_base_freq", "hidden_act")
_TANH = "gelu_pytorch_tanh"
_VARIANTS: dict[str, tuple[object, ...]] = {"use_bidirectional_attention": (False, None)}
_KEYS = frozenset({
    "attention.sliding_window", "attention.sliding_window_pattern", "attn_logit_softcapping",
    "final_logit_softcapping", "rope.freq_base_swa",
})  # fmt: skip
# The depth of the largest model of each, which alone scales scores by the width of a head's
# share of d_model: other programs know it by its depth.
_LARGEST = {"gemma2": 46, "gemma3": 62}


@dataclasses.dataclass(frozen=True, slots=True)
class _Class:
    """What differs between the two, and what is meant where a file is silent."""

    architecture: str
    model_type: str
    gguf: str
    period: int
    theta: float
    caps: tuple[float | None, float | None]
    positions: int
    qk_norm: QkNorm


_TWO = _Class("Gemma2ForCausalLM", "gemma2", "gemma2", 2, 1e4, (50.0, 30.0), 8192, QkNorm.NONE)
_THREE = _Class(
    "Gemma3ForCausalLM", "gemma3_text", "gemma3", 6, 1e6, (None, None), 131072, QkNorm.HEAD
)
_LOCAL_THETA = 1e4


def _limited(
    config: ModelConfig, sliding: list[bool], window: Any, local_theta: float
) -> ModelConfig:
    """`config` with the window and the rotation of sliding layers where they are."""
    layers = tuple(
        dataclasses.replace(layer, window=window, rope_theta=local_theta) if near else layer
        for layer, near in zip(config.layers, sliding, strict=True)
    )
    return dataclasses.replace(config, layers=layers)


def _pattern(n_layers: int, period: int) -> list[bool]:
    """All but the last layer of each `period` slide."""
    return [i % period < period - 1 for i in range(n_layers)]


def _shape(which: _Class, d_model: int, head_dim: int, scalar: float) -> dict[str, Any]:
    return {
        "block": Block.SANDWICH,
        "qk_norm": which.qk_norm,
        "mlp_bias": False,
        "embed_scale": d_model**0.5,
        "attn_scale": None if scalar == head_dim else scalar**-0.5,
    }


def _read(values: Values, which: _Class) -> ModelConfig:
    refuse(values, _VARIANTS)
    d_model, head_dim = hf_number(values, "hidden_size"), hf_number(values, "head_dim", 256)
    scalar = hf_number(values, "query_pre_attn_scalar", 256)
    if scalar <= 0:
        raise ModelFileError(f"query_pre_attn_scalar is {scalar!r:.20}", where="config.json")
    full, near = _thetas(values, which)
    named = {**values, "hidden_activation": values.get("hidden_activation") or _TANH}
    config = read_hf(
        {k: v for k, v in values.items() if k not in _OTHERWISE} | {"rope_theta": full},
        _READ | _VARIANTS.keys(),
        rope={"positions": which.positions},
        norm_eps=float(hf_number(values, "rms_norm_eps", 1e-6)),
        activation=hf_activation(named, "hidden_activation", _TANH),
        n_kv_heads=hf_number(values, "num_key_value_heads", 4),
        attn_softcap=_cap(values, "attn_logit_softcapping", which.caps[0]),
        logit_softcap=_cap(values, "final_logit_softcapping", which.caps[1]),
        tie_embeddings=hf_flag(values, "tie_word_embeddings", default=True),
        head_dim=head_dim,
        **_shape(which, d_model, head_dim, scalar),
    )
    sliding = _sliding(values, which, config.n_layers)
    return _limited(config, sliding, hf_number(values, "sliding_window", 4096), near)


def _cap(values: Values, key: str, default: float | None) -> float | None:
    """A cap that is null is none, one that is absent the default."""
    cap = values.get(key, default)
    return None if cap is None else float(hf_number(values, key, default))


def _thetas(values: Values, which: _Class) -> tuple[float, float]:
    """Bases of full and of sliding layers, by the old keys or the new, nested for Gemma 3."""
    new = values.get("rope_parameters") or {}
    if not isinstance(new, dict):
        raise ModelFileError("rope_parameters is no object", where="config.json")
    nested = {key: new.get(key) or {} for key in (_FULL, _SLIDING)} if which is _THREE else {}
    for stated in (values.get("rope_scaling") or {}, *(nested.values() or [new])):
        kind = stated.get("rope_type", stated.get("type")) if isinstance(stated, dict) else stated
        if kind not in (None, "default"):
            raise ModelFileError(
                f"the rotation is stretched ({kind!r:.40}), which miudo does not compute for Gemma",
                where="config.json: rope_scaling",
            )
    old = values.get("rope_theta")
    if which is _TWO:
        theta = float(hf_number({"rope_theta": new.get("rope_theta", old)}, "rope_theta", 1e4))
        return theta, theta
    full = {"rope_theta": nested[_FULL].get("rope_theta", old)}
    near = {"rope_theta": nested[_SLIDING].get("rope_theta", values.get("rope_local_base_freq"))}
    return (
        float(hf_number(full, "rope_theta", which.theta)),
        float(hf_number(near, "rope_theta", _LOCAL_THETA)),
    )


def _sliding(values: Values, which: _Class, n_layers: int) -> list[bool]:
    types = values.get("layer_types")
    if types is None:
        period = values.get("sliding_window_pattern", values.get("_sliding_window_pattern"))
        period = int(hf_number({"period": period}, "period", which.period))
        return _pattern(n_layers, max(period, 1))
    known = isinstance(types, list) and all(t in (_FULL, _SLIDING) for t in types)
    if not known or len(types) != n_layers:
        raise ModelFileError(
            f"layer_types {types!r:.200} do not fit {n_layers} layers", where="config.json"
        )
    return [t == _SLIDING for t in types]


def _write(config: ModelConfig, which: _Class) -> dict[str, Any]:
    full, near = _two(config)
    head_dim = config.layers[0].head_dim
    scalar = head_dim if config.attn_scale is None else config.attn_scale**-2
    values = write_hf(config, which.architecture, which.model_type)
    for key in ("mlp_bias", "hidden_act"):
        del values[key]
    plain: Mapping[str, Any] = {"rope_type": "default", "rope_theta": full}
    nested = {_FULL: plain, _SLIDING: {**plain, "rope_theta": near}}
    return {
        **values,
        "hidden_activation": activation_name(config.activation),
        # Whole in all published files, and its root is not exact.
        "query_pre_attn_scalar": round(scalar) if abs(scalar - round(scalar)) < 1e-9 else scalar,
        "attn_logit_softcapping": config.attn_softcap,
        "final_logit_softcapping": config.logit_softcap,
        "sliding_window": next((x.window for x in config.layers if x.window is not None), 4096),
        "layer_types": [_FULL if x.window is None else _SLIDING for x in config.layers],
        "rope_theta": full,
        "rope_parameters": plain if which is _TWO else nested,
        **({} if which is _TWO else {"rope_local_base_freq": near}),
    }


def _two(config: ModelConfig) -> tuple[float, float]:
    """Bases of full and of sliding layers."""
    full = [x.rope_theta for x in config.layers if x.window is None]
    near = [x.rope_theta for x in config.layers if x.window is not None]
    return (full or near)[0], (near or full)[0]


def _gguf_reader(which: _Class) -> Callable[[Values, frozenset[str]], ModelConfig]:
    at = which.gguf + "."

    def read(keys: Values, names: frozenset[str]) -> ModelConfig:
        d_model, heads = keys[at + "embedding_length"], keys[at + "attention.head_count"]
        head_dim, layers = keys[at + "attention.key_length"], keys[at + "block_count"]
        in_range(at + "block_count", layers, 1, LIMITS.n_layers)
        scalar = d_model // heads if layers == _LARGEST[which.gguf] else head_dim
        attn, final = (
            keys.get(f"{at}{kind}_logit_softcapping", default)
            for kind, default in zip(("attn", "final"), which.caps, strict=True)
        )
        config = gguf_reader(
            which.gguf,
            activation=Activation.GELU_TANH,
            attn_softcap=None if attn is None else plain_float(attn),
            logit_softcap=None if final is None else plain_float(final),
            **_shape(which, d_model, head_dim, scalar),
            qkv_bias=False,
            o_bias=False,
        )(keys, names)
        base = config.layers[0].rope_theta
        near = keys.get(at + "rope.freq_base_swa", base if which is _TWO else _LOCAL_THETA)
        # Without a window Gemma 2 has the class's, and Gemma 3 none.
        window = keys.get(at + "attention.sliding_window", 4096 if which is _TWO else 0)
        pattern = keys.get(at + "attention.sliding_window_pattern", which.period)
        sliding = pattern if isinstance(pattern, list) else _pattern(layers, pattern)
        return _limited(config, sliding, window, plain_float(near)) if window else config

    return read


def _gguf_writer(which: _Class) -> Callable[[ModelConfig], dict[str, Any]]:
    at = which.gguf + "."

    def write(config: ModelConfig) -> dict[str, Any]:
        full, near = _two(config)
        window = next((x.window for x in config.layers if x.window is not None), None)
        keys = gguf_writer(which.gguf)(config) | {at + "rope.freq_base": float(full)}
        if window is not None:
            keys[at + "attention.sliding_window"] = window
        if which is _THREE:
            return keys | {at + "rope.freq_base_swa": float(near)}
        caps = {"attn": config.attn_softcap, "final": config.logit_softcap}
        return keys | {f"{at}{k}_logit_softcapping": float(v) for k, v in caps.items() if v}

    return write


def _family(which: _Class) -> Family:
    norms = _NORMS | (_HEAD_NORMS if which is _THREE else {})
    places = _NORMS_GGUF | {f"attn.{x}_norm": f"attn_{x}_norm" for x in "qk"}
    plain = {k: v for k, v in GGUF_NAMES.items() if k != "head.weight"}  # others know none here
    return Family(
        name=which.gguf,
        architectures=(which.architecture,),
        model_types=(which.model_type,),
        hf_names=HF_NAMES
        | {f"{ours}.weight": f"model.layers.{{i}}.{v}.weight" for ours, v in norms.items()},
        config_from_hf=lambda values: _read(values, which),
        config_to_hf=lambda config: _write(config, which),
        hf_misfit=hf_misfit,
        hf_layout=Layout(shifted=frozenset(f"{name}.weight" for name in (*norms, "norm"))),
        hf_ignored=("rotary_emb.inv_freq",),
        gguf_architecture=which.gguf,
        gguf_names=plain | {f"{x}.weight": f"blk.{{i}}.{places[x]}.weight" for x in norms},
        gguf_keys=_KEYS,
        config_from_gguf=_gguf_reader(which),
        config_to_gguf=_gguf_writer(which),
    )


GEMMA2, GEMMA3 = _family(_TWO), _family(_THREE)
