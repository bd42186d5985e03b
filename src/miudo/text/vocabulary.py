"""Tokens, ids and merges of a tokenizer, held against each other.

For: refusing vocabularies that no model's rows could be counted by, naming token and id.
Not for: what surrounds them in a file (`miudo.text.tokenizer_json`).
Read next: `miudo.text.tokenizer_json`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, NoReturn, overload

from miudo.errors import TokenizerError
from miudo.limits import Limits

__all__ = [
    "Pair",
    "WrittenMerges",
    "check_merges",
    "check_vocab",
    "read_added_tokens",
    "read_merges",
    "tokens_by_id",
]

Pair = tuple[str, str]


class WrittenMerges(Sequence[Pair]):
    """Merges as files write them, "a b", which become pairs only where somebody asks for pairs.

    Of 150,000 that takes longer than all else that is done to read them. Every text must hold
    one space, and something on either side.
    """

    def __init__(self, written: Sequence[str]) -> None:
        self.written = written

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Pair]: ...
    def __getitem__(self, index: int | slice) -> Pair | Sequence[Pair]:
        """Returns a pair, or several."""
        if isinstance(index, slice):
            return WrittenMerges(self.written[index])
        return _pair(self.written[index])

    def __len__(self) -> int:
        return len(self.written)

    def __iter__(self) -> Iterator[Pair]:
        return map(_pair, self.written)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, WrittenMerges):
            return self.written == other.written
        return list(self) == other

    __hash__ = None  # type: ignore[assignment]


def _pair(written: str) -> Pair:
    left, _, right = written.partition(" ")
    return left, right


def check_vocab(model: Mapping[str, Any], where: object) -> tuple[dict[str, int], int | None]:
    """Returns the ids by token and the id of the unknown token, of a BPE or Unigram model."""
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


def read_added_tokens(values: Mapping[str, Any], where: object) -> tuple[dict[str, int], list[str]]:
    """Returns the ids of all tokens matched in raw text, and those of them that are special."""
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


def tokens_by_id(
    vocab: Mapping[str, int], added: Mapping[str, int], where: object, limits: Limits
) -> tuple[str, ...]:
    """Returns all tokens; ids must run from 0 without a gap: a model's rows are counted by them.

    A vocabulary of 150,000 passes through whole-table operations alone; only one that is wrong
    is gone through token by token, for the error's sake.
    """
    for token, number in added.items():
        if vocab.get(token, number) != number:
            raise TokenizerError(
                f"token {token[:60]!r} has id {number} in added_tokens, {vocab[token]} in vocab",
                where=where,
            )
    everything = vocab if added.keys() <= vocab.keys() else {**vocab, **added}
    n = len(everything)
    if not 0 < n <= limits.vocab_size:
        raise TokenizerError(f"has {n} tokens, allowed 1 to {limits.vocab_size}", where=where)
    ids = list(everything.values())
    whole = set(map(type, ids)) == {int}
    if whole and ids == list(range(n)):
        tokens = tuple(everything)
    elif whole and len(set(ids)) == n and min(ids) >= 0 and max(ids) < n:
        tokens = tuple(sorted(everything, key=everything.__getitem__))
    else:
        _refuse_ids(everything, where)
    # A character is at most four bytes; the exact count is only needed near the limit.
    if "" in everything or max(map(len, tokens)) * 4 > limits.token_bytes or not _encodes(tokens):
        for number, token in enumerate(tokens):
            _check_token(token, number, where, limits)
    return tokens


def _encodes(tokens: tuple[str, ...]) -> bool:
    try:
        "".join(tokens).encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_ids(everything: Mapping[str, int], where: object) -> NoReturn:
    n, seen = len(everything), dict[int, str]()
    for token, number in everything.items():
        if type(number) is not int or number < 0:
            raise TokenizerError(f"token {token[:60]!r} has the id {number!r:.40}", where=where)
        if number >= n:
            raise TokenizerError(
                f"token {token[:60]!r} has id {number}, but there are only {n} tokens",
                where=where,
                remedy="Ids run from 0 without a gap",
            )
        if number in seen:
            raise TokenizerError(
                f"id {number} is given to {seen[number]!r:.60} and {token!r:.60}", where=where
            )
        seen[number] = token
    raise AssertionError("ids that are all different and in range run without a gap")


def _check_token(token: str, number: int, where: object, limits: Limits) -> None:
    if not token:
        raise TokenizerError(f"the token with id {number} is empty", where=where)
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


def read_merges(model: Mapping[str, Any], where: object) -> Sequence[Pair]:
    """Returns the pairs of tokens that are joined, in order; `check_merges` looks them up."""
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise TokenizerError("model.merges is missing or no list", where=where)
    kinds = set(map(type, merges))
    pairs: list[Any] = []
    if kinds == {str}:
        if _well_written(merges):
            return WrittenMerges(merges)
        pairs = [tuple(merge.split(" ")) for merge in merges]
    elif kinds == {list}:
        pairs = list(map(tuple, merges))
    elif kinds:
        i = next((i for i, merge in enumerate(merges) if type(merge) is not type(merges[0])), 0)
        raise TokenizerError(f"model.merges[{i}] is no pair of tokens", where=where)
    texts = set(map(type, itertools.chain.from_iterable(pairs)))
    # An empty token would join without end.
    if not texts <= {str} or not set(map(len, pairs)) <= {2} or not all(map(all, pairs)):
        wrong = (
            i
            for i, pair in enumerate(pairs)
            if len(pair) != 2 or {*map(type, pair)} != {str} or not all(pair)
        )
        raise TokenizerError(f"model.merges[{next(wrong)}] is no pair of tokens", where=where)
    return pairs


def _well_written(merges: list[str]) -> bool:
    """Whether each holds one space, inside; False too for some that are right all the same."""
    lines = "\n".join(["", *merges, ""])
    inside = "\n " not in lines and " \n" not in lines
    return inside and set(map(str.count, merges, itertools.repeat(" "))) == {1}


def _all_known(merges: Sequence[str], vocab: Container[str]) -> bool:
    """Whether all parts and all they join to are in the vocabulary; False too where unsure."""
    lines = "\n".join(merges)
    joined = lines.replace(" ", "").split("\n")
    parts = set(lines.replace("\n", " ").split(" "))
    known = vocab.__contains__
    # A line end inside a token makes more lines than merges.
    return len(joined) == len(merges) and all(map(known, joined)) and all(map(known, parts))


def check_merges(
    model: Mapping[str, Any], merges: Sequence[Pair], vocab: Container[str], where: object
) -> None:
    """Raises TokenizerError for a merge of or into a token that is not in the vocabulary.

    Joined tokens are longer than both parts, so merges that are all in the vocabulary can make
    no cycle.
    """
    skip = len(model.get("continuing_subword_prefix") or "")
    if isinstance(merges, WrittenMerges) and not skip and _all_known(merges.written, vocab):
        return
    for i, (left, right) in enumerate(merges):
        for token in (left, right, left + right[skip:]):
            if token not in vocab:
                raise TokenizerError(
                    f"model.merges[{i}] names {token[:60]!r}, which is not in the vocabulary",
                    where=where,
                )
