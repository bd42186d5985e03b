"""A synthetic corpus of our own making: stories, shop support, smart-home talk, in two languages.

For: the demo and the tests, where no text of others can be shipped.
Not for: judging a model, or teaching one facts: everything in it is made up by a grammar.
Read next: `miudo.data.grammar`, then the lists and rules in `sample_words`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from random import Random
from typing import IO

from miudo.data.grammar import Grammar
from miudo.data.sources import RECORD_SUFFIX
from miudo.errors import ConfigError
from miudo.files import atomic_write, sha256_file
from miudo.plain_json import write_json
from miudo.protocol import Message
from miudo.records import Measurement, Record

__all__ = ["SampleDocument", "sample_documents", "write_sample"]

# How often of 20 documents each kind comes; every second document is in the other language.
_KINDS = ("story",) * 13 + ("shop",) * 4 + ("home",) * 3
_RULES = {
    "en": {"story": "story", "shop": "shop", "home": "home"},
    "pt": {"story": "história", "shop": "loja", "home": "casa"},
}
_ROLES = {"S": "system", "U": "user", "A": "assistant"}
_SPEAKERS = {
    "en": {"system": "Note", "user": "Customer", "assistant": "Assistant"},
    "pt": {"system": "Nota", "user": "Cliente", "assistant": "Assistente"},
}
_END = "<|endoftext|>"
_NOTE = "synthetic text: made by a grammar and a random seed, not written by people"


@dataclass(frozen=True, slots=True)
class SampleDocument:
    """One made-up document: a story has `text`, a dialogue has `messages` as well."""

    kind: str
    language: str
    text: str
    messages: tuple[Message, ...] = ()


def sample_documents(seed: int) -> Iterator[SampleDocument]:
    """Yields documents without end; the one at each place depends on the seed and it alone."""
    if not 0 <= seed < 1 << 63:
        raise ConfigError(f"seed is {seed}, allowed 0 to 2**63 - 1")
    grammars = {language: _grammar(language) for language in _RULES}
    index = 0
    while True:
        language = ("en", "pt")[index % 2]
        kind = _KINDS[index // 2 % len(_KINDS)]
        random = Random(f"{seed}/{index}")  # noqa: S311 - text, not secrets
        text = grammars[language].document(_RULES[language][kind], random)
        yield _document(kind, language, text)
        index += 1


def write_sample(path: Path, *, seed: int = 0, size_bytes: int = 3_000_000) -> Record:
    """Writes the corpus to `path`, about `size_bytes` long, and a record that calls it synthetic.

    A name ending in `.jsonl` gives a JSON object a line (`text` or `messages`, `kind`,
    `language`, `synthetic`); any other name plain text with lines `<|endoftext|>` between
    documents. The record stands beside it, under the name plus `.record.json`.
    """
    if size_bytes < 1:
        raise ConfigError(f"size_bytes is {size_bytes}", remedy="Give at least 1")
    write = _json_line if path.suffix == ".jsonl" else _plain_text
    written = 0
    documents = 0

    def fill(file: IO[bytes]) -> None:
        nonlocal written, documents
        for document in sample_documents(seed):
            written += file.write(write(document))
            documents += 1
            if written >= size_bytes:
                return

    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, fill)
    record = Record(
        verb="sample",
        name=path.name,
        settings={"size_bytes": size_bytes, "synthetic": True},
        seed=seed,
        outputs={path.name: sha256_file(path)},
        measurements=(
            Measurement("documents", documents, "1", "counted"),
            Measurement("size", written, "B", "counted"),
        ),
        licence="Apache-2.0",
        notes=(_NOTE,),
    )
    write_json(path.with_name(path.name + RECORD_SUFFIX), record.to_json())
    return record


def _grammar(language: str) -> Grammar:
    folder = resources.files("miudo.data") / "sample_words"
    files = sorted(f.name for f in folder.iterdir() if f.name.startswith(f"{language}_"))
    return Grammar(language, [(folder / name).read_text(encoding="utf-8") for name in files])


def _document(kind: str, language: str, text: str) -> SampleDocument:
    if kind == "story":
        return SampleDocument(kind, language, text)
    messages: list[Message] = []
    for line in text.split("\n"):
        mark, _, content = line.partition(": ")
        messages.append(Message(_ROLES[mark], content.strip()))
    return SampleDocument(kind, language, text, tuple(messages))


def _json_line(document: SampleDocument) -> bytes:
    values: dict[str, object] = (
        {"messages": [{"role": m.role, "content": m.content} for m in document.messages]}
        if document.messages
        else {"text": document.text}
    )
    values |= {"kind": document.kind, "language": document.language, "synthetic": True}
    return json.dumps(values, ensure_ascii=False).encode() + b"\n"


def _plain_text(document: SampleDocument) -> bytes:
    speakers = _SPEAKERS[document.language]
    lines = [f"{speakers[m.role]}: {m.content}" for m in document.messages]
    return ("\n".join(lines) if lines else document.text).encode() + f"\n{_END}\n".encode()
