"""A tokenizer as GGUF metadata, so that llama.cpp cuts text as miudo does.

For: byte-level BPE ("gpt2") and SentencePiece-like BPE with byte fallback ("llama").
Not for: miudo's own reading, which takes the whole tokenizer.json from its own key.
Read next: `miudo.text.tokenizer`.
"""

from __future__ import annotations

import json
from typing import Any

from miudo.config import ModelConfig
from miudo.errors import ModelFileError

__all__ = ["tokenizer_keys", "vocabulary"]

_NORMAL, _UNKNOWN, _CONTROL, _UNUSED, _BYTE = 1, 2, 3, 5, 6


def tokenizer_keys(tokenizer_json: bytes, config: ModelConfig) -> dict[str, Any]:
    """Returns the `tokenizer.ggml.*` keys for `tokenizer_json`; ids without a text are unused.

    Raises ModelFileError for a tokenizer that is no BPE, or larger than the model's vocabulary.
    """
    parsed = json.loads(tokenizer_json)
    model = parsed.get("model", {})
    if model.get("type") != "BPE":
        raise ModelFileError(f"tokenizer of type {model.get('type')!r}, only BPE is written")
    texts = vocabulary(tokenizer_json)
    if texts and max(texts) >= config.vocab_size:
        raise ModelFileError(
            f"tokenizer has id {max(texts)}, the model {config.vocab_size} words",
            where="tokenizer.json",
        )
    special = {t["id"] for t in parsed.get("added_tokens", []) if t.get("special")}
    fallback = bool(model.get("byte_fallback"))
    unknown = model.get("vocab", {}).get(model.get("unk_token"))
    tokens, types = [], []
    for i in range(config.vocab_size):
        text = texts.get(i)
        tokens.append(f"[unused{i}]" if text is None else text)
        types.append(_type(i, text, special, unknown, fallback=fallback))
    merges = [m if isinstance(m, str) else " ".join(m) for m in model.get("merges", [])]
    keys: dict[str, Any] = {
        "tokenizer.ggml.model": "llama" if fallback else "gpt2",
        "tokenizer.ggml.pre": "default" if fallback else "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
    }
    if fallback:
        keys["tokenizer.ggml.scores"] = _scores(tokens, merges)
        keys["tokenizer.ggml.add_space_prefix"] = True
    else:
        keys["tokenizer.ggml.merges"] = merges
    return keys | _special_keys(config, unknown)


def vocabulary(tokenizer_json: bytes) -> dict[int, str]:
    """Returns id to text, added tokens included."""
    parsed = json.loads(tokenizer_json)
    texts = {i: t for t, i in parsed.get("model", {}).get("vocab", {}).items()}
    return texts | {t["id"]: t["content"] for t in parsed.get("added_tokens", [])}


def _type(
    i: int, text: str | None, special: set[int], unknown: int | None, *, fallback: bool
) -> int:
    if text is None:
        return _UNUSED
    if i == unknown:
        return _UNKNOWN
    if i in special:
        return _CONTROL
    is_byte = fallback and len(text) == 6 and text.startswith("<0x") and text.endswith(">")
    return _BYTE if is_byte else _NORMAL


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """llama.cpp merges the pair of highest score first: minus the rank of its merge."""
    rank: dict[str, int] = {}
    for i, merge in enumerate(merges):
        rank.setdefault(merge.replace(" ", ""), i)
    return [-float(rank.get(token, len(merges))) for token in tokens]


def _special_keys(config: ModelConfig, unknown: int | None) -> dict[str, Any]:
    ids = {
        "bos_token_id": config.bos_id,
        "eos_token_id": config.eos_ids[0] if config.eos_ids else None,
        "padding_token_id": config.pad_id,
        "unknown_token_id": unknown,
    }
    keys: dict[str, Any] = {f"tokenizer.ggml.{k}": v for k, v in ids.items() if v is not None}
    keys["tokenizer.ggml.add_bos_token"] = config.bos_id is not None
    keys["tokenizer.ggml.add_eos_token"] = False
    return keys
