"""A model at a path, ready to be asked: engine and tokenizer together.

For: evaluation, the command line and the server, which get a path and need both.
Not for: finding the path (`miudo.hub`) or reading files (`miudo.formats`).
Read next: `miudo.engine.native`, `miudo.decoder.torch_engine`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Generic, Literal, Self, TypeVar

from miudo.adapter import AdaptableEngine, base_fingerprint, check_adapter
from miudo.config import ModelConfig
from miudo.errors import TokenizerError, UsageError
from miudo.formats import ModelFile, open_model
from miudo.formats.precision import held_as
from miudo.protocol import Engine
from miudo.tensors import DType, Weights
from miudo.text.tokenizer import TextTokenizer
from miudo.text.tokenizer_json import TokenizerSpec

if TYPE_CHECKING:
    from miudo.engine.native import CacheType

__all__ = [
    "Activations",
    "EngineKind",
    "LoadedModel",
    "load_model",
    "tokenizer_spec",
    "with_adapter",
]

EngineKind = Literal["native", "torch"]
Activations = Literal["int8", "float"]

_ADAPTER = "adapter"
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What was read from `path`, an engine that runs it, and its tokenizer.

    `adapter` names the one that the engine was given, for `SeqWork`.
    """

    path: Path
    model: ModelFile
    engine: Engine
    tokenizer: TextTokenizer
    adapter: str | None = None


def load_model(  # noqa: PLR0913 - one path, and how it is to run; each has a default
    path: Path,
    *,
    engine: EngineKind = "native",
    threads: int | None = None,
    activations: Activations = "int8",
    adapter: Path | None = None,
    context: int | None = None,
    dtype: DType | None = None,
    cache_bytes: int | None = None,
    cache: CacheType | None = None,
) -> LoadedModel:
    """Returns the model at `path` on the native engine, or on PyTorch as its twin.

    With `dtype` matrices are held as that type, as a GGUF file of it would hold them.
    `cache_bytes` bounds the native engine's keys and values, `cache` is the type they are kept in.
    Texts of `context` tokens must fit, see `ModelConfig.with_context`, and of fewer. Raises
    ConfigError for one beyond the model's, TokenizerError for a model without a tokenizer,
    ModelFileError for a damaged one, or an `adapter` that was made for another model or
    tokenizer.
    """
    tensors: list[_Tensors] = []

    def build() -> AdaptableEngine:
        return _engine(tensors[0], engine, context, _Run(threads, activations, cache_bytes, cache))

    with _Beside[AdaptableEngine]() as beside:

        def start(config: ModelConfig, weights: Weights) -> None:
            held = weights if dtype is None else held_as(config, weights, dtype)
            tensors.append(_Tensors(config, held))
            if engine == "native":  # PyTorch counts its threads by the thread that it is made on
                beside.start(build)

        model = replace(open_model(path, ready=start), weights=tensors[0].weights)
        tokenizer = TextTokenizer(tokenizer_spec(model, path))
        running = beside.result() if engine == "native" else build()
    loaded = LoadedModel(path, model, running, tokenizer)
    return loaded if adapter is None else with_adapter(loaded, adapter)


def with_adapter(loaded: LoadedModel, path: Path, name: str = _ADAPTER) -> LoadedModel:
    """Returns the model with the adapter at `path`, which the same engine runs as `name`.

    Raises ModelFileError for one of another model or tokenizer, RequestError for a name in use.
    """
    from miudo.formats.adapter import adapter_template, open_adapter

    model, engine = loaded.model, loaded.engine
    if not isinstance(engine, AdaptableEngine):
        raise UsageError("runs on an engine without adapters", where=loaded.path)
    adapter = open_adapter(path, model.config)
    base = base_fingerprint(model.config, model.weights)
    tokenizer = loaded.tokenizer.fingerprint
    check_adapter(model.config, adapter, base=base, tokenizer=tokenizer, where=path)
    engine.add_adapter(name, adapter)
    if template := adapter_template(path):
        model = replace(model, chat_template=template)
    return replace(loaded, model=model, adapter=name)


@dataclass(frozen=True, slots=True)
class _Tensors:
    """What an engine needs of a model."""

    config: ModelConfig
    weights: Weights


@dataclass(frozen=True, slots=True)
class _Run:
    """How an engine runs what it is given."""

    threads: int | None
    activations: Activations
    cache_bytes: int | None
    cache: CacheType | None


def tokenizer_spec(model: ModelFile, path: Path) -> TokenizerSpec:
    """Returns what the tokenizer of the model at `path` is built from.

    Raises TokenizerError for a model without one.
    """
    if model.tokenizer is not None:
        return model.tokenizer
    if path.is_dir():
        cure = "Put its tokenizer.json into the folder"
    else:  # nothing beside a .gguf is read
        cure = "Open the model's folder, with its tokenizer.json, or `miudo export` that"
    raise TokenizerError("the model has no tokenizer that miudo reads", where=path, remedy=cure)


class _Beside(Generic[_T]):
    """Work on a thread of its own. `with` waits for it, whatever happens inside.

    The engine packs weights without the GIL: meanwhile the tokenizer is read and built.
    """

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self._made: list[_T] = []
        self._failed: list[BaseException] = []

    def start(self, work: Callable[[], _T]) -> None:
        """Begins `work`."""
        self._thread = Thread(target=self._run, args=(work,))
        self._thread.start()

    def result(self) -> _T:
        """Waits, and returns what the work returned or raises what it raised."""
        self._wait()
        for error in self._failed:
            raise error
        return self._made[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._wait()

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _run(self, work: Callable[[], _T]) -> None:
        try:
            self._made.append(work())
        except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
            self._failed.append(error)


def _engine(model: _Tensors, kind: EngineKind, context: int | None, run: _Run) -> AdaptableEngine:
    # What the model has anyway is not taken from it: tasks may need more than was thought of.
    context = max(context or 0, model.config.with_context().max_positions)
    if kind == "native":
        from miudo.engine.native import DEFAULT_CACHE_BYTES, NativeEngine

        return NativeEngine(
            model,
            threads=run.threads,
            activations=run.activations,
            cache=run.cache,
            cache_bytes=run.cache_bytes or DEFAULT_CACHE_BYTES,
            context=context,
        )
    if kind == "torch":
        if run.cache is not None:
            raise UsageError(
                f"PyTorch keeps float32 keys and values, not {run.cache}", remedy="Use native"
            )
        import torch

        from miudo.decoder.decoder import Decoder
        from miudo.decoder.torch_engine import TorchEngine

        if run.threads is not None:
            torch.set_num_threads(run.threads)
        return TorchEngine(Decoder.from_weights(model.config, model.weights, context=context))
    raise UsageError(f"no engine is called {kind!r}", remedy="Use native or torch")
