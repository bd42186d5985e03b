"""Conversations out of files: JSONL of messages, and tables of questions with answers.

For: what fine-tuning learns from, every record checked, errors naming file, record and field.
Not for: running text (`miudo.data.sources`), or ids (`miudo.data.samples`).
Read next: `miudo.data.samples`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from miudo.data.lines import open_source, read_lines
from miudo.data.sources import encodable, file_kind, find_files
from miudo.data.tables import read_csv, read_parquet
from miudo.errors import ConfigError, DataError, RequestError
from miudo.plain_json import read_line
from miudo.protocol import Message
from miudo.text.chat import parse_messages

__all__ = ["ChatSettings", "Conversation", "holds_chats", "read_chats"]

_KINDS = ("auto", "chat", "text")
_LISTS = ("messages", "conversations", "conversation")
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
_TABLES = ("csv", "tsv", "parquet")
_LINE_BYTES = 64 << 20
_NAMES = "Give messages, or name the keys: --set chat.prompt=KEY --set chat.answer=KEY"
_PART = "Name JSONL, CSV, TSV or Parquet files, or train on text alone"


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """`prompt`, `answer` and, if named, `system` are the columns of a table of pairs.

    They are keys of JSONL records without messages too; there a `system` counts unnamed. `kind`
    says whether the data is chats or running text; auto takes tables for pairs and looks at the
    first record of each JSONL.
    `held_out` is the share of conversations kept from training.
    """

    kind: str = "auto"
    prompt: str = "prompt"
    answer: str = "answer"
    system: str | None = None
    held_out: float = 0.02

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ConfigError(f"kind is {self.kind!r}", remedy=f"Choose one of {', '.join(_KINDS)}")
        if not 0.0 <= self.held_out < 1.0:
            raise ConfigError(f"held_out is {self.held_out}, allowed 0 up to below 1")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of a pair: prompt, answer and perhaps system."""
        return (self.prompt, self.answer, *(() if self.system is None else (self.system,)))


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages that end with an answer, and where they stand ("chat.jsonl, line 3")."""

    messages: tuple[Message, ...]
    where: str


def holds_chats(inputs: Sequence[str], settings: ChatSettings, field: str = "text") -> bool:
    """Whether `inputs` are conversations rather than running text, of which `field` is the key.

    Of each file the name decides; of JSONL the first record. Raises MissingError and DataError
    for what cannot be opened, a record that is neither, and inputs of both kinds.
    """
    if settings.kind != "auto":
        return settings.kind == "chat"
    kinds = {path: _is_chat(path, settings, field) for path in find_files(inputs)}
    if len(set(kinds.values())) == 2:
        text = next(path for path, chat in kinds.items() if not chat)
        raise DataError("is running text, other inputs are conversations", where=text, remedy=_PART)
    return True in kinds.values()


def _is_chat(path: Path, settings: ChatSettings, field: str) -> bool:
    if ".json" in path.suffixes[-2:]:
        raise DataError(
            "is JSON in one piece, a record a line is read",
            where=path,
            remedy="Write JSON Lines, FILE.jsonl, say by jq -c '.[]'",
        )
    kind = file_kind(path)
    if kind != "jsonl":
        return kind in _TABLES
    with open_source(path) as stream:
        for line in read_lines(stream, path, line_bytes=_LINE_BYTES):
            if line.text.isspace():
                continue
            where = f"{path}, line {line.number}"
            values = read_line(line.text, where)
            if settings.prompt in values or any(key in values for key in _LISTS):
                return True
            if field in values:
                return False
            raise DataError(
                f"has no messages, no {settings.prompt!r} and no {field!r} "
                f"(found: {sorted(values)[:20]})",
                where=where,
                remedy=f"{_NAMES}; for running text --set prepare.read.field=KEY",
            )
    raise DataError("holds no record", where=path, remedy="Leave it out or fill it")


def read_chats(inputs: Sequence[str], settings: ChatSettings) -> Iterator[Conversation]:
    """Yields the conversations of all inputs in order, each checked.

    Roles are an optional system message, then user and assistant in turns, an answer last.
    Raises DataError naming file, record and field for anything else, for empty contents and
    text that is not UTF-8; MissingError for absent files.
    """
    for path in find_files(inputs):
        kind = file_kind(path)
        empty = True
        for messages, where in _records(path, kind, settings):
            empty = False
            yield Conversation(_checked(messages, where), where)
        if empty:
            raise DataError("holds no conversation", where=path, remedy="Leave it out or fill it")


def _records(path: Path, kind: str, settings: ChatSettings) -> Iterator[tuple[Any, str]]:
    if kind == "parquet":
        for index, row in enumerate(read_parquet(path, settings.columns)):
            yield _pair(*row), f"{path}, row {index}"
        return
    if kind not in ("jsonl", *_TABLES):
        raise DataError(
            "is running text, other inputs are conversations",
            where=path,
            remedy=_PART,
        )
    with open_source(path) as stream:
        lines = read_lines(stream, path, line_bytes=_LINE_BYTES)
        if kind == "jsonl":
            for line in lines:
                if not line.text.isspace():
                    where = f"{path}, line {line.number}"
                    yield _messages(read_line(line.text, where), where, settings), where
            return
        delimiter = "\t" if kind == "tsv" else ","
        for number, row in read_csv(lines, path, settings.columns, delimiter):
            yield _pair(*row), f"{path}, line {number}"


def _messages(values: Mapping[str, Any], where: str, settings: ChatSettings) -> Any:
    for key in _LISTS:
        if key in values:
            found = values[key]
            return [_renamed(v) for v in found] if isinstance(found, list) else found
    missing = [name for name in settings.columns if not isinstance(values.get(name), str)]
    if missing:
        raise DataError(
            f"has no messages and no text under {missing[0]!r} (found: {sorted(values)[:20]})",
            where=where,
            remedy=_NAMES,
        )
    system = values.get("system") if settings.system is None else None
    said = (system,) if isinstance(system, str) else ()
    return _pair(*(values[name] for name in settings.columns), *said)


def _renamed(value: Any) -> Any:
    """A message in the other spelling that data sets have: from and value."""
    if isinstance(value, Mapping) and set(value) == {"from", "value"}:
        value = {"role": value["from"], "content": value["value"]}
    if isinstance(value, Mapping) and isinstance(value.get("role"), str):
        value = {**value, "role": _ROLES.get(value["role"], value["role"])}
        if "content" in value:
            value["content"] = _joined(value["content"])
    return value


def _joined(content: Any) -> Any:
    """A content in OpenAI's parts as one text; with a part of another type it stays as it is."""
    parts = content if isinstance(content, list) else []
    texts = [
        part["text"]
        for part in parts
        if isinstance(part, Mapping)
        and set(part) == {"type", "text"}
        and (part["type"], type(part["text"])) == ("text", str)
    ]
    return "".join(texts) if texts and len(texts) == len(parts) else content


