"""What passes through the native core's door: values in, errors back.

For: turning configs, ids, masks and settings into what `miudo._native` takes, and its statuses
into the exceptions of `miudo.errors`.
Not for: the engine itself. Read next: `miudo.engine.native`, `native/core/miudo.h`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from miudo.config import (
    Activation,
    Block,
    LatentAttention,
    Mlp,
    ModelConfig,
    Norm,
    Parallel,
    Position,
    QkNorm,
)
from miudo.errors import MissingError, MiudoError, ModelFileError, RequestError, ResourceError
from miudo.positional import alibi_slopes, attention_factor, frequencies
from miudo.protocol import FloatArray, SamplingSettings
from miudo.tensors import DType

__all__ = [
    "DTYPES",
    "adapter_name",
    "byte_array",
    "call",
    "config_values",
    "empty",
    "id_array",
    "layer_values",
    "load_native",
    "mask_array",
    "sampling_values",
    "state_array",
]

_T = TypeVar("_T")
_IntArray = npt.NDArray[np.int32]
_LayerValues = tuple[int, int, int, int, int, int, tuple[float, ...], tuple[float, ...]]

# The orders below are those of the enums in native/core/miudo.h.
DTYPES = tuple(DType)
_NORMS = (Norm.RMS, Norm.LAYER)
_BLOCKS = (Block.PRE, Block.POST, Block.SANDWICH)
_PARALLELS = (Parallel.NONE, Parallel.TWO_NORMS, Parallel.ONE_NORM)
_MLPS = (Mlp.GATED, Mlp.PLAIN)
_ACTIVATIONS = (Activation.SILU, Activation.GELU, Activation.GELU_TANH, Activation.RELU)
_QK_NORMS = (QkNorm.NONE, QkNorm.HEAD, QkNorm.FULL)
_ERRORS: dict[int, tuple[type[MiudoError], str | None]] = {
    1: (RequestError, None),
    2: (ModelFileError, "Config and weights must be of one model"),
    3: (ResourceError, "Free memory, or give the engine a larger cache_bytes"),
}


def load_native() -> Any:
    """Returns `miudo._native`. Raises MissingError where it was not built."""
    try:
        from miudo import _native
    except ImportError as error:
        raise MissingError(
            f"the compiled engine is missing ({error})",
            where="miudo._native",
            remedy="Install miudo with pip, or run scripts/build_native.sh in a checkout",
        ) from error
    return _native


def call(function: Callable[..., _T], *arguments: object) -> _T:
    """Calls into the core; its status becomes the error of the same meaning."""
    try:
        return function(*arguments)
    except MemoryError as error:
        raise ResourceError("too little memory", remedy="Free some, or ask for less") from error
    except OverflowError as error:
        raise RequestError(f"a number is out of range ({error})") from error
    except TypeError as error:  # the module lists what it would take, in C++
        said = str(error).partition(":")[0]
        raise RequestError(f"{said}: an argument of the wrong type") from error
    except RuntimeError as error:
        _raise(error)


def _raise(error: RuntimeError) -> NoReturn:
    if type(error).__name__ != "NativeError":
        raise error
    status, message = error.args
    if status not in _ERRORS:
        raise error
    kind, remedy = _ERRORS[status]
    raise kind(message, remedy=remedy) from None


def id_array(config: ModelConfig, ids: Sequence[int]) -> _IntArray:
    """Returns `ids` [T], copied. Raises RequestError for none, or one outside the vocabulary."""
    if type(ids) in (list, tuple) and len(ids) == 1:  # nearly every step, and sooner done
        token = ids[0]
        if type(token) is int and 0 <= token < config.vocab_size:
            return np.array([token], np.int32)
    try:
        given = np.asarray(ids)
        if given.size and not np.issubdtype(given.dtype, np.integer):
            raise TypeError(f"{given.dtype} given")
    except (OverflowError, TypeError, ValueError) as error:
        raise RequestError(f"ids are no whole numbers ({error})") from error
    if given.ndim != 1:
        raise RequestError(f"ids have {given.ndim} axes", remedy="Give one list of numbers")
    if not given.size:
        raise RequestError("no ids to take in", remedy="Give at least one id")
    wrong = given[(given < 0) | (given >= config.vocab_size)]
    if wrong.size:
        raise RequestError(f"id {wrong[0]} is outside the vocabulary of {config.vocab_size}")
    # A copy: another thread may write to the caller's while the engine reads.
    return given.astype(np.int32)


def byte_array(name: str, data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Returns a tensor's bytes, contiguous. Raises ModelFileError for an array of another kind."""
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 1:
        kind = f"{data.dtype} {list(data.shape)}" if isinstance(data, np.ndarray) else type(data)
        raise ModelFileError(
            f"tensor {name} is {kind}, not a flat array of bytes",
            remedy="StoredTensor.from_f32 makes one of numbers",
        )
    return np.ascontiguousarray(data)


