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
from typing import Literal, TypeVar

from miudo.adapter import AdaptableEngine, base_fingerprint, check_adapter
from miudo.errors import TokenizerError, UsageError
from miudo.formats import ModelFile, open_model
from miudo.formats.precision import held_as
from miudo.protocol import Engine
from miudo.tensors import DType
from miudo.text.tokenizer import TextTokenizer

__all__ = ["Activations", "EngineKind", "LoadedModel", "load_model"]

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


def load_model(
    path: Path,
    *,
    engine: EngineKind = "native",
    threads: int | None = None,
    activations: Activations = "int8",
    adapter: Path | None = None,
    context: int | None = None,
    dtype: DType | None = None,
) -> LoadedModel:
    """Returns the model at `path` on the native engine, or on PyTorch as its twin.

    With `dtype` matrices are held as that type, as a GGUF file of it would hold them.
    Texts of `context` tokens must fit, see `ModelConfig.with_context`, and of fewer. Raises
    ConfigError for one beyond the model's, TokenizerError for a model without a tokenizer,
    ModelFileError for a damaged one, or an `adapter` that was made for another model or
    tokenizer.
    """
    model = open_model(path)
    if dtype is not None:
        model = replace(model, weights=held_as(model.config, model.weights, dtype))
    if model.tokenizer is None:
        if path.is_dir():
            cure = "Put its tokenizer.json into the folder"
        else:  # nothing beside a .gguf is read
            cure = "Open the model's folder, with its tokenizer.json, or `miudo export` that"
        raise TokenizerError("the model has no tokenizer that miudo reads", where=path, remedy=cure)
    spec = model.tokenizer
    tokenizer_of = _beside(lambda: TextTokenizer(spec))
    # What the model has anyway is not taken from it: tasks may need more than was thought of.
    session = max(context or 0, model.config.with_context().max_positions)
    try:
        running = _engine(model, engine, threads, activations, session)
    finally:
        tokenizer = tokenizer_of()
    if adapter is None:
        return LoadedModel(path, model, running, tokenizer)
    from miudo.formats.adapter import adapter_template

    _add_adapter(running, adapter, model, tokenizer)
    if template := adapter_template(adapter):
        model = replace(model, chat_template=template)
    return LoadedModel(path, model, running, tokenizer, _ADAPTER)


def _beside(work: Callable[[], _T]) -> Callable[[], _T]:
    """Starts `work` on a thread; what is returned waits for its result, or raises its error.

    The engine packs weights without the GIL: meanwhile the tokenizer costs little time.
    """
    made: list[_T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            made.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            failed.append(error)

    thread = Thread(target=run)
    thread.start()

    def result() -> _T:
        thread.join()
        if failed:
            raise failed[0]
        return made[0]

    return result


def _add_adapter(
    engine: AdaptableEngine, path: Path, model: ModelFile, tokenizer: TextTokenizer
) -> None:
    from miudo.formats.adapter import open_adapter

    adapter = open_adapter(path, model.config)
    base = base_fingerprint(model.config, model.weights)
    check_adapter(model.config, adapter, base=base, tokenizer=tokenizer.fingerprint, where=path)
    engine.add_adapter(_ADAPTER, adapter)


def _engine(
    model: ModelFile,
    kind: EngineKind,
    threads: int | None,
    activations: Activations,
    context: int,
) -> AdaptableEngine:
    if kind == "native":
        from miudo.engine.native import NativeEngine

        return NativeEngine(model, threads=threads, activations=activations, context=context)
    if kind == "torch":
        import torch

        from miudo.decoder.decoder import Decoder
        from miudo.decoder.torch_engine import TorchEngine

        if threads is not None:
            torch.set_num_threads(threads)
        return TorchEngine(Decoder.from_weights(model.config, model.weights, context=context))
    raise UsageError(f"no engine is called {kind!r}", remedy="Use native or torch")
