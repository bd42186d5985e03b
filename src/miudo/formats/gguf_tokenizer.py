"""The tokenizer inside a GGUF file: `tokenizer.ggml.*` keys from a tokenizer.json, and back.

For: llama.cpp, which reads these keys alone; miudo reads the whole `tokenizer.huggingface.json`
that travels beside them, and holds the two against each other.
Not for: encoding text (`miudo.text.tokenizer`) or the container (`miudo.formats.gguf_reader`).
Read next: `miudo.formats.gguf`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from miudo.config import ModelConfig
from miudo.errors import ModelFileError
from miudo.formats.gguf_reader import FLOAT32, INT32, ArrayAt, Container
from miudo.formats.strict_json import parse_object
from miudo.text.tokenizer_json import TokenizerFacts, parse_tokenizer_json

__all__ = [
    "WHOLE_TOKENIZER",
    "read_tokenizer",
    "rebuilt",
    "special_keys",
    "tokenizer_keys",
    "vocabulary",
]

WHOLE_TOKENIZER = "tokenizer.huggingface.json"
"""The key under which a tokenizer.json travels whole."""

_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)

_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_GPT2 = _BYTES | {"use_regex": True}
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def _split(pattern: str) -> dict[str, Any]:
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [cut, _BYTES]}


# llama.cpp cuts text into words by rules that it has under these names, and by no others.
_WORD_RULES: Mapping[str, Mapping[str, Any]] = {
    "gpt-2": _GPT2,
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, _GPT2],
    },
    "qwen2": _split(_QWEN2),
    "llama-bpe": _split(_LLAMA3),
}
# No program knows it: better refused than text cut in other places.
_NO_RULE = "miudo-unnamed"


def tokenizer_keys(tokenizer_json: bytes, config: ModelConfig) -> dict[str, Any]:
    """Returns the `tokenizer.ggml.*` keys for `tokenizer_json`; ids without a text are unused.

    Words cut in a way that llama.cpp has no name for are marked so that it refuses the file.
    Raises TokenizerError for a tokenizer that cannot be, ModelFileError for one that is no BPE,
    or larger than the model's vocabulary.
    """
    facts = parse_tokenizer_json(tokenizer_json, where="tokenizer.json")
    parsed = parse_object(tokenizer_json, "tokenizer.json")
    if parsed["model"].get("type", "BPE") != "BPE":
        raise ModelFileError("is no BPE, only that is written", where="tokenizer.json: model.type")
    extra = config.vocab_size - len(facts.tokens)
    if extra < 0:
        raise ModelFileError(
            f"has id {len(facts.tokens) - 1}, the model {config.vocab_size} rows",
            where="tokenizer.json",
        )
    padding = [f"[PAD{len(facts.tokens) + i}]" for i in range(extra)]
    merges = _merges(parsed["model"])
    keys: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2" if facts.byte_level else "llama",
        "tokenizer.ggml.pre": _word_rule(parsed) if facts.byte_level else "default",
        "tokenizer.ggml.tokens": [*facts.tokens, *padding],
        "tokenizer.ggml.token_type": [*_types(facts), *[_UNUSED] * extra],
    }
    if facts.byte_level:
        keys["tokenizer.ggml.merges"] = merges
    else:
        keys["tokenizer.ggml.scores"] = _scores([*facts.tokens, *padding], merges)
        keys["tokenizer.ggml.add_space_prefix"] = facts.adds_space
        keys["tokenizer.ggml.remove_extra_whitespaces"] = False
    if facts.unk_id is not None:
        keys["tokenizer.ggml.unknown_token_id"] = facts.unk_id
    return keys


def vocabulary(tokenizer_json: bytes, where: object = "tokenizer.json") -> dict[int, str]:
    """Returns id to text, added tokens included. Raises ModelFileError where there is none."""
    return _texts(parse_object(tokenizer_json, where), where)


def _texts(parsed: Mapping[str, Any], where: object) -> dict[int, str]:
    try:
        vocab, added = parsed["model"]["vocab"], parsed.get("added_tokens") or []
        pairs = (
            vocab.items() if isinstance(vocab, dict) else ((p[0], i) for i, p in enumerate(vocab))
        )
        texts = {int(i): str(t) for t, i in pairs}
        return texts | {int(t["id"]): str(t["content"]) for t in added}
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ModelFileError(f"has no readable vocabulary ({error})", where=where) from error


def _types(facts: TokenizerFacts) -> list[int]:
    types = [_NORMAL] * len(facts.tokens)
    for i, text in enumerate(facts.tokens):
        if facts.byte_fallback and _BYTE_TOKEN.fullmatch(text):
            types[i] = _BYTE
    for text, i in facts.added.items():
        types[i] = _CONTROL if text in facts.special else _USER_DEFINED
    if facts.unk_id is not None:
        types[facts.unk_id] = _UNKNOWN
    return types


def _merges(model: Mapping[str, Any]) -> list[str]:
    try:
        return [m if isinstance(m, str) else " ".join(m) for m in model.get("merges") or []]
    except TypeError as error:
        raise ModelFileError("model.merges are no pairs", where="tokenizer.json") from error


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """llama.cpp merges the pair of highest score first: minus the rank of its merge."""
    rank: dict[str, int] = {}
    for i, merge in enumerate(merges):
        rank.setdefault(merge.replace(" ", ""), i)
    return [-float(rank.get(token, len(merges))) for token in tokens]


def _word_rule(parsed: Mapping[str, Any]) -> str:
    found = _what_counts(parsed.get("pre_tokenizer"))
    names = (name for name, rule in _WORD_RULES.items() if _what_counts(rule) == found)
    return next(names, _NO_RULE)


def _what_counts(rule: Any) -> Any:
    """A pre-tokenizer without the field that changes offsets only, never ids."""
    if isinstance(rule, dict):
        return {k: _what_counts(v) for k, v in rule.items() if k != "trim_offsets"}
    return [_what_counts(v) for v in rule] if isinstance(rule, list) else rule


def special_keys(config: ModelConfig) -> dict[str, Any]:
    """Returns the keys that name begin, end and padding.

    Encoding adds no token in miudo; whoever runs a model that has a bos puts it in front.
    """
    ends = dict(zip(("eos", "eot", "eom"), config.eos_ids, strict=False))
    ids = {"bos": config.bos_id, "padding": config.pad_id} | ends
    keys: dict[str, Any] = {
        f"tokenizer.ggml.{k}_token_id": v for k, v in ids.items() if v is not None
    }
    if len(config.eos_ids) > len(ends):  # the format has names for three
        keys["miudo.eos_ids"] = list(config.eos_ids)
    keys["tokenizer.ggml.add_bos_token"] = config.bos_id is not None
    keys["tokenizer.ggml.add_eos_token"] = False
    return keys


def _check_agreement(
    tokenizer_json: bytes, tokens: Sequence[str], merges: Sequence[str] | None, where: object
) -> None:
    """Raises ModelFileError if tokenizer.json and the `tokenizer.ggml` arrays map differently."""
    where = f"{where}: {WHOLE_TOKENIZER}"
    parsed = parse_object(tokenizer_json, where)
    texts = _texts(parsed, where)
    for i, text in texts.items():
        if not 0 <= i < len(tokens) or tokens[i] != text:
            raise _disagree(f"id {i}", where)
    odd = (i for i, token in enumerate(tokens) if i not in texts and token != f"[PAD{i}]")
    if (extra := next(odd, None)) is not None:
        raise _disagree(f"id {extra}", where)
    if merges is not None and _merges(parsed["model"]) != list(merges):
        raise _disagree("the merges", where)


def _disagree(what: str, where: object) -> ModelFileError:
    return ModelFileError(
        f"its two tokenizers disagree about {what}",
        where=where,
        remedy="Write the file again from its source",
    )


def read_tokenizer(container: Container, vocab_size: int) -> bytes | None:
    """Returns the file's tokenizer.json, rebuilt where another program wrote none, or None.

    Raises ModelFileError for arrays of another type or length than `vocab_size`, and for two
    tokenizers that disagree.
    """
    ids, keys = "tokenizer.ggml.", container.keys
    whole = container.text(WHOLE_TOKENIZER)
    for key, kind in (("scores", FLOAT32), ("token_type", INT32)):
        at = keys.get(ids + key)
        if at is not None and (
            not isinstance(at, ArrayAt) or (at.kind, at.count) != (kind, vocab_size)
        ):
            raise ModelFileError(
                f"is not {vocab_size} values of type {kind}",
                where=f"{container.path}: {ids}{key}",
            )
    if ids + "tokens" not in keys:
        return None if whole is None else whole.encode()
    tokens = container.strings(ids + "tokens")
    if len(tokens) != vocab_size:
        raise ModelFileError(
            f"has {len(tokens)} tokens, the model {vocab_size} rows",
            where=f"{container.path}: {ids}tokens",
        )
    merges = container.strings(ids + "merges") if ids + "merges" in keys else None
    if whole is not None:
        _check_agreement(whole.encode(), tokens, merges, container.path)
        return whole.encode()
    if keys.get(ids + "model") != "gpt2" or merges is None or ids + "token_type" not in keys:
        return None
    types = container.numbers(ids + "token_type", {INT32}).tolist()
    return rebuilt(keys.get(ids + "pre"), tokens, merges, types)


def rebuilt(
    rule: object, tokens: Sequence[str], merges: Sequence[str], types: Sequence[int]
) -> bytes | None:
    """Returns a byte-level tokenizer.json made of another program's keys, None if unknown.

    `rule` is `tokenizer.ggml.pre`, the name of how words are cut.
    """
    if rule not in _WORD_RULES or len(types) != len(tokens):
        return None
    special = {_CONTROL: True, _UNKNOWN: True, _USER_DEFINED: False, _UNUSED: True}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": i, "content": token, **plain, "special": special[kind]}
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in special
    ]
    model = {
        "type": "BPE",
        "vocab": {token: i for i, token in enumerate(tokens)},
        "merges": list(merges),
        "ignore_merges": rule == "llama-bpe",
    }
    values = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if rule == "qwen2" else None,
        "pre_tokenizer": _WORD_RULES[str(rule)],
        "post_processor": None,
        "decoder": _GPT2,
        "model": model,
    }
    return json.dumps(values, ensure_ascii=False).encode()