def adapter_name(name: str) -> str:
    """Returns `name`. Raises RequestError for what no adapter can be called."""
    if not isinstance(name, str) or not name or not name.isprintable() or len(name) > 200:
        raise RequestError(
            f"{name!r:.100} cannot be an adapter's name", remedy="Use 1 to 200 printable characters"
        )
    return name


def mask_array(
    config: ModelConfig, mask: npt.NDArray[np.bool_] | None
) -> npt.NDArray[np.bool_] | None:
    """Returns the mask [V], contiguous. Raises RequestError for another shape or type."""
    if mask is None:
        return None
    try:
        given = np.asarray(mask)
    except ValueError as error:
        raise RequestError(f"mask is no array ({error})") from error
    if given.dtype != np.bool_ or given.shape != (config.vocab_size,):
        raise RequestError(
            f"mask is {given.dtype} {list(given.shape)}, not bool [{config.vocab_size}]"
        )
    return np.ascontiguousarray(given)


def empty(shape: tuple[int, ...]) -> FloatArray:
    """Returns space for a result. Raises ResourceError where memory is too small."""
    try:
        return np.empty(shape, dtype=np.float32)
    except (MemoryError, ValueError) as error:
        raise ResourceError(
            f"no memory for an array of {list(shape)}", remedy="Take in fewer ids at once"
        ) from error


def state_array(config: ModelConfig, hidden: FloatArray) -> FloatArray:
    """Returns states [N, D], contiguous. Raises RequestError for another shape or type."""
    if not isinstance(hidden, np.ndarray) or hidden.dtype != np.float32 or hidden.ndim != 2:
        raise RequestError(
            "hidden is no float32 array [N, D]", remedy="Give rows of StepOut.hidden"
        )
    if hidden.shape[1] != config.d_model:
        raise RequestError(f"hidden has {hidden.shape[1]} columns, the model {config.d_model}")
    return np.ascontiguousarray(hidden)


def sampling_values(s: SamplingSettings, vocab_size: int) -> tuple[object, ...]:
    """Returns settings in the order of miudo_sampling; biases of unknown ids mean nothing."""
    known = [(token, bias) for token, bias in s.logit_bias if token < vocab_size]
    bias_ids, biases = [token for token, _ in known], [bias for _, bias in known]
    return (
        s.temperature,
        s.top_k,
        s.top_p,
        s.min_p,
        s.repetition_penalty,
        bias_ids,
        biases,
        s.seed,
        s.request,
    )


def config_values(config: ModelConfig) -> dict[str, int | float]:
    """Returns the config as numbers, enums by their place in miudo.h, 0 for what is None."""
    latent = config.latent or LatentAttention(kv_rank=0, rope_dim=0)
    return {
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "max_positions": config.max_positions,
        "norm": _NORMS.index(config.norm),
        "block": _BLOCKS.index(config.block),
        "parallel": _PARALLELS.index(config.parallel),
        "mlp": _MLPS.index(config.mlp),
        "activation": _ACTIVATIONS.index(config.activation),
        "qk_norm": _QK_NORMS.index(config.qk_norm),
        "norm_weight": int(config.norm_weight),
        "norm_bias": int(config.norm_bias),
        "embed_norm": int(config.embed_norm),
        "learned_positions": int(config.position is Position.LEARNED),
        "qkv_bias": int(config.qkv_bias),
        "o_bias": int(config.o_bias),
        "mlp_bias": int(config.mlp_bias),
        "tie_embeddings": int(config.tie_embeddings),
        "norm_eps": config.norm_eps,
        "attention_factor": attention_factor(config),
        "embed_scale": config.embed_scale,
        "residual_scale": config.residual_scale,
        "logit_scale": config.logit_scale,
        "attn_scale": config.attn_scale or 0.0,
        "attn_softcap": config.attn_softcap or 0.0,
        "logit_softcap": config.logit_softcap or 0.0,
        "latent.q_rank": latent.q_rank or 0,
        "latent.kv_rank": latent.kv_rank,
        "latent.rope_dim": latent.rope_dim,
        "latent.norm_eps": latent.norm_eps,
    }


def layer_values(config: ModelConfig) -> list[_LayerValues]:
    """Returns one tuple a layer, in the order of miudo_layer."""
    return [
        (
            c.n_heads,
            c.n_kv_heads,
            c.head_dim,
            c.v_head_dim,
            c.d_ff,
            c.window or 0,
            frequencies(config, c) if c.rotary else (),
            alibi_slopes(c.n_heads) if config.position is Position.ALIBI else (),
        )
        for c in config.layers
    ]
