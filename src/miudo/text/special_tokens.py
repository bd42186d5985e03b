"""Special tokens from the places beside a vocabulary where they hide.

For: tokens that frame turns and end texts, so that nothing that a user types becomes one.
Not for: which of them begins or ends a text (`miudo.config.ModelConfig`).
Read next: `miudo.formats.hf_text`, which finds the files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from miudo.config import ModelConfig
from miudo.errors import TokenizerError

__all__ = ["TOKEN_FLAGS", "TokenSources", "role_tokens", "token_names", "with_special_tokens"]

TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
"""What an added token says of itself beside id and content."""

_NAMED = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
    "additional_special_tokens", "extra_special_tokens",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TokenSources:
    """Parsed files, empty where there is none, and the tokens whose ids a config gives a role.

    `settings` is tokenizer_config.json, `named` special_tokens_map.json, `added`
    added_tokens.json; `roles` are the tokens that begin, end and pad.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    named: Mapping[str, Any] = field(default_factory=dict)
    added: Mapping[str, Any] = field(default_factory=dict)
    roles: tuple[str, ...] = ()


def role_tokens(config: ModelConfig, tokens: Sequence[str]) -> tuple[str, ...]:
    """Returns the tokens with which the model's texts begin, end and are padded."""
    ids = (config.bos_id, *config.eos_ids, config.pad_id)
    return tuple(tokens[i] for i in ids if i is not None and i < len(tokens))


def with_special_tokens(
    values: Mapping[str, Any], sources: TokenSources, where: object = None
) -> dict[str, Any]:
    """Returns a tokenizer.json's values with all that `sources` say of its added tokens.

    What tokenizer_config.json lists by id wins over the file itself, as in `transformers`. Tokens
    that are only named, or only have a role, are marked where the vocabulary has them, unless
    merges can make them: then they are text. Raises TokenizerError for a token that two places
    give different ids.
    """
    vocab = _vocab(values)
    entries = {str(t.get("content")): t for t in values.get("added_tokens") or []}
    for text, number in sources.added.items():
        if text not in entries:
            entries[text] = _entry(text, number)
    for text, entry in _decoder_entries(sources.settings, where):
        entries[text] = entries.get(text, {}) | entry
    named = [*_named_texts(sources), *sources.roles]
    entries |= {t: {**entries[t], "special": True} for t in named if t in entries}
    for text in _unmade([t for t in named if t in vocab and t not in entries], values):
        entries[text] = _entry(text, vocab[text], special=True)
    for text, entry in entries.items():
        if vocab.get(text, entry.get("id")) != entry.get("id"):
            raise TokenizerError(
                f"token {text[:60]!r} has id {entry.get('id')!r:.40} in one file, "
                f"{vocab[text]} in the vocabulary",
                where=where,
                remedy="Files of different models were mixed; fetch them again",
            )
    return {**values, "added_tokens": list(entries.values())}


def _vocab(values: Mapping[str, Any]) -> dict[str, Any]:
    """Ids by token; empty where the values are so wrong that checking will refuse them."""
    model = values.get("model")
    vocab = model.get("vocab") if isinstance(model, Mapping) else None
    if isinstance(vocab, dict):
        return vocab
    listed = vocab if isinstance(vocab, list) else []
    return {str(item[0]): i for i, item in enumerate(listed) if isinstance(item, list) and item}


def _entry(text: str, number: object, *, special: bool = False) -> dict[str, Any]:
    flags = dict.fromkeys(TOKEN_FLAGS, False)
    return {"id": number, "content": text, **flags, "special": special}


def _decoder_entries(
    settings: Mapping[str, Any], where: object
) -> Iterable[tuple[str, dict[str, Any]]]:
    listed = settings.get("added_tokens_decoder") or {}
    if not isinstance(listed, Mapping):
        raise TokenizerError("added_tokens_decoder is no object", where=where)
    for key, item in listed.items():
        text = item.get("content") if isinstance(item, Mapping) else None
        if not isinstance(text, str) or not (key.isascii() and key.isdigit() and len(key) < 10):
            raise TokenizerError(f"added_tokens_decoder[{key[:20]!r}] is no token", where=where)
        yield text, _entry(text, int(key)) | {k: bool(item[k]) for k in TOKEN_FLAGS if k in item}


def token_names(sources: TokenSources) -> dict[str, str]:
    """Returns the tokens that files name bos_token, eos_token and so on, by these names."""
    found: dict[str, str] = {}
    for place in (sources.named, sources.settings):
        for name, value in place.items():
            text = value.get("content") if isinstance(value, Mapping) else value
            if name in _NAMED and isinstance(text, str) and text:
                found[name] = text
    return found


def _named_texts(sources: TokenSources) -> Iterable[str]:
    for place in (sources.named, sources.settings):
        for name in _NAMED:
            value = place.get(name)
            if isinstance(value, Mapping) and "content" not in value:
                value = list(value.values())  # extra tokens by a name of their own
            for item in value if isinstance(value, list) else [value]:
                text = item.get("content") if isinstance(item, Mapping) else item
                if isinstance(text, str) and text:
                    yield text


def _unmade(texts: Sequence[str], values: Mapping[str, Any]) -> list[str]:
    """Returns those of the texts that are no character and no result of a merge."""
    if not texts:
        return []
    merges = values["model"].get("merges") or []
    made = {m.replace(" ", "") if isinstance(m, str) else "".join(map(str, m)) for m in merges}
    return [text for text in texts if len(text) > 1 and text not in made]
