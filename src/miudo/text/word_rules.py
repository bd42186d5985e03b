"""How byte-level tokenizers cut text into words, under the names that llama.cpp gave the rules.

For: `tokenizer.ggml.pre`, which is such a name, and `vocab.json` with `merges.txt`, which say
nothing of it. The patterns are those of the makers' own files.
Not for: tokenizers whose files hold their pattern (`miudo.text.tokenizer_json`).
Read next: `miudo.formats.gguf_tokenizer`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["WORD_RULES", "WordRule", "byte_level_tokenizer", "word_rule_name"]

_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_GPT2 = _BYTES | {"use_regex": True}
_DIGITS = {
    "type": "Sequence",
    "pretokenizers": [{"type": "Digits", "individual_digits": True}, _GPT2],
}
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_QWEN2 = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}|{_REST}"
_CL100K = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = rf"{_CASED % ('', '')}|\p{{N}}|{_SLASHED}"
_O200K = rf"{_CASED % (_CONTRACTIONS + '?', _CONTRACTIONS + '?')}|\p{{N}}{{1,3}}|{_SLASHED}"
_BLOOM = " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"


def _split(pattern: str) -> dict[str, Any]:
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [cut, _BYTES]}


@dataclass(frozen=True, slots=True)
class WordRule:
    """One way to cut text.

    `words` is the `pre_tokenizer` of a tokenizer.json. `composes`: text is brought into
    Unicode's composed form first. `whole_words`: a word that is a token is not taken apart.
    """

    words: Mapping[str, Any]
    composes: bool = False
    whole_words: bool = False


_LLAMA3 = WordRule(_split(_CL100K), whole_words=True)
_QWEN = WordRule(_split(_QWEN2), composes=True)
_BY_DIGITS = WordRule(_DIGITS)

WORD_RULES: Mapping[str, WordRule] = {
    "gpt-2": WordRule(_GPT2),
    "phi-2": WordRule(_GPT2),
    "olmo": WordRule(_GPT2, composes=True),
    "bloom": WordRule(_split(_BLOOM)),
    "smollm": _BY_DIGITS,
    "refact": _BY_DIGITS,
    "starcoder": _BY_DIGITS,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "lfm2": _LLAMA3,
    "dbrx": WordRule(_split(_CL100K)),
    "smaug-bpe": WordRule(_split(_CL100K)),
    "qwen2": _QWEN,
    "deepseek-r1-qwen": _QWEN,
    "stablelm2": _QWEN,
    "qwen35": WordRule(_split(_QWEN35), composes=True),
    "tekken": WordRule(_split(_TEKKEN), whole_words=True),
    "gpt-4o": WordRule(_split(_O200K)),
}
"""Rules by name; of several names for one rule the first is the one that is written."""


def word_rule_name(values: Mapping[str, Any]) -> str | None:
    """Returns the name of the rule by which a tokenizer.json cuts words, None if it has none.

    Of two rules with one pattern the one that agrees in the rest too is named.
    """
    found = _what_counts(values.get("pre_tokenizer"))
    named = [name for name, rule in WORD_RULES.items() if _what_counts(rule.words) == found]
    whole_words = bool(values["model"].get("ignore_merges"))
    composes = (values.get("normalizer") or {}).get("type") == "NFC"

    def misfits(name: str) -> tuple[bool, bool]:
        rule = WORD_RULES[name]
        return rule.whole_words != whole_words, rule.composes != composes

    return min(named, key=misfits, default=None)


def _what_counts(rule: Any) -> Any:
    """A pre-tokenizer without what changes no id: offsets, and two ways to say "cut here"."""
    if isinstance(rule, dict):
        if (rule.get("behavior"), rule.get("invert")) == ("Removed", True):
            rule = rule | {"behavior": "Isolated", "invert": False}
        return {k: _what_counts(v) for k, v in rule.items() if k != "trim_offsets"}
    return [_what_counts(v) for v in rule] if isinstance(rule, list) else rule


def byte_level_tokenizer(
    rule: WordRule,
    vocab: Mapping[str, int],
    merges: Sequence[str],
    added: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Returns the tokenizer.json of a byte-level BPE vocabulary, as plain values.

    `merges` are written "a b", in order; `added` are entries of its `added_tokens`.
    """
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(added),
        "normalizer": {"type": "NFC"} if rule.composes else None,
        "pre_tokenizer": rule.words,
        "post_processor": None,
        "decoder": _GPT2,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": rule.whole_words,
            "vocab": vocab,
            "merges": merges,
        },
    }
