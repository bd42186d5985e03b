"""Text in one form: Unicode NFC, one kind of line end, no control characters.

For: what every document goes through before duplicates are looked for.
Not for: choosing documents by quality, or taking out personal data.
Read next: `miudo.data.dedupe`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from miudo.data.sources import Document
from miudo.protocol import Message

__all__ = ["CleanReport", "clean_documents", "clean_text"]

# Control characters but tab and line feed; the byte order mark inside a text; noncharacters.
_REMOVED = dict.fromkeys(
    [
        *(c for c in range(0x20) if c not in (0x09, 0x0A)),
        *range(0x7F, 0xA0),
        0xFEFF,
        *range(0xFDD0, 0xFDF0),
        0xFFFE,
        0xFFFF,
    ]
)


@dataclass(slots=True)
class CleanReport:
    """How much was changed: documents seen and emptied, line ends, characters, compositions."""

    documents: int = 0
    emptied: int = 0
    line_ends: int = 0
    characters_removed: int = 0
    documents_composed: int = 0


def clean_documents(documents: Iterable[Document], report: CleanReport) -> Iterator[Document]:
    """Yields documents with clean text, counting in `report`; what becomes empty is left out."""
    for document in documents:
        report.documents += 1
        messages = tuple(Message(m.role, clean_text(m.content, report)) for m in document.messages)
        text = (
            "\n".join(m.content for m in messages)
            if messages
            else clean_text(document.text, report)
        )
        if text.strip():
            yield replace(document, text=text, messages=messages)
        else:
            report.emptied += 1


def clean_text(text: str, report: CleanReport) -> str:
    """Returns `text` with line feeds for all line ends, without control characters, in NFC.

    Composing comes last: taking a character out can bring two together that compose.
    """
    if "\r" in text or "\x85" in text or "\u2028" in text or "\u2029" in text:
        ends = sum(map(text.count, "\r\x85\u2028\u2029"))
        report.line_ends += ends
        for end in ("\r\n", "\r", "\x85", "\u2028", "\u2029"):
            text = text.replace(end, "\n")
    kept = text.translate(_REMOVED)
    report.characters_removed += len(text) - len(kept)
    if unicodedata.is_normalized("NFC", kept):
        return kept
    report.documents_composed += 1
    return unicodedata.normalize("NFC", kept)
