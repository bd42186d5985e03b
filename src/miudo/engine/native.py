"""The Engine protocol on the native core: C++ without PyTorch, the GIL released.

For: running models fast on a CPU, from any file that `miudo.formats` opens.
Not for: making models (`miudo.decoder`); text (`miudo.text`, `miudo.engine.generate`).
Read next: `native/core/miudo.h`, then `native/model/forward.cc`.

Shapes: T ids in one work item, L layers, D d_model, V vocab_size, H query heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from miudo.config import Activation, Mlp, ModelConfig, Norm, Position, QkNorm
from miudo.errors import MissingError, MiudoError, ModelFileError, RequestError, ResourceError
from miudo.protocol import FloatArray, SamplingSettings, Scores, SeqWork, StepOut, Want
from miudo.tensors import DType, Weights, check_weights, tensor_table

if TYPE_CHECKING:
    from miudo import _native

__all__ = ["DEFAULT_CACHE_BYTES", "NativeEngine", "RunnableModel"]

DEFAULT_CACHE_BYTES = 1 << 30
"""Budget for keys and values; memory is taken page by page, when conversations need it."""

_T = TypeVar("_T")
IntArray = npt.NDArray[np.int32]

# The orders below are those of the enums in native/core/miudo.h.
_DTYPES = (DType.F32, DType.F16, DType.BF16, DType.Q8_0)
_NORMS = (Norm.RMS, Norm.LAYER)
_POSITIONS = (Position.ROPE, Position.LEARNED)
_MLPS = (Mlp.GATED, Mlp.PLAIN)
_ACTIVATIONS = (Activation.SILU, Activation.GELU, Activation.GELU_TANH, Activation.RELU)
_QK_NORMS = (QkNorm.NONE, QkNorm.HEAD)
_ERRORS: dict[int, tuple[type[MiudoError], str | None]] = {
    1: (RequestError, None),
    2: (ModelFileError, "Config and weights must be of one model"),
    3: (ResourceError, "Free memory, or give the engine a larger cache_bytes"),
}
_NO_SAMPLING = (0.0, 0, 1.0, 0.0, 1.0, (), (), 0, 0)


class RunnableModel(Protocol):
    """What the engine needs of a model: `miudo.formats.model_file.ModelFile` has it."""

    @property
    def config(self) -> ModelConfig:
        """The sizes."""
        ...

    @property
    def weights(self) -> Weights:
        """Every tensor of the config."""
        ...


class NativeEngine:
    """Runs `model` on packed weights; the tensors' own bytes are not kept.

    `activations` says what Q8_0 matrices are multiplied with: "int8" rounds activations in
    groups of 32 (scale amax / 127, half to even), "float" is the reference. Raises
    ModelFileError for tensors that do not fit the config, MissingError without the compiled
    module, ResourceError where memory or `cache_bytes` is too small.
    """

    def __init__(
        self,
        model: RunnableModel,
        *,
        threads: int | None = None,
        activations: Literal["int8", "float"] = "int8",
        cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> None:
        if activations not in ("int8", "float"):
            raise RequestError(f"activations is {activations!r}", remedy="Say int8 or float")
        if threads is not None and threads < 1:
            raise RequestError(f"threads is {threads}", remedy="Give at least 1, or None")
        if not 0 < cache_bytes < 1 << 63:
            raise RequestError(f"cache_bytes is {cache_bytes}", remedy="Give a number of bytes")
        native = _load()
        self._config = model.config
        self._work = native.Work
        check_weights(model.config, model.weights)
        int8 = activations == "int8"
        values, layers = _config_values(model.config), _layer_values(model.config)
        self._core: _native.Engine = _call(
            native.Engine, values, layers, threads or 0, int8, cache_bytes
        )
        for spec in tensor_table(model.config):
            tensor = model.weights[spec.name]
            kind, data = _DTYPES.index(tensor.dtype), np.ascontiguousarray(tensor.data)
            _call(self._core.set_tensor, spec.name, kind, list(tensor.shape), data)
        _call(self._core.finalize)

    @property
    def config(self) -> ModelConfig:
        """The model that runs."""
        return self._config

    @property
    def isa(self) -> str:
        """The instruction set in use; MIUDO_ISA=portable forces the plain one."""
        return self._core.isa

    @property
    def threads(self) -> int:
        """Threads that compute, the caller's included."""
        return self._core.threads

    @property
    def weight_bytes(self) -> int:
        """Bytes that the packed weights take."""
        return self._core.weight_bytes

    @property
    def cache_bytes_used(self) -> int:
        """Bytes of keys and values that conversations hold now."""
        return self._core.cache_bytes_used

    def open(self) -> int:
        """Returns a new, empty conversation."""
        return _call(self._core.open)

    def close(self, conversation: int) -> None:
        """Frees a conversation's pages."""
        _call(self._core.close, conversation)

    def length(self, conversation: int) -> int:
        """Returns how many positions the conversation holds."""
        return _call(self._core.length, conversation)

    def truncate(self, conversation: int, length: int) -> None:
        """Forgets all positions from `length` on."""
        if length < 0:
            raise RequestError(f"length is {length}")
        _call(self._core.truncate, conversation, length)

    def step(self, batch: Sequence[SeqWork]) -> list[StepOut]:
        """Takes in every item's ids and returns what each wanted, in the batch's order.

        A batch that raises has changed no conversation; Ctrl-C is one such case.
        """
        prepared = [_Prepared(self, work) for work in batch]
        works = [self._work(*item.arguments) for item in prepared]
        drawn = _call(self._core.step, works)
        return [item.out(*result) for item, result in zip(prepared, drawn, strict=True)]

    def score(self, ids: Sequence[int], *, top_k: int = 0) -> Scores:
        """Scores ids[1:] in chunks, in a conversation of its own."""
        if not 0 <= top_k <= self._config.vocab_size:
            raise RequestError(f"top_k is {top_k}, allowed 0 to {self._config.vocab_size}")
        given = _ids(self._config, ids)
        rows = max(len(given) - 1, 0)
        logprobs, total = np.empty(rows, np.float32), np.empty(rows, np.float32)
        argmax = np.empty(rows, np.int32)
        top_ids = np.empty((rows, top_k), np.int32)
        top = np.empty((rows, top_k), np.float32)
        _call(self._core.score, given, logprobs, argmax, total, top_k, top_ids, top)
        if not top_k:
            return Scores(logprobs, argmax)
        return Scores(logprobs, argmax, top_ids, top, total)


