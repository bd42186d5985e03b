"""What a `tokenizer.json` says, checked before any of it is used.

For: refusing files whose ids, merges, sizes or decoder cannot be right, naming the field.
Not for: encoding (`miudo.text.tokenizer`). A regular expression in the file is only capped in
length: its speed is the `tokenizers` library's.
Read next: `miudo.text.tokenizer`, which uses the facts found here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from miudo.errors import TokenizerError
from miudo.limits import LIMITS, Limits

__all__ = ["SPACE", "TokenizerFacts", "parse_tokenizer_json"]

SPACE = "\u2581"  # SentencePiece writes a space as this
_REGEX_CHARS = 8192
_DEPTH = 32


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """Plain facts of a tokenizer. `tokens` is indexed by id.

    `byte_level`: GPT-2's byte alphabet; otherwise SentencePiece pieces, with `byte_fallback`
    saying that `<0x0A>` stands for a byte. `adds_space`: encoding puts a space in front that
    decoding takes away. `added`: ids matched in raw text before the model sees it.
    """

    tokens: tuple[str, ...]
    special: Mapping[str, int]
    added: Mapping[str, int]
    unk_id: int | None
    byte_level: bool
    byte_fallback: bool
    adds_space: bool


def parse_tokenizer_json(
    data: bytes, *, where: object = None, limits: Limits = LIMITS
) -> TokenizerFacts:
    """Returns the facts in a tokenizer.json; TokenizerError names the field that is wrong."""
    values = _load(data, where, limits)
    model = _mapping(values, "model", where)
    vocab, unk_id = _vocab(model, where)
    added, special = _added_tokens(values, where)
    tokens = _by_id(vocab, added, where, limits)
    if model.get("type", "BPE") == "BPE":
        _check_merges(model, vocab, where)
    _check_patterns(values, where)
    byte_level, adds_space = _decoder_kind(values, where)
    return TokenizerFacts(
        tokens=tokens,
        special={t: added[t] for t in special},
        added=added,
        unk_id=unk_id,
        byte_level=byte_level,
        byte_fallback=bool(model.get("byte_fallback")),
        adds_space=adds_space,
    )


def _load(data: bytes, where: object, limits: Limits) -> dict[str, Any]:
    if len(data) > limits.json_bytes:
        raise TokenizerError(
            f"has {len(data)} bytes, the limit is {limits.json_bytes}", where=where
        )
    try:
        values = json.loads(data, object_pairs_hook=_unique_keys)
    except TokenizerError as error:
        raise TokenizerError(error.what, where=where) from None
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"not JSON ({error})", where=where) from error
    if not isinstance(values, dict):
        raise TokenizerError("not a JSON object", where=where)
    return values


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        raise TokenizerError(f"key {twice[:60]!r} stands twice in one object")
    return found


def _mapping(values: Mapping[str, Any], key: str, where: object) -> dict[str, Any]:
    found = values.get(key)
    if not isinstance(found, dict):
        raise TokenizerError(
            f"{key} is missing or no object", where=where, remedy="Use a tokenizer.json file"
        )
    return found


def _vocab(model: Mapping[str, Any], where: object) -> tuple[dict[str, int], int | None]:
    kind = model.get("type", "BPE")
    vocab = model.get("vocab")
    if kind == "BPE" and isinstance(vocab, dict):
        unk = model.get("unk_token")
        return vocab, vocab.get(unk) if isinstance(unk, str) else None
    if kind == "Unigram" and isinstance(vocab, list):
        return _unigram_vocab(vocab, where), model.get("unk_id")
    raise TokenizerError(
        f"model.type is {str(kind)[:40]!r}",
        where=where,
        remedy="Use a BPE or Unigram tokenizer with its vocab",
    )


def _unigram_vocab(vocab: list[Any], where: object) -> dict[str, int]:
    found: dict[str, int] = {}
    for i, item in enumerate(vocab):
        if not isinstance(item, list) or len(item) != 2 or not isinstance(item[0], str):
            raise TokenizerError(f"model.vocab[{i}] is no pair of piece and score", where=where)
        piece, score = item
        if isinstance(score, bool) or not isinstance(score, int | float) or math.isnan(score):
            raise TokenizerError(f"model.vocab[{i}] has the score {score!r:.40}", where=where)
        if piece in found:
            raise TokenizerError(f"token {piece[:60]!r} stands twice in model.vocab", where=where)
        found[piece] = i
    return found


def _added_tokens(values: Mapping[str, Any], where: object) -> tuple[dict[str, int], list[str]]:
    listed = values.get("added_tokens") or []
    if not isinstance(listed, list):
        raise TokenizerError("added_tokens is no list", where=where)
    added: dict[str, int] = {}
    special = []
    for i, item in enumerate(listed):
        if not isinstance(item, dict) or not isinstance(item.get("content"), str):
            raise TokenizerError(f"added_tokens[{i}] has no content", where=where)
        content = item["content"]
        if content in added:
            raise TokenizerError(
                f"token {content[:60]!r} stands twice in added_tokens", where=where
            )
        added[content] = item.get("id", -1)
        if item.get("special"):
            special.append(content)
    return added, special


def _by_id(
    vocab: Mapping[str, int], added: Mapping[str, int], where: object, limits: Limits
) -> tuple[str, ...]:
    """Ids must run from 0 without a gap: a model's rows are counted by them."""
    for token, number in added.items():
        if vocab.get(token, number) != number:
            raise TokenizerError(
                f"token {token[:60]!r} has id {number} in added_tokens, {vocab[token]} in vocab",
                where=where,
            )
    everything = {**vocab, **added}
    n = len(everything)
    if not 0 < n <= limits.vocab_size:
        raise TokenizerError(f"has {n} tokens, allowed 1 to {limits.vocab_size}", where=where)
    tokens: list[str | None] = [None] * n
    for token, number in everything.items():
        if type(number) is not int or number < 0:
            raise TokenizerError(f"token {token[:60]!r} has the id {number!r:.40}", where=where)
        if number >= n:
            raise TokenizerError(
                f"token {token[:60]!r} has id {number}, but there are only {n} tokens",
                where=where,
                remedy="Ids run from 0 without a gap",
            )
        if tokens[number] is not None:
            raise TokenizerError(
                f"id {number} is given to {tokens[number]!r:.60} and {token!r:.60}", where=where
            )
        _check_token(token, number, where, limits)
        tokens[number] = token
    return tuple(t for t in tokens if t is not None)


