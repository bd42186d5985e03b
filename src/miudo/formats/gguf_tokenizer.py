"""The tokenizer inside a GGUF file: `tokenizer.ggml.*` keys from a tokenizer, and back.

For: llama.cpp, which reads these keys alone, and files that others wrote, which have no more.
Beside them miudo writes the whole tokenizer.json, and holds the two against each other.
Not for: encoding text (`miudo.text.tokenizer`) or the container (`miudo.formats.gguf_reader`).
Read next: `miudo.text.word_rules`, `miudo.text.pieces`, `miudo.formats.gguf`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from miudo.config import ModelConfig
from miudo.errors import ModelFileError
from miudo.formats.gguf_reader import FLOAT32, INT32, ArrayAt, Container
from miudo.limits import LIMITS
from miudo.text.pieces import PieceKind, Pieces, added_tokens, piece_tokenizer
from miudo.text.special_tokens import TokenSources, role_tokens, with_special_tokens
from miudo.text.tokenizer_json import TokenizerSpec, check_tokenizer, parse_tokenizer_json
from miudo.text.vocabulary import WrittenMerges
from miudo.text.word_rules import WORD_RULES, byte_level_tokenizer, word_rule_name

__all__ = ["WHOLE_TOKENIZER", "read_tokenizer", "special_keys", "tokenizer_keys"]

WHOLE_TOKENIZER = "tokenizer.huggingface.json"
"""The key under which a tokenizer.json travels whole."""

_IDS = "tokenizer.ggml."
_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
# No program knows it: better refused than text cut in other places.
_NO_RULE = "miudo-unnamed"
_NOTHING = ("none", "no_vocab")


def tokenizer_keys(spec: TokenizerSpec, config: ModelConfig) -> dict[str, Any]:
    """Returns the `tokenizer.ggml.*` keys for a tokenizer; ids without a text are unused.

    Words cut in a way that llama.cpp has no name for are marked so that it refuses the file.
    Raises ModelFileError for a tokenizer that is no BPE, or larger than the model's vocabulary,
    TokenizerError for merges of absent tokens.
    """
    spec.check_merges()
    if spec.values["model"].get("type", "BPE") != "BPE":
        raise ModelFileError("is no BPE, only that is written", where="tokenizer.json: model.type")
    extra = config.vocab_size - len(spec.tokens)
    if extra < 0:
        raise ModelFileError(
            f"has id {len(spec.tokens) - 1}, the model {config.vocab_size} rows",
            where="tokenizer.json",
        )
    tokens = [*spec.tokens, *_padding(len(spec.tokens), config.vocab_size)]
    rule = word_rule_name(spec.values) or _NO_RULE
    keys: dict[str, Any] = {
        _IDS + "model": "gpt2" if spec.byte_level else "llama",
        _IDS + "pre": rule if spec.byte_level else "default",
        _IDS + "tokens": tokens,
        _IDS + "token_type": [*_kinds(spec), *[int(PieceKind.UNUSED)] * extra],
    }
    if spec.byte_level:
        keys[_IDS + "merges"] = _written(spec)
    else:
        keys[_IDS + "scores"] = _scores(tokens, spec)
        keys[_IDS + "add_space_prefix"] = spec.adds_space
        keys[_IDS + "remove_extra_whitespaces"] = False
    if spec.unk_id is not None:
        keys[_IDS + "unknown_token_id"] = spec.unk_id
    begin = spec.added.get(spec.named.get("bos_token", ""))
    if config.bos_id is None and begin is not None:  # templates name it, no text begins with it
        keys[_IDS + "bos_token_id"] = begin
    return keys


def _padding(begin: int, end: int) -> list[str]:
    """What llama.cpp's own converter calls rows without a token."""
    return [f"[PAD{i}]" for i in range(begin, end)]


def _kinds(spec: TokenizerSpec) -> list[int]:
    kinds = [int(PieceKind.NORMAL)] * len(spec.tokens)
    if spec.byte_fallback:
        for i, text in enumerate(spec.tokens):
            if _BYTE_TOKEN.fullmatch(text):
                kinds[i] = int(PieceKind.BYTE)
    for text, i in spec.added.items():
        kinds[i] = int(PieceKind.CONTROL if text in spec.special else PieceKind.USER_DEFINED)
    if spec.unk_id is not None:
        kinds[spec.unk_id] = int(PieceKind.UNKNOWN)
    return kinds