def _pair(prompt: str, answer: str, system: str = "") -> list[Message]:
    first = [Message("system", system)] if system else []
    return [*first, Message("user", prompt), Message("assistant", answer)]


def _checked(values: Any, where: str) -> tuple[Message, ...]:
    try:
        messages = parse_messages(values)
    except RequestError as error:
        raise DataError(error.what, where=where, remedy=error.remedy) from error
    for i, message in enumerate(messages):
        encodable(message.content, f"{where}, messages[{i}].content")
        if not message.content.strip():
            raise DataError(
                f"messages[{i}].content is empty ({message.role})",
                where=where,
                remedy="Fill it or take the record out",
            )
    turns = messages[1:] if messages[0].role == "system" else messages
    first = len(messages) - len(turns)
    if not any(m.role == "assistant" for m in turns):
        raise DataError("has no answer of the assistant", where=where, remedy="Take it out")
    expected = "user, assistant, user, assistant, ... after an optional system message"
    if turns[0].role != "user":
        raise _order(first, turns[0], where, expected)
    for i, (before, after) in enumerate(pairwise(turns)):
        if after.role != ("assistant" if before.role == "user" else "user"):
            raise _order(first + i + 1, after, where, expected)
    if turns[-1].role != "assistant":
        raise _order(len(messages) - 1, turns[-1], where, "an answer at the end")
    return tuple(messages)


def _order(index: int, message: Message, where: str, expected: str) -> DataError:
    return DataError(
        f"messages[{index}].role is {message.role}: expected is {expected}",
        where=where,
        remedy="Put the turns in order",
    )