def _check_token(token: str, number: int, where: object, limits: Limits) -> None:
    if not token:
        raise TokenizerError(f"the token with id {number} is empty", where=where)
    # A character is at most four bytes; the exact count is only needed near the limit.
    if len(token) * 4 > limits.token_bytes or not token.isascii():
        try:
            size = len(token.encode())
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"the token with id {number} is not valid Unicode ({error.reason})", where=where
            ) from error
        if size > limits.token_bytes:
            raise TokenizerError(
                f"the token with id {number} has {size} bytes, the limit is {limits.token_bytes}",
                where=where,
            )


def _check_merges(model: Mapping[str, Any], vocab: Mapping[str, int], where: object) -> None:
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise TokenizerError("model.merges is missing or no list", where=where)
    skip = len(model.get("continuing_subword_prefix") or "")
    for i, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(t, str) for t in pair)
        ):
            raise TokenizerError(f"model.merges[{i}] is no pair of tokens", where=where)
        left, right = pair
        # Joined tokens are longer than both parts, so merges that are all in the vocabulary
        # can make no cycle.
        for token in (left, right, left + right[skip:]):
            if token not in vocab:
                raise TokenizerError(
                    f"model.merges[{i}] names {token[:60]!r}, which is not in the vocabulary",
                    where=where,
                )


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
