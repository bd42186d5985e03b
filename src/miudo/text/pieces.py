"""A SentencePiece BPE vocabulary (Kudo & Richardson 2018) in the form of a tokenizer.json.

For: pieces with scores, out of a `tokenizer.model` or a GGUF file, with the ids that the
original gives. Three deviations are known: a text that is nothing but one user-defined piece
gets no space in front; pieces of equal score are joined by id, not from the left; and with a
`charsmap` the `tokenizers` library loses a combining mark after a character that is replaced.
Not for: unigram models, which choose among all ways to cut a text.
Read next: `miudo.text.sentencepiece`, `miudo.text.tokenizer_json`.
"""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from miudo.errors import TokenizerError
from miudo.text.tokenizer_json import SPACE

__all__ = ["PieceKind", "Pieces", "added_tokens", "piece_tokenizer"]


class PieceKind(IntEnum):
    """What a piece is, by SentencePiece's numbers, which GGUF has taken over."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


# Kinds that BPE never makes, and whether they are special.
_SPECIAL: Mapping[int, bool] = {
    PieceKind.UNKNOWN: True,
    PieceKind.CONTROL: True,
    PieceKind.UNUSED: True,
    PieceKind.USER_DEFINED: False,
}


_PIECE_CHARS = 512


@dataclass(frozen=True, slots=True)
class Pieces:
    """Pieces by id with score and `PieceKind`, and what is done to a text before.

    `adds_space`: a space is put in front. `squeezes_spaces`: runs of spaces become one, those at
    both ends go. `charsmap` is SentencePiece's table of characters to replace, b"" for none.
    `where` names the source in errors.
    """

    pieces: Sequence[str]
    scores: Sequence[float]
    kinds: Sequence[int]
    adds_space: bool = True
    squeezes_spaces: bool = False
    charsmap: bytes = b""
    where: object = None


def piece_tokenizer(given: Pieces) -> dict[str, Any]:
    """Returns the tokenizer.json of a SentencePiece vocabulary, as plain values.

    Raises TokenizerError for a piece so long that all ways to cut it are too many.
    """
    added = added_tokens(given.pieces, given.kinds)
    for token in added:  # user-defined pieces are matched where spaces are written as pieces too
        token["normalized"] = not token["special"]
    unknown = [i for i, kind in enumerate(given.kinds) if kind == PieceKind.UNKNOWN]
    user_defined = [str(t["content"]) for t in added if not t["special"]]
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    decoders: list[dict[str, Any]] = [
        _replace({"String": SPACE}, " "),
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *([strip] if given.adds_space else []),
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": _normalizers(given, user_defined)},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": given.pieces[unknown[0]] if unknown else None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": PieceKind.BYTE in given.kinds,
            "ignore_merges": False,
            "vocab": {piece: i for i, piece in enumerate(given.pieces)},
            "merges": _merges(given),
        },
    }


def added_tokens(tokens: Sequence[str], kinds: Sequence[int]) -> list[dict[str, Any]]:
    """Returns the `added_tokens` of a tokenizer.json: all that BPE never makes."""
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return [
        {"id": i, "content": tokens[i], **plain, "special": _SPECIAL[kinds[i]]}
        for i in itertools.compress(range(len(tokens)), map(_SPECIAL.__contains__, kinds))
    ]


def _normalizers(given: Pieces, user_defined: Sequence[str]) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    if given.charsmap:
        table = base64.b64encode(given.charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": table})
    if given.squeezes_spaces:
        ends = rf"\A +|[ {SPACE}]+\z"  # at the end a space is looked for as it is written
        steps += [_replace({"Regex": ends}, ""), _replace({"Regex": " {2,}"}, " ")]
    if given.adds_space:
        steps.append({"type": "Prepend", "prepend": SPACE})
    steps.append(_replace({"String": " "}, SPACE))
    if given.adds_space and user_defined:
        # The library sends its added tokens through here as well, where the space in front
        # would become part of what they match.
        longest_first = sorted(user_defined, key=len, reverse=True)
        alone = "|".join(map(re.escape, longest_first))
        steps.append(_replace({"Regex": rf"\A{SPACE}(?=(?:{alone})\z)"}, ""))
    return steps


def _replace(pattern: Mapping[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": dict(pattern), "content": content}


def _merges(given: Pieces) -> list[list[str]]:
    """Returns every way to join two pieces into a third, those of the highest score first."""
    ids = {
        piece: i
        for i, (piece, kind) in enumerate(zip(given.pieces, given.kinds, strict=True))
        if kind == PieceKind.NORMAL
    }
    longest = max(ids, key=len, default="")
    if len(longest) > _PIECE_CHARS:
        raise TokenizerError(
            f"piece {ids[longest]} has {len(longest)} characters, the limit is {_PIECE_CHARS}",
            where=given.where,
        )
    scores = given.scores
    order = sorted(ids, key=lambda piece: -scores[ids[piece]])
    return [
        [piece[:cut], piece[cut:]]
        for piece in order
        for cut in range(len(piece) - 1, 0, -1)
        if piece[:cut] in ids and piece[cut:] in ids
    ]
