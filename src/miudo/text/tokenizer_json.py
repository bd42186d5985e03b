"""What a `tokenizer.json` says, checked before any of it is used.

For: refusing files whose ids, merges, sizes or decoder cannot be right, naming the field. Other
files' tokenizers (`miudo.text.sentencepiece`, `miudo.text.word_rules`) take this form too.
Not for: encoding (`miudo.text.tokenizer`). A regular expression in the file is only capped in
length: its speed is the `tokenizers` library's.
Read next: `miudo.text.vocabulary` for the checks, `miudo.text.tokenizer`, which uses the facts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from miudo.errors import ModelFileError, TokenizerError
from miudo.limits import LIMITS, Limits
from miudo.strict_json import parse_object
from miudo.text.vocabulary import (
    Pair,
    WrittenMerges,
    check_merges,
    check_vocab,
    read_added_tokens,
    read_merges,
    tokens_by_id,
)

__all__ = ["SPACE", "TokenizerSpec", "check_tokenizer", "parse_tokenizer_json"]

SPACE = "\u2581"  # SentencePiece writes a space as this
_REGEX_CHARS = 8192
_DEPTH = 32


@dataclass(frozen=True, slots=True)
class TokenizerSpec:
    """A tokenizer as plain values, checked. `tokens` is indexed by id.

    `values` is the tokenizer.json, save that `merges` stand apart: the pairs that BPE joins, in
    order; empty for Unigram. `byte_level`: GPT-2's byte alphabet; otherwise SentencePiece
    pieces, with `byte_fallback` saying that `<0x0A>` stands for a byte. `adds_space`: encoding
    puts a space in front that decoding takes away. `added`: ids matched in raw text before the
    model sees it.
    `named`: what templates may call bos_token and the like, where the source says so; a token can
    have a name and yet begin no text. `where` names the source in errors.
    """

    values: Mapping[str, Any]
    tokens: tuple[str, ...]
    merges: Sequence[Pair]
    special: Mapping[str, int]
    added: Mapping[str, int]
    unk_id: int | None
    byte_level: bool
    byte_fallback: bool
    adds_space: bool
    named: Mapping[str, str] = field(default_factory=dict, compare=False)
    where: object = field(default=None, compare=False)

    def check_merges(self) -> None:
        """Raises TokenizerError for a merge of or into a token that is not in the vocabulary.

        For those who write a tokenizer on; building a `TextTokenizer` finds such merges as well.
        """
        check_merges(self.values["model"], self.merges, frozenset(self.tokens), self.where)

    def whole(self) -> dict[str, Any]:
        """Returns all values of the tokenizer.json.

        Merges are written "a b" where no token holds a space: that is read in half the time, by
        older libraries too.
        """
        model = self.values["model"]
        if model.get("type", "BPE") != "BPE":
            return dict(self.values)
        merges: list[Any]
        if isinstance(self.merges, WrittenMerges):
            merges = list(self.merges.written)
        else:
            merges = [f"{left} {right}" for left, right in self.merges]
            if any(merge.count(" ") != 1 for merge in merges):
                merges = list(map(list, self.merges))
        return {**self.values, "model": {**model, "merges": merges}}

    def to_json(self) -> bytes:
        """Returns the tokenizer.json."""
        return json.dumps(self.whole(), ensure_ascii=False).encode()


def parse_tokenizer_json(
    data: bytes, *, where: object = None, limits: Limits = LIMITS
) -> TokenizerSpec:
    """Returns the tokenizer in a tokenizer.json; TokenizerError names the field that is wrong."""
    return check_tokenizer(_load(data, where, limits), where=where, limits=limits)


def check_tokenizer(
    values: Mapping[str, Any], *, where: object = None, limits: Limits = LIMITS
) -> TokenizerSpec:
    """Returns the tokenizer that `values` describe as a tokenizer.json does.

    Raises TokenizerError, naming field and value, for ids with gaps or twice, merges that are no
    pairs, sizes above `limits`, and kinds whose bytes are not known.
    """
    model = _mapping(values, "model", where)
    vocab, unk_id = check_vocab(model, where)
    added, special = read_added_tokens(values, where)
    tokens = tokens_by_id(vocab, added, where, limits)
    is_bpe = model.get("type", "BPE") == "BPE"
    merges = read_merges(model, where) if is_bpe else []
    _check_patterns(values, where)
    byte_level, adds_space = _decoder_kind(values, where)
    return TokenizerSpec(
        values={**values, "model": {k: v for k, v in model.items() if k != "merges"}},
        tokens=tokens,
        merges=merges,
        special={t: added[t] for t in special},
        added=added,
        unk_id=unk_id,
        byte_level=byte_level,
        byte_fallback=bool(model.get("byte_fallback")),
        adds_space=adds_space,
        where=where,
    )


def _load(data: bytes, where: object, limits: Limits) -> dict[str, Any]:
    if len(data) > limits.json_bytes:
        raise TokenizerError(
            f"has {len(data)} bytes, the limit is {limits.json_bytes}", where=where
        )
    try:
        return parse_object(data, where, max_values=limits.tokenizer_values, deepest=None)
    except ModelFileError as error:
        raise TokenizerError(error.what, where=where) from error


def _mapping(values: Mapping[str, Any], key: str, where: object) -> dict[str, Any]:
    found = values.get(key)
    if not isinstance(found, dict):
        raise TokenizerError(
            f"{key} is missing or no object", where=where, remedy="Use a tokenizer.json file"
        )
    return found


def _check_patterns(values: Mapping[str, Any], where: object) -> None:
    for part in ("normalizer", "pre_tokenizer", "decoder", "post_processor"):
        for step in _steps(values.get(part), where, part):
            pattern = step.get("pattern")
            regex = pattern.get("Regex") if isinstance(pattern, dict) else None
            if isinstance(regex, str) and len(regex) > _REGEX_CHARS:
                raise TokenizerError(
                    f"a pattern of {part} has {len(regex)} characters, the limit is {_REGEX_CHARS}",
                    where=where,
                )


def _decoder_kind(values: Mapping[str, Any], where: object) -> tuple[bool, bool]:
    """Returns (byte level, takes a leading space away) for the decoders whose bytes are known."""
    byte_level = adds_space = spaces = False
    for step in _steps(values.get("decoder"), where, "decoder"):
        kind = step.get("type")
        if kind == "ByteLevel":
            byte_level = True
        elif kind == "Metaspace" and step.get("replacement", SPACE) == SPACE:
            spaces = True
            scheme = step.get("prepend_scheme", "always")
            adds_space = scheme != "never" and step.get("add_prefix_space", True) is True
        elif kind == "Replace" and (step.get("pattern"), step.get("content")) == (
            {"String": SPACE},
            " ",
        ):
            spaces = True
        elif kind == "Strip" and step.get("content") == " " and step.get("stop") == 0:
            adds_space = step.get("start") == 1
        elif kind not in ("Fuse", "ByteFallback"):
            raise _unknown_decoder(kind, where)
    if not byte_level and not spaces:
        raise _unknown_decoder(None, where)
    return byte_level, adds_space and not byte_level


def _unknown_decoder(kind: object, where: object) -> TokenizerError:
    return TokenizerError(
        f"decoder is {str(kind)[:40]!r}: its bytes are not known",
        where=where,
        remedy="Use a byte-level or SentencePiece-like tokenizer",
    )


def _steps(part: Any, where: object, name: str, depth: int = 0) -> Iterable[dict[str, Any]]:
    """Yields the plain steps of a part that may be a sequence of sequences."""
    if part is None:
        return
    if not isinstance(part, dict) or depth > _DEPTH:
        raise TokenizerError(f"{name} is no object, or too deep", where=where)
    if part.get("type") != "Sequence":
        yield part
        return
    for key in ("normalizers", "pretokenizers", "decoders", "processors"):
        inner = part.get(key, [])
        if not isinstance(inner, list):
            raise TokenizerError(f"{name}.{key} is no list", where=where)
        for step in inner:
            yield from _steps(step, where, name, depth + 1)
