"""`/api/generate` and `/api/chat`: a text or messages in, JSON lines or one object out.

For: the requests' fields and the replies' shape.
Not for: options (`miudo.serve.ollama.options`) or drawing (`miudo.serve.answering`).
Read next: `miudo.serve.ollama.options`.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from miudo.engine.grammars import Language, json_of
from miudo.engine.schemas import closed
from miudo.protocol import Message
from miudo.serve.answering import Ask, Piece, Timings, answer
from miudo.serve.asking import asks, gathered
from miudo.serve.conversing import chat_asks
from miudo.serve.fields import FieldError, Fields
from miudo.serve.guiding import checked, no_stop_inside
from miudo.serve.hosted import Hosted
from miudo.serve.ollama.messages import take_messages
from miudo.serve.ollama.options import Options, fitted, take_keep_alive, take_options
from miudo.serve.openai.tools import take_functions
from miudo.serve.replies import encoded
from miudo.serve.toolbox import Toolbox, take_choice
from miudo.serve.turns import Call, Turn
from miudo.text.tools import CallForm

__all__ = ["GenerateCall", "generate_reply", "generate_stream", "line", "parse_chat", "parse_text"]

# Fields of both routes that exist elsewhere and not here, with values that ask for nothing.
_UNSUPPORTED = {
    "think": False, "logprobs": False, "top_logprobs": 0, "truncate": False, "shift": False,
}  # fmt: skip
_NO_TEXT: dict[str, Any] = {"suffix": "", "images": [], "template": "", "context": []}


@dataclass(frozen=True, slots=True)
class GenerateCall:
    """A request that was read; without an `ask` it wants the model opened, which it is.

    `chat` says which of the two shapes the reply has, `form` is that of calls where the model
    may make some; `began` is a time of `perf_counter`.
    """

    hosted: Hosted
    ask: Ask | None
    chat: bool
    stream: bool
    form: CallForm | None = None
    began: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True, slots=True)
class _Common:
    """What both routes have: whether to stream, options, and the form that is asked for."""

    stream: bool
    options: Options
    language: Language | None


async def parse_text(fields: Fields, hosted: Hosted, *, scope: str) -> GenerateCall:
    """Returns the call of `/api/generate`: through the chat template unless `raw`."""
    prompt, system = fields.text("prompt", ""), fields.text("system", "")
    raw = fields.flag("raw")
    fields.refuse(_NO_TEXT)
    common = _common(fields, asked=bool(prompt))
    if raw and system:
        raise FieldError("system", "is given with raw", remedy="Leave out one of them")
    if not prompt:
        return GenerateCall(hosted, None, chat=False, stream=common.stream)
    drawing = common.options.drawing
    if raw or (hosted.template is None and not system):
        grammars = await hosted.compiler.begin(common.language, 1)
        ids = hosted.text_ids(prompt)
        (ask,) = asks(hosted, ids, drawing, top=None, scope=scope, grammars=grammars)
    else:
        turns = [Message("system", system)] if system else []
        turns.append(Message("user", prompt))
        (ask,), _ = await chat_asks(hosted, turns, drawing, Toolbox(), common.language, scope=scope)
    ask = fitted(ask, common.options, hosted)
    return GenerateCall(hosted, ask, chat=False, stream=common.stream)


async def parse_chat(fields: Fields, hosted: Hosted, *, scope: str) -> GenerateCall:
    """Returns the call of `/api/chat`; functions may be called, none must."""
    turns, tools = take_messages(fields), take_functions(fields)
    common = _common(fields, asked=bool(turns))
    if not turns:
        return GenerateCall(hosted, None, chat=True, stream=common.stream)
    toolbox = Toolbox(tools, take_choice("auto", tools))
    (ask,), form = await chat_asks(
        hosted, turns, common.options.drawing, toolbox, common.language, scope=scope
    )
    ask = fitted(ask, common.options, hosted)
    return GenerateCall(hosted, ask, chat=True, stream=common.stream, form=form)


async def generate_reply(call: GenerateCall) -> dict[str, Any]:
    """Returns the whole reply."""
    if call.ask is None:
        return _said(call, "") | {"done": True, "done_reason": "load"}
    (whole,) = await gathered(call.hosted, [call.ask])
    turn = Turn(call.form)
    turn.push(whole.text, is_last=True)
    return _said(call, turn.text, _whole(turn.calls)) | _end(call, whole.last)


async def generate_stream(call: GenerateCall) -> AsyncIterator[bytes]:
    """Yields a line of JSON for each piece and each call, and a last one with counts."""
    if call.ask is None:
        yield line(await generate_reply(call))
        return
    turn = Turn(call.form)
    async for piece in answer(call.hosted.worker, call.hosted.loaded.tokenizer, call.ask):
        for event in turn.push(piece.text, is_last=piece.finish_reason is not None):
            if event.call is None:
                yield line(_said(call, event.text) | {"done": False})
            elif event.is_end:
                calls = _whole([turn.calls[event.call]])
                yield line(_said(call, "", calls) | {"done": False})
        if piece.finish_reason:
            yield line(_said(call, "") | _end(call, piece))


def line(value: dict[str, Any]) -> bytes:
    """Returns a line of a stream of JSON lines."""
    return encoded(value) + b"\n"


def _common(fields: Fields, *, asked: bool) -> _Common:
    """Takes what both routes have; nothing may be left then."""
    stream = fields.flag("stream", True)
    if take_keep_alive(fields) and not asked:
        raise FieldError(
            "keep_alive", "is 0, which asks to close the model", remedy="It stays open; leave it"
        )
    options, language = take_options(fields), _format(fields)
    no_stop_inside(language, options.stop, "options.stop")
    fields.refuse(_UNSUPPORTED)
    fields.end()
    return _Common(stream, options, language)


def _format(fields: Fields) -> Language | None:
    """Takes `format`: nothing, json, which is any object, or a schema."""
    given = fields.take("format")
    if given is None or given == "":
        return None
    if given == "json":
        return json_of({"type": "object"}, "format")
    if not isinstance(given, dict):
        raise fields.wrong("format", given, "json, or a JSON Schema")
    return checked(lambda: json_of(closed(given), "format"))


def _whole(calls: Sequence[Call]) -> list[dict[str, Any]]:
    """Returns calls as this protocol shows them, arguments as values: so none that was cut."""
    return [
        {
            "id": call.id,
            "function": {"name": call.name, "arguments": json.loads(call.arguments)},
        }
        for call in calls
        if call.is_whole
    ]


def _said(call: GenerateCall, text: str, calls: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    said: dict[str, Any] = {"response": text}
    if call.chat:
        message: dict[str, Any] = {"role": "assistant", "content": text}
        said = {"message": message | ({"tool_calls": list(calls)} if calls else {})}
    return {"model": call.hosted.name, "created_at": now, **said}


def _end(call: GenerateCall, last: Piece) -> dict[str, Any]:
    """Counts and nanoseconds; nothing is loaded for a request, so that takes none."""
    spent = last.timings or Timings(0.0, 0.0)
    return {
        "done": True,
        "done_reason": last.finish_reason,
        "total_duration": _ns(time.perf_counter() - call.began),
        "load_duration": 0,
        "prompt_eval_count": last.prompt_tokens,
        "prompt_eval_duration": _ns(spent.first_token_s),
        "eval_count": last.new_tokens,
        "eval_duration": _ns(spent.rest_s),
    }


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
