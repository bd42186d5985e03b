"""The Engine protocol on the native core: C++ without PyTorch, the GIL released.

For: running models fast on a CPU, from any file that `miudo.formats` opens.
Not for: making models (`miudo.decoder`); text (`miudo.text`, `miudo.engine.generate`).
Read next: `native/core/miudo.h`, then `native/model/forward.cc`.

Shapes: T ids in one work item, L layers, D d_model, V vocab_size, H query heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt

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
    state_array,
)
from miudo.errors import RequestError
from miudo.formats.derived import mapped_before
from miudo.protocol import FloatArray, Scores, SeqWork, StepOut, Want
from miudo.tensors import Weights, check_weights, tensor_table

if TYPE_CHECKING:
    from miudo import _native

__all__ = [
    "CACHE_TYPES",
    "DEFAULT_CACHE_BYTES",
    "PHASES",
    "CacheType",
    "NativeEngine",
    "RunnableModel",
]

CacheType = Literal["f32", "f16", "bf16", "int8", "int4"]

CACHE_TYPES: tuple[CacheType, ...] = ("f32", "f16", "bf16", "int8", "int4")
"""In the order of `miudo_cache_type`."""

DEFAULT_CACHE_BYTES = 1 << 30
"""Budget for keys and values; memory is taken page by page, when conversations need it."""

PHASES = (
    "entry", "norms", "qkv", "attention", "output", "feed-forward", "head", "sampling", "waiting",
)  # fmt: skip
"""Of a step, in the order of miudo.h, which says what each is."""

_MADE_BYTES = 4 << 20
_Tensor = tuple[str, int, tuple[int, ...], npt.NDArray[np.uint8], int]

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
    `cache` is the type that keys and values are rounded to: "f16" as a rule, "f32" with float
    activations, where the two are the reference; "int8" and "int4" in groups of 32, by the rules
    of `docs/engine.md`.
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
        cache: CacheType | None = None,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        context: int | None = None,
    ) -> None:
        if activations not in ("int8", "float"):
            raise RequestError(f"activations is {activations!r}", remedy="Say int8 or float")
        int8 = activations == "int8"
        cache = cache or ("f16" if int8 else "f32")
        if cache not in CACHE_TYPES:
            raise RequestError(f"cache is {cache!r}", remedy=f"Say one of {', '.join(CACHE_TYPES)}")
        if threads is not None and threads < 1:
            raise RequestError(f"threads is {threads}", remedy="Give at least 1, or None")
        if not 0 < cache_bytes < 1 << 63:
            raise RequestError(f"cache_bytes is {cache_bytes}", remedy="Give a number of bytes")
        native = load_native()
        config = self._config = model.config.with_context(context)
        self._work = native.Work
        check_weights(model.config, model.weights)
        self._cache: CacheType = cache
        values, layers = config_values(config), layer_values(config)
        self._core: _native.Engine = call(
            native.Engine,
            values,
            layers,
            threads or 0,
            int8,
            CACHE_TYPES.index(cache),
            cache_bytes,
        )
        for batch in _batches(model):
            call(self._core.set_tensors, batch)
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
    def cache(self) -> CacheType:
        """The type that keys and values are kept in."""
        return self._cache

    @property
    def cache_bytes_used(self) -> int:
        """Bytes of keys and values that conversations hold now; shared ones count once."""
        return self._core.cache_bytes_used

    @property
    def page_positions(self) -> int:
        """Positions of one conversation that a page of keys and values holds."""
        return self._core.page_positions

    @property
    def page_bytes(self) -> int:
        """Bytes that a page takes; `cache_bytes` holds as many as fit it whole."""
        return self._core.page_bytes

    def time_phases(self, wanted: bool) -> None:
        """Begins to sum the seconds of steps by phase, from none; False ceases, as at first."""
        call(self._core.time_phases, wanted)

    def phase_seconds(self) -> dict[str, float]:
        """Returns the seconds of each phase since `time_phases`, by the clock of the caller.

        What it waits for the other threads, in whatever phase, stands under "waiting".
        """
        return dict(zip(PHASES, call(self._core.phase_seconds), strict=True))

    def open(self) -> int:
        """Returns a new, empty conversation."""
        return call(self._core.open)

    def fork(self, conversation: int, length: int) -> int:
        """Returns a new conversation that shares another's first `length` positions."""
        return call(self._core.fork, conversation, self._length(length))

    def close(self, conversation: int) -> None:
        """Frees a conversation's pages."""
        call(self._core.close, conversation)

    def length(self, conversation: int) -> int:
        """Returns how many positions the conversation holds."""
        return call(self._core.length, conversation)

    def truncate(self, conversation: int, length: int) -> None:
        """Forgets all positions from `length` on."""
        call(self._core.truncate, conversation, self._length(length))

    def _length(self, length: int) -> int:
        """Returns a length that the core's door can take; it knows what is held."""
        whole = isinstance(length, int | np.integer)
        if not whole or not 0 <= length <= self._config.max_positions:
            raise RequestError(
                f"length is {length!r:.50}, the model has {self._config.max_positions}"
            )
        return length

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

    def unembed(self, hidden: FloatArray) -> FloatArray:
        """Returns logits [N, V] of states [N, D] after any layer; the last's have a step's bits."""
        states = state_array(self._config, hidden)
        logits = empty((len(states), self._config.vocab_size))
        call(self._core.unembed, states, logits)
        return logits


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
        sampled = Want.SAMPLE in want
        if want.value != Want.SAMPLE.value:  # the most frequent: the looks below take microseconds
            if Want.ALL_LOGITS in want or Want.LAST_LOGITS in want:
                self.logits = empty((t, v) if Want.ALL_LOGITS in want else (v,))
            if Want.HIDDEN in want:
                self.hidden = empty((config.n_layers + 1, t, d))
            if Want.ATTENTION in want:
                self.attention = tuple(empty((c.n_heads, t, keys)) for c in config.layers)
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
            _drafted(work, t),
        )

    def out(self, tokens: list[int], logprobs: list[float]) -> StepOut:
        return StepOut(
            conversation=self.work.conversation,
            tokens=tuple(tokens),
            logprobs=tuple(logprobs),
            logits=self.logits,
            hidden=self.hidden,
            attention=self.attention,
        )


def _drafted(work: SeqWork, n_ids: int) -> int:
    if not 0 <= work.n_drafted < n_ids:
        raise RequestError(f"{work.n_drafted} of {n_ids} ids are drafted")
    return work.n_drafted


def _batches(model: RunnableModel) -> Iterator[list[_Tensor]]:
    """All tensors, as many at a time as the core can take without much that is made for them.

    Of what is made there are two copies in memory; of mapped files the core lets the pages go.
    """
    batch: list[_Tensor] = []
    made = 0
    for spec in tensor_table(model.config):
        tensor = model.weights[spec.name]
        data = byte_array(spec.name, tensor.data)
        before = mapped_before(data)
        made += 0 if before else data.nbytes
        batch.append((spec.name, DTYPES.index(tensor.dtype), tensor.shape, data, before))
        if made > _MADE_BYTES:
            yield batch
            batch.clear()  # before the next is made
            made = 0
    yield batch


def _f32(array: FloatArray) -> FloatArray:
    return np.ascontiguousarray(array, dtype=np.float32)
