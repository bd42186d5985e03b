"""`/tokenize`, `/detokenize`, `/apply-template` and `/suggest`.

For: their fields and replies.
Not for: tokenizers (`miudo.text`) or the search for words (`miudo.engine.suggest`).
Read next: `miudo.engine.suggest`.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any
from weakref import WeakKeyDictionary

from miudo.engine.suggest import Suggester, Suggestion
from miudo.errors import RequestError
from miudo.protocol import Engine
from miudo.serve.fields import FieldError, Fields
from miudo.serve.hosted import Hosted
from miudo.serve.pieces import shown_piece
from miudo.text.chat import parse_messages
from miudo.text.prompt import begun

__all__ = ["Suggesters", "applied", "detokenized", "tokenized"]

_MOST_WORDS = 32


def tokenized(fields: Fields, hosted: Hosted) -> dict[str, Any]:
    """Returns the ids of `content`; with `with_pieces` each with its text, or its bytes.

    `add_special` begins them as a prompt is begun; `parse_special` takes special tokens for what
    they are, where a prompt's are plain text.
    """
    tokenizer = hosted.loaded.tokenizer
    ids = tokenizer.encode(fields.text("content"), allow_special=fields.flag("parse_special"))
    if fields.flag("add_special"):
        ids = begun(ids, hosted.loaded.model.config)
    pieces = fields.flag("with_pieces")
    fields.end()
    if not pieces:
        return {"tokens": ids}
    return {"tokens": [{"id": i, "piece": shown_piece(tokenizer, i)} for i in ids]}


def detokenized(fields: Fields, hosted: Hosted) -> dict[str, Any]:
    """Returns the text of `tokens`. Raises FieldError for what are no ids."""
    given, size = fields.take("tokens"), hosted.loaded.tokenizer.vocab_size
    if not isinstance(given, list):
        raise fields.wrong("tokens", given, "a list of ids")
    for i, value in enumerate(given):
        if type(value) is not int or not 0 <= value < size:
            raise FieldError(
                f"tokens[{i}]", f"is {value!r:.50}", remedy=f"Give ids from 0 to {size - 1}"
            )
    fields.end()
    return {"content": hosted.loaded.tokenizer.decode(given)}


def applied(fields: Fields, hosted: Hosted) -> dict[str, Any]:
    """Returns `messages` as the model's chat template writes them."""
    messages = parse_messages(fields.take("messages"))
    asks = fields.flag("add_generation_prompt", True)
    fields.end()
    if hosted.template is None:
        raise RequestError(f"{hosted.name} has no chat template", remedy="Name another model")
    return {"prompt": hosted.template.render(messages, add_generation_prompt=asks)}


class Suggesters:
    """Keeps for each model what knowing its words takes; forgets each text."""

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[Hosted, Suggester] = WeakKeyDictionary()

    async def suggested(self, fields: Fields, hosted: Hosted) -> dict[str, Any]:
        """Returns the next words of `text`, or the ends of its last one, most probable first."""
        text, count = fields.text("text"), fields.whole("count", 1, _MOST_WORDS, 3)
        fields.end()

        made = hosted.worker.call(lambda engine: self._of(hosted, engine))
        suggester = await asyncio.wrap_future(made)

        def work(_: Engine) -> list[Suggestion]:
            try:
                return suggester.suggest(text, count)
            finally:
                suggester.forget()  # how soon an answer comes must not tell of another's text

        asked = hosted.worker.call(work, positions=suggester.positions(text))
        found = await asyncio.wrap_future(asked)
        return {
            "model": hosted.name,
            "text": text,
            "words": [dataclasses.asdict(suggestion) for suggestion in found],
        }

    def _of(self, hosted: Hosted, engine: Engine) -> Suggester:
        if hosted not in self._kept:
            bos, loaded = hosted.loaded.model.config.bos_id, hosted.loaded
            self._kept[hosted] = Suggester(
                engine,
                loaded.tokenizer,
                start=() if bos is None else (bos,),
                adapter=loaded.adapter,
            )
        return self._kept[hosted]