def _written(spec: TokenizerSpec) -> list[str]:
    if isinstance(spec.merges, WrittenMerges):
        return list(spec.merges.written)
    return [f"{left} {right}" for left, right in spec.merges]


def _scores(tokens: Sequence[str], spec: TokenizerSpec) -> list[float]:
    """llama.cpp merges the pair of highest score first: minus the rank of its merge."""
    rank: dict[str, int] = {}
    for i, (left, right) in enumerate(spec.merges):
        rank.setdefault(left + right, i)
    return [-float(rank.get(token, len(spec.merges))) for token in tokens]


def special_keys(config: ModelConfig) -> dict[str, Any]:
    """Returns the keys that name begin, end and padding.

    Encoding adds no token in miudo; whoever runs a model that has a bos puts it in front.
    """
    ends = dict(zip(("eos", "eot", "eom"), config.eos_ids, strict=False))
    ids = {"bos": config.bos_id, "padding": config.pad_id} | ends
    keys: dict[str, Any] = {f"{_IDS}{k}_token_id": v for k, v in ids.items() if v is not None}
    if len(config.eos_ids) > len(ends):  # the format has names for three
        keys["miudo.eos_ids"] = list(config.eos_ids)
    keys[_IDS + "add_bos_token"] = config.bos_id is not None
    keys[_IDS + "add_eos_token"] = False
    return keys


def read_tokenizer(container: Container, config: ModelConfig) -> TokenizerSpec | None:
    """Returns the file's tokenizer, rebuilt where another program wrote no whole one, or None.

    Raises ModelFileError for arrays of another type or length than the model's rows, for two
    tokenizers that disagree, and for kinds of tokenizer and names of word rules that miudo does
    not know; TokenizerError for a vocabulary that cannot be.
    """
    keys, where = container.keys, f"{container.path}: {_IDS}"
    for key, kind in (("scores", FLOAT32), ("token_type", INT32)):
        at = keys.get(_IDS + key)
        if at is not None and (
            not isinstance(at, ArrayAt) or (at.kind, at.count) != (kind, config.vocab_size)
        ):
            raise ModelFileError(
                f"is not {config.vocab_size} values of type {kind}", where=where + key
            )
    text = container.text(WHOLE_TOKENIZER)
    source = f"{container.path}: {WHOLE_TOKENIZER}"
    whole = None if text is None else parse_tokenizer_json(text.encode(), where=source)
    if _IDS + "tokens" not in keys:
        return whole
    _check_counts(container, config)
    tokens = container.strings(_IDS + "tokens")
    merges = container.strings(_IDS + "merges") if _IDS + "merges" in keys else None
    if whole is not None:
        _check_agreement(whole, tokens, merges)
        return dataclasses.replace(whole, named=_named(container, whole.tokens))
    if keys.get(_IDS + "model") in _NOTHING:
        return None
    found = _rebuilt(container, tokens, merges, config)
    return dataclasses.replace(found, named=_named(container, found.tokens))


def _check_counts(container: Container, config: ModelConfig) -> None:
    """Raises ModelFileError for more texts than the model can have, before they are read."""
    tokens, merges = (container.keys.get(_IDS + key) for key in ("tokens", "merges"))
    if isinstance(tokens, ArrayAt) and tokens.count != config.vocab_size:
        raise ModelFileError(
            f"has {tokens.count} tokens, the model {config.vocab_size} rows",
            where=f"{container.path}: {_IDS}tokens",
        )
    if isinstance(merges, ArrayAt) and merges.count > LIMITS.vocab_size:
        raise ModelFileError(
            f"has {merges.count} merges, allowed {LIMITS.vocab_size}",
            where=f"{container.path}: {_IDS}merges",
        )


