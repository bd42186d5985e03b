"""The Engine protocol on the native core: C++ without PyTorch, the GIL released.

For: running models fast on a CPU, from any file that `miudo.formats` opens.
Not for: making models (`miudo.decoder`); text (`miudo.text`, `miudo.engine.generate`).
Read next: `native/core/miudo.h`, then `native/model/forward.cc`.

Shapes: T ids in one work item, L layers, D d_model, V vocab_size, H query heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from miudo.adapter import Adapter, base_fingerprint, check_adapter
from miudo.config import ModelConfig
from miudo.engine.native_door import (
    DTYPES,
    adapter_name,
    byte_array,
    call,
    config_values,
    empty,
    id_array,
    layer_values,
    load_native,
    mask_array,
    sampling_values,
)
from miudo.errors import RequestError
from miudo.formats.derived import drop_pages
from miudo.protocol import FloatArray, Scores, SeqWork, StepOut, Want
from miudo.tensors import Weights, check_weights, tensor_table

if TYPE_CHECKING:
    from miudo import _native

__all__ = ["DEFAULT_CACHE_BYTES", "NativeEngine", "RunnableModel"]

DEFAULT_CACHE_BYTES = 1 << 30
"""Budget for keys and values; memory is taken page by page, when conversations need it."""

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
    """Runs `model` on its weights in the types that they have; the file's bytes are not kept.

    `activations` says what blocks (Q8_0, Q4_0, Q4_K ...) are multiplied with: "int8" rounds
    activations in groups of 32 (scale amax / 127 in float16, half to even), "float" is the
    reference. F32, F16 and BF16 matrices always take floats.
    `context` is the longest text, see `ModelConfig.with_context`. Raises ConfigError for one
    beyond the model's, ModelFileError for tensors that do not fit the config, MissingError
    without the compiled module, ResourceError where memory or `cache_bytes` is too small.
    """

    def __init__(
        self,
        model: RunnableModel,
        *,
        threads: int | None = None,
        activations: Literal["int8", "float"] = "int8",
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        context: int | None = None,
    ) -> None:
        if activations not in ("int8", "float"):
            raise RequestError(f"activations is {activations!r}", remedy="Say int8 or float")
        if threads is not None and threads < 1:
            raise RequestError(f"threads is {threads}", remedy="Give at least 1, or None")
        if not 0 < cache_bytes < 1 << 63:
            raise RequestError(f"cache_bytes is {cache_bytes}", remedy="Give a number of bytes")
        native = load_native()
        config = self._config = model.config.with_context(context)
        self._work = native.Work
        check_weights(model.config, model.weights)
        int8 = activations == "int8"
        values, layers = config_values(config), layer_values(config)
        self._core: _native.Engine = call(
            native.Engine, values, layers, threads or 0, int8, cache_bytes
        )
        for spec in tensor_table(model.config):
            tensor = model.weights[spec.name]
            kind, data = DTYPES.index(tensor.dtype), byte_array(spec.name, tensor.data)
            call(self._core.set_tensor, spec.name, kind, list(tensor.shape), data)
            drop_pages(data)  # of one tensor at a time there are two copies in memory
        call(self._core.finalize)
        # Not before: it reads norms, whose sizes the core has checked.
        self._base = base_fingerprint(model.config, model.weights)

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
        return call(self._core.open)

    def close(self, conversation: int) -> None:
        """Frees a conversation's pages."""
        call(self._core.close, conversation)

    def length(self, conversation: int) -> int:
        """Returns how many positions the conversation holds."""
        return call(self._core.length, conversation)

    def truncate(self, conversation: int, length: int) -> None:
        """Forgets all positions from `length` on."""
        if not isinstance(length, int | np.integer) or length < 0:
            raise RequestError(f"length is {length!r:.50}")
        call(self._core.truncate, conversation, length)

    def add_adapter(self, name: str, adapter: Adapter) -> None:
        """Copies `adapter`, which works that name `name` then run beside the model.

        Raises RequestError for a name in use, ModelFileError for an adapter of another model.
        """
        check_adapter(self._config, adapter, base=self._base, where=f"adapter {name}")
        parts = [
            (matrix, _f32(part.down), _f32(part.up), part.scale)
            for matrix, part in adapter.parts.items()
        ]
        call(self._core.add_adapter, adapter_name(name), parts)

    def remove_adapter(self, name: str) -> None:
        """Forgets an adapter. Raises RequestError if it is unknown or a conversation has it."""
        call(self._core.remove_adapter, adapter_name(name))

    def step(self, batch: Sequence[SeqWork]) -> list[StepOut]:
        """Takes in every item's ids and returns what each wanted, in the batch's order.

        A batch that raises has changed no conversation; Ctrl-C is one such case.
        """
        prepared = [_Prepared(self, work) for work in batch]
        works = [self._work(*item.arguments) for item in prepared]
        drawn = call(self._core.step, works)
        return [item.out(*result) for item, result in zip(prepared, drawn, strict=True)]

    def score(self, ids: Sequence[int], *, top_k: int = 0, adapter: str | None = None) -> Scores:
        """Scores ids[1:] in chunks, in a conversation of its own."""
        if not 0 <= top_k <= self._config.vocab_size:
            raise RequestError(f"top_k is {top_k}, allowed 0 to {self._config.vocab_size}")
        given = id_array(self._config, ids)
        rows = max(len(given) - 1, 0)
        logprobs, total = np.empty(rows, np.float32), np.empty(rows, np.float32)
        argmax = np.empty(rows, np.int32)
        top_ids = np.empty((rows, top_k), np.int32)
        top = np.empty((rows, top_k), np.float32)
        name = None if adapter is None else adapter_name(adapter)
        call(self._core.score, given, logprobs, argmax, total, top_k, top_ids, top, name)
        if not top_k:
            return Scores(logprobs, argmax)
        return Scores(logprobs, argmax, top_ids, top, total)


class _Prepared:
    """One work item as the core wants it: with arrays for what comes back."""

    def __init__(self, engine: NativeEngine, work: SeqWork) -> None:
        config, want = engine.config, work.want
        self.work, ids = work, id_array(config, work.ids)
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
            self.logits = empty((t, v) if Want.ALL_LOGITS in want else (v,))
        if Want.HIDDEN in want:
            self.hidden = empty((config.n_layers + 1, t, d))
        if Want.ATTENTION in want:
            self.attention = tuple(empty((c.n_heads, t, keys)) for c in config.layers)
        sampled = Want.SAMPLE in want
        self.arguments = (
            work.conversation,
            ids,
            want.value,
            sampling_values(work.sampling, v) if sampled else _NO_SAMPLING,
            mask_array(config, work.mask) if sampled else None,
            self.logits,
            self.hidden,
            self.attention or (),
            None if work.adapter is None else adapter_name(work.adapter),
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


def _f32(array: FloatArray) -> FloatArray:
    return np.ascontiguousarray(array, dtype=np.float32)
