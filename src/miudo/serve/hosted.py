"""A model that is served: engine thread, tokenizer, template, and what its memory holds.

For: opening a path under a name, with the memory of keys and values planned before.
Not for: which models are open (`miudo.serve.house`) or answers (`miudo.serve.answering`).
Read next: `miudo.serve.answering`.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from miudo.engine.batches import Limits
from miudo.engine.grammars import Grammars
from miudo.engine.native import DEFAULT_CACHE_BYTES, CacheType, NativeEngine
from miudo.errors import RequestError, UsageError
from miudo.evaluate.loading import LoadedModel, load_model, with_adapter
from miudo.formats.export import weights_sha256
from miudo.protocol import Message
from miudo.serve.guiding import Compiler
from miudo.serve.worker import Post, Worker
from miudo.text.chat import ChatTemplate, encode_chat
from miudo.text.prompt import begun, model_template
from miudo.text.tools import Tool, ToolMessage

__all__ = ["HostOffer", "HostSettings", "Hosted"]


@dataclass(frozen=True, slots=True)
class HostSettings:
    """How a model is run; `max_waiting` requests wait beside `max_sequences` that run.

    `cache_bytes` bounds keys and values of all requests, finished ones that others may begin
    with included; `cache` is what they are rounded to. A step takes in at most `step_positions`.
    """

    threads: int | None = None
    cache_bytes: int = DEFAULT_CACHE_BYTES
    cache: CacheType | None = None
    max_sequences: int = 32
    max_waiting: int = 64
    step_positions: int = 256


@dataclass(eq=False)
class Hosted:
    """A model under `name`; `created` is when it was opened, in seconds since 1970.

    With an adapter it is called MODEL:ADAPTER and shares the model's worker.
    """

    name: str
    loaded: LoadedModel
    worker: Worker
    created: int
    template: ChatTemplate | None
    fingerprint: str = field(default_factory=lambda: secrets.token_hex(6))

    @cached_property
    def sha256(self) -> str:
        """The hash of its weight files, read through when first asked for."""
        return weights_sha256(self.loaded.path)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end an answer."""
        return self.loaded.model.config.eos_ids

    @property
    def token_mask(self) -> npt.NDArray[np.bool_] | None:
        """Bool [V], False for rows of the vocabulary that are no tokens; None if all are."""
        size, tokens = self.loaded.engine.config.vocab_size, self.loaded.tokenizer.vocab_size
        return None if tokens >= size else np.arange(size) < tokens

    @property
    def context(self) -> int:
        """Positions of prompt and answer together."""
        return self.loaded.engine.config.max_positions

    @cached_property
    def compiler(self) -> Compiler:
        """Makes grammars for this model's vocabulary."""
        size = self.loaded.engine.config.vocab_size
        return Compiler(Grammars(self.loaded.tokenizer, size, self.eos_ids))

    def now(self) -> int:
        """Returns the time that replies carry, in seconds since 1970."""
        return int(time.time())

    @cached_property
    def most_bytes(self) -> int:
        """How many bytes of text the positions hold at most, were each token the longest."""
        return self.context * self.loaded.tokenizer.longest_token

    def chat_ids(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        *,
        any_length: bool = False,
    ) -> list[int]:
        """Returns a conversation's ids.

        Raises RequestError where there is no chat template, and unless `any_length` for texts
        that cannot fit, before they are cut into tokens.
        """
        if not any_length:
            called = (c.arguments for m in messages if isinstance(m, ToolMessage) for c in m.calls)
            told = (json.dumps(tool.as_given(), ensure_ascii=False) for tool in tools)
            self._check_length(*(message.content for message in messages), *called, *told)
        if self.template is None:
            raise RequestError(
                f"{self.name} has no chat template", remedy="Use /v1/completions, or another model"
            )
        ids = encode_chat(self.loaded.tokenizer, self.template, messages, tools=tools)
        return begun(ids, self.loaded.model.config)

    def text_ids(self, text: str) -> list[int]:
        """Returns a plain text's ids, begun as the model wants.

        Raises RequestError for one that cannot fit, before it is cut into tokens.
        """
        self._check_length(text)
        return begun(self.loaded.tokenizer.encode(text), self.loaded.model.config)

    def _check_length(self, *texts: str) -> None:
        """The event loop cuts texts into tokens: what cannot fit must not hold everybody up."""
        size = sum(len(text.encode(errors="surrogatepass")) for text in texts)
        if size > self.most_bytes:
            raise RequestError(
                f"the text has {size} bytes, the model's {self.context} positions hold at most "
                f"{self.most_bytes}",
                remedy="Shorten it",
            )


@dataclass(frozen=True, slots=True)
class HostOffer:
    """The model at `path`, and `adapters` by name, to be served as `name`."""

    name: str
    path: Path
    settings: HostSettings
    post: Post
    adapters: Mapping[str, Path] = field(default_factory=dict)

    @property
    def planned_bytes(self) -> int:
        """Bytes of the files, which the engine holds in the types that they have, and the cache."""
        files = sum(map(_size_bytes, (self.path, *self.adapters.values())))
        return files + self.settings.cache_bytes

    def open(self) -> tuple[Hosted, ...]:
        """Returns the model and its adapters. Raises what `load_model` raises."""
        settings = self.settings
        loaded = load_model(
            self.path,
            threads=settings.threads,
            cache_bytes=settings.cache_bytes,
            cache=settings.cache,
        )
        tuned = [with_adapter(loaded, path, name) for name, path in self.adapters.items()]
        worker = _worker(self.name, loaded, settings, self.post)
        return tuple(_hosted(self.name, each, worker) for each in (loaded, *tuned))


def _worker(name: str, loaded: LoadedModel, settings: HostSettings, post: Post) -> Worker:
    engine = loaded.engine
    if not isinstance(engine, NativeEngine):
        raise UsageError(f"{name} does not run on the native engine, which alone is served")
    limits = Limits(
        context=engine.config.max_positions,
        pages=settings.cache_bytes // engine.page_bytes,
        page_positions=engine.page_positions,
        max_positions=max(settings.step_positions, settings.max_sequences),
        max_sequences=settings.max_sequences,
    )
    return Worker(engine, limits, max_waiting=settings.max_waiting, post=post)


def _hosted(name: str, loaded: LoadedModel, worker: Worker) -> Hosted:
    source, template = loaded.model.chat_template, None
    if source is not None:
        template = model_template(loaded.tokenizer, loaded.model.config, source)
    shown = name if loaded.adapter is None else f"{name}:{loaded.adapter}"
    hosted = Hosted(shown, loaded, worker, int(time.time()), template)
    _ = hosted.most_bytes  # here, where nobody waits for it
    return hosted


def _size_bytes(path: Path) -> int:
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