def _check_agreement(
    whole: TokenizerSpec, tokens: Sequence[str], merges: Sequence[str] | None
) -> None:
    """Raises ModelFileError if tokenizer.json and the `tokenizer.ggml` arrays map differently."""
    n = len(whole.tokens)
    expected = [*whole.tokens, *_padding(n, len(tokens))]
    if expected != tokens:
        differ = (i for i, (a, b) in enumerate(zip(expected, tokens, strict=False)) if a != b)
        raise _disagree(f"id {next(differ, len(tokens))}", whole.where)
    if merges is not None and _written(whole) != merges:
        raise _disagree("the merges", whole.where)


def _disagree(what: str, where: object) -> ModelFileError:
    return ModelFileError(
        f"its two tokenizers disagree about {what}",
        where=where,
        remedy="Write the file again from its source",
    )


def _rebuilt(
    container: Container, tokens: list[str], merges: list[str] | None, config: ModelConfig
) -> TokenizerSpec:
    """Returns a tokenizer made of another program's keys."""
    keys, where = container.keys, f"{container.path}: {_IDS}"
    if _IDS + "token_type" not in keys:
        raise ModelFileError("is missing", where=where + "token_type")
    kinds = container.numbers(_IDS + "token_type", {INT32}).tolist()
    while tokens and kinds[-1] == PieceKind.UNUSED and tokens[-1] == f"[PAD{len(tokens) - 1}]":
        tokens.pop()
        kinds.pop()
    ids = dict(zip(tokens, range(len(tokens)), strict=True))
    if len(ids) != len(tokens):
        twice = next(token for i, token in enumerate(tokens) if ids[token] != i)
        raise ModelFileError(f"token {twice[:60]!r} stands twice", where=where + "tokens")
    model = keys.get(_IDS + "model")
    if model == "gpt2":
        values = _byte_level(keys.get(_IDS + "pre"), ids, kinds, merges, where)
    elif model == "llama":
        values = _pieces(container, tokens, kinds, where)
    else:
        raise ModelFileError(
            f"is {str(model)[:40]!r}, which this miudo cannot rebuild",
            where=where + "model",
            remedy="Open the model's folder, with its tokenizer.json",
        )
    sources = TokenSources(roles=role_tokens(config, tokens))
    values = with_special_tokens(values, sources, container.path)
    return check_tokenizer(values, where=container.path)


def _named(container: Container, tokens: Sequence[str]) -> dict[str, str]:
    """Tokens by the names that templates have for them, whether or not one begins a text."""
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {name: container.keys.get(f"{_IDS}{key}_token_id") for name, key in names.items()}
    return {name: tokens[i] for name, i in ids.items() if type(i) is int and 0 <= i < len(tokens)}


def _byte_level(
    name: object,
    ids: Mapping[str, int],
    kinds: Sequence[int],
    merges: list[str] | None,
    where: str,
) -> dict[str, Any]:
    rule = WORD_RULES.get(str(name))
    if rule is None or merges is None:
        what = "merges" if rule is not None else "pre"
        raise ModelFileError(
            "is missing" if name is None or rule is not None else f"is {str(name)[:40]!r}",
            where=where + what,
            remedy=f"Open the model's folder instead; known are {', '.join(WORD_RULES)}",
        )
    return byte_level_tokenizer(rule, ids, merges, added_tokens(list(ids), kinds))


def _pieces(
    container: Container, tokens: Sequence[str], kinds: Sequence[int], where: str
) -> dict[str, Any]:
    if _IDS + "scores" not in container.keys:
        raise ModelFileError("is missing", where=where + "scores")
    scores = container.numbers(_IDS + "scores", {FLOAT32}).tolist()[: len(tokens)]
    if any(score != score for score in scores):
        raise ModelFileError("holds something that is no number", where=where + "scores")
    adds_space = container.keys.get(_IDS + "add_space_prefix") is not False
    values = piece_tokenizer(
        Pieces(tokens, scores, kinds, adds_space=adds_space, where=container.path)
    )
    if container.keys.get("general.architecture") == "phi3":
        # Its turns' tokens take the white space after them along, which GGUF has no field for.
        bare = ("<unk>", "<s>", "<|endoftext|>")
        for token in values["added_tokens"]:
            token["rstrip"] = token["content"] not in bare
    return values
