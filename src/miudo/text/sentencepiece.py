"""SentencePiece model files (`tokenizer.model`), read field by field.

For: the few fields of the protocol buffer that say how a BPE model encodes, with every length
held against the file's end. The field numbers are those of sentencepiece_model.proto.
Not for: unigram, word and character models, which are refused by name.
Read next: `miudo.text.pieces` for what becomes of them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from miudo.errors import TokenizerError
from miudo.limits import LIMITS, Limits
from miudo.text.pieces import PieceKind, Pieces, piece_tokenizer
from miudo.text.tokenizer_json import TokenizerSpec, check_tokenizer

__all__ = ["parse_sentencepiece"]

_MODEL_TYPES = {1: "unigram", 2: "BPE", 3: "word", 4: "character"}
_BPE = 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_TEXT, _SCORE, _KIND = 1, 2, 3
_MODEL_TYPE, _SPACE_AS_SUFFIX = 3, 24
_CHARSMAP, _ADDS_SPACE, _SQUEEZES, _ESCAPES = 2, 3, 4, 5

_FIELDS = 4096  # of one message; the format has about fifty

_Field = tuple[int, int | bytes]


def parse_sentencepiece(
    data: bytes, *, where: object = None, limits: Limits = LIMITS
) -> TokenizerSpec:
    """Returns the tokenizer in a SentencePiece model file.

    Raises TokenizerError for a file that is none, and for models other than BPE.
    """
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(data, where, most=limits.vocab_size + _FIELDS):
        if number == _PIECES:
            if len(pieces) == limits.vocab_size:
                raise TokenizerError(f"has more than {len(pieces)} pieces", where=where)
            pieces.append(_piece(_message(value, where), len(pieces), where))
        elif number == _TRAINER:
            trainer |= dict(_fields(_message(value, where), where))
        elif number == _NORMALIZER:
            normalizer |= dict(_fields(_message(value, where), where))
    if not pieces:
        raise TokenizerError(
            "holds no pieces: it is no SentencePiece model",
            where=where,
            remedy="Put the tokenizer.json of the model beside it",
        )
    _check_kind(trainer, normalizer, where)
    texts, scores, kinds = zip(*pieces, strict=True)
    charsmap = normalizer.get(_CHARSMAP, b"")
    given = Pieces(
        pieces=texts,
        scores=scores,
        kinds=kinds,
        adds_space=bool(normalizer.get(_ADDS_SPACE, 1)),
        squeezes_spaces=bool(normalizer.get(_SQUEEZES, 1)),
        charsmap=_message(charsmap, where),
        where=where,
    )
    last = {text: i for i, text in enumerate(texts)}
    if len(last) != len(texts):
        twice = next(text for i, text in enumerate(texts) if last[text] != i)
        raise TokenizerError(f"piece {twice[:60]!r} stands twice", where=where)
    return check_tokenizer(piece_tokenizer(given), where=where, limits=limits)


def _check_kind(
    trainer: dict[int, int | bytes], normalizer: dict[int, int | bytes], where: object
) -> None:
    kind = trainer.get(_MODEL_TYPE, 1)
    if kind != _BPE:
        name = _MODEL_TYPES.get(kind, str(kind)) if isinstance(kind, int) else "damaged"
        raise TokenizerError(
            f"is a SentencePiece {name} model, only BPE is read",
            where=where,
            remedy="Put the tokenizer.json of the model beside it",
        )
    if trainer.get(_SPACE_AS_SUFFIX, 0) or not normalizer.get(_ESCAPES, 1):
        raise TokenizerError("writes spaces in a way that is not read", where=where)


def _piece(data: bytes, index: int, where: object) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, int(PieceKind.NORMAL)
    for number, value in _fields(data, where):
        try:
            if number == _TEXT and isinstance(value, bytes):
                text = value.decode()
            elif number == _SCORE and isinstance(value, bytes):
                (score,) = struct.unpack("<f", value)
            elif number == _KIND and isinstance(value, int):
                kind = PieceKind(value)
        except (UnicodeDecodeError, struct.error, ValueError) as error:
            raise TokenizerError(f"piece {index} is damaged ({error})", where=where) from error
    if score != score:
        raise TokenizerError(f"piece {index} has a score that is no number", where=where)
    return text, score, kind


def _message(value: int | bytes, where: object) -> bytes:
    if isinstance(value, bytes):
        return value
    raise TokenizerError("a field of it is a number, not bytes", where=where)


def _fields(data: bytes, where: object, *, most: int = _FIELDS) -> Iterator[_Field]:
    """Yields the number and value of every field: an int, or bytes of a length in bounds."""
    offset, end, left = 0, len(data), most
    while offset < end:
        left -= 1
        if left < 0:
            raise TokenizerError(f"has more than {most} fields in one", where=where)
        key, offset = _varint(data, offset, where)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, offset = _varint(data, offset, where)
            yield number, value
            continue
        if wire == _BYTES:
            size, offset = _varint(data, offset, where)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise _damaged(offset, where)
        if number == 0 or size > end - offset:
            raise _damaged(offset, where)
        yield number, data[offset : offset + size]
        offset += size


def _varint(data: bytes, offset: int, where: object) -> tuple[int, int]:
    value = shift = 0
    for at in range(offset, min(offset + 10, len(data))):
        byte = data[at]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at + 1
        shift += 7
    raise _damaged(offset, where)


def _damaged(offset: int, where: object) -> TokenizerError:
    return TokenizerError(
        f"is no SentencePiece model, or damaged at byte {offset}",
        where=where,
        remedy="Put the tokenizer.json of the model beside it",
    )