class _Prepared:
    """One work item as the core wants it: with arrays for what comes back."""

    def __init__(self, engine: NativeEngine, work: SeqWork) -> None:
        config, want = engine.config, work.want
        if work.adapter is not None:
            raise RequestError(f"no adapter named {work.adapter!r} was given to this engine")
        self.work, ids = work, _ids(config, work.ids)
        t, v, d = len(ids), config.vocab_size, config.d_model
        self.logits: FloatArray | None = None
        self.hidden: FloatArray | None = None
        self.attention: tuple[FloatArray, ...] | None = None
        # Before large arrays are made: a refused item must not cost their memory.
        keys = engine.length(work.conversation) + t
        if keys > config.max_positions:
            raise RequestError(
                f"{keys} positions, the model has {config.max_positions}",
                remedy="Shorten the prompt or start a new conversation",
            )
        if Want.ALL_LOGITS in want or Want.LAST_LOGITS in want:
            self.logits = _empty((t, v) if Want.ALL_LOGITS in want else (v,))
        if Want.HIDDEN in want:
            self.hidden = _empty((config.n_layers + 1, t, d))
        if Want.ATTENTION in want:
            self.attention = tuple(_empty((c.n_heads, t, keys)) for c in config.layers)
        sampled = Want.SAMPLE in want
        self.arguments = (
            work.conversation,
            ids,
            want.value,
            _sampling(work.sampling, v) if sampled else _NO_SAMPLING,
            _mask(config, work) if sampled else None,
            self.logits,
            self.hidden,
            self.attention or (),
        )

    def out(self, token: int, logprob: float) -> StepOut:
        sampled = Want.SAMPLE in self.work.want
        return StepOut(
            conversation=self.work.conversation,
            token=token if sampled else None,
            logprob=logprob if sampled else None,
            logits=self.logits,
            hidden=self.hidden,
            attention=self.attention,
        )


def _load() -> Any:
    try:
        from miudo import _native
    except ImportError as error:
        raise MissingError(
            f"the compiled engine is missing ({error})",
            where="miudo._native",
            remedy="Install miudo with pip, or run scripts/build_native.sh in a checkout",
        ) from error
    return _native


def _call(function: Callable[..., _T], *arguments: object) -> _T:
    """Calls into the core; its status becomes the error of the same meaning."""
    try:
        return function(*arguments)
    except MemoryError as error:
        raise ResourceError("too little memory", remedy="Free some, or ask for less") from error
    except OverflowError as error:
        raise RequestError(f"a number is out of range ({error})") from error
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


def _ids(config: ModelConfig, ids: Sequence[int]) -> IntArray:
    try:
        wide = np.asarray(ids, dtype=np.int64).reshape(-1)
    except (OverflowError, TypeError, ValueError) as error:
        raise RequestError(f"ids are no whole numbers ({error})") from error
    if not wide.size:
        raise RequestError("no ids to take in", remedy="Give at least one id")
    wrong = wide[(wide < 0) | (wide >= config.vocab_size)]
    if wrong.size:
        raise RequestError(f"id {wrong[0]} is outside the vocabulary of {config.vocab_size}")
    return wide.astype(np.int32)


def _mask(config: ModelConfig, work: SeqWork) -> npt.NDArray[np.bool_] | None:
    if work.mask is None:
        return None
    mask = np.ascontiguousarray(work.mask, dtype=np.bool_)
    if mask.shape != (config.vocab_size,):
        raise RequestError(f"mask is {list(mask.shape)}, not [{config.vocab_size}]")
    return mask


def _empty(shape: tuple[int, ...]) -> FloatArray:
    try:
        return np.empty(shape, dtype=np.float32)
    except (MemoryError, ValueError) as error:
        raise ResourceError(
            f"no memory for an array of {list(shape)}", remedy="Take in fewer ids at once"
        ) from error


def _sampling(s: SamplingSettings, vocab_size: int) -> tuple[object, ...]:
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


def _config_values(config: ModelConfig) -> dict[str, int | float]:
    return {
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "max_positions": config.max_positions,
        "norm": _NORMS.index(config.norm),
        "position": _POSITIONS.index(config.position),
        "mlp": _MLPS.index(config.mlp),
        "activation": _ACTIVATIONS.index(config.activation),
        "qk_norm": _QK_NORMS.index(config.qk_norm),
        "norm_bias": int(config.norm_bias),
        "qkv_bias": int(config.qkv_bias),
        "o_bias": int(config.o_bias),
        "mlp_bias": int(config.mlp_bias),
        "tie_embeddings": int(config.tie_embeddings),
        "norm_eps": config.norm_eps,
    }


def _layer_values(config: ModelConfig) -> list[tuple[int, int, int, int, int, int, bool, float]]:
    return [
        (
            c.n_heads,
            c.n_kv_heads,
            c.head_dim,
            c.v_head_dim,
            c.d_ff,
            c.window or 0,
            c.rotary,
            c.rope_theta,
        )
        for c in config.layers
    ]
