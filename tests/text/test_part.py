"""A tokenizer for one text gives the ids of the whole one, and gives way to it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miudo.errors import RequestError, TokenizerError
from miudo.text.part import PartTokenizer
from miudo.text.pieces import added_tokens
from miudo.text.tokenizer import TextTokenizer, train_bpe
from miudo.text.tokenizer_json import TokenizerSpec, check_tokenizer
from miudo.text.word_rules import WORD_RULES, byte_level_tokenizer

LINES = [
    "the cat sat on the mat, and the café was full of the others\n",
    "tabs\tand  double   spaces 12345 日本語 👨‍👩‍👧 <|end|> I'll don't\n",
    "def sum_of(numbers):\n    return sum(numbers)  # 0.5 * n\n",
] * 20
TRAINED = train_bpe(LINES, vocab_size=420)
WORDS = [
    "the",
    " the",
    "<|end|>",
    "<|tool|>",
    " caf\u00e9",
    "cafe\u0301",
    "\n\n",
    "日本",
    "👧",
    "'ll",
    "\x00",
    " ",
]
TEXTS = st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=8)), max_size=12).map("".join)


def spec_of(rule: str = "qwen2", **changes: Any) -> TokenizerSpec:
    """As a GGUF file has it: all tokens in one list, merges written "a b"."""
    tokens = [*TRAINED.spec.tokens, "<|tool|>"]
    kinds = [3 if t in TRAINED.spec.special else 1 for t in tokens[:-1]] + [4]
    merges = [" ".join(pair) for pair in TRAINED.spec.merges]
    ids = {token: i for i, token in enumerate(tokens)}
    values = byte_level_tokenizer(WORD_RULES[rule], ids, merges, added_tokens(tokens, kinds))
    values["model"] |= changes
    return check_tokenizer(values)


def both(spec: TokenizerSpec) -> tuple[PartTokenizer, TextTokenizer]:
    whole = TextTokenizer(spec)
    whole._part = None
    return PartTokenizer(spec), whole


@pytest.mark.parametrize("rule", ["gpt-2", "qwen2", "llama-bpe", "smollm", "tekken"])
@given(text=TEXTS)
@settings(max_examples=40, deadline=None)
def test_ids_are_those_of_the_whole_tokenizer(rule: str, text: str) -> None:
    part, whole = both(spec_of(rule))
    for plain, backend in ((True, whole._plain), (False, whole._special)):
        found = part.backend_for(text, plain=plain).encode(text, add_special_tokens=False)
        assert found.ids == backend.encode(text, add_special_tokens=False).ids
        assert found.offsets == backend.encode(text, add_special_tokens=False).offsets


def test_merges_of_one_result_keep_their_order() -> None:
    """ "abc" comes of "a bc" or of "ab c"; of a pair that is listed twice the last place counts."""
    letters = [*TRAINED.spec.tokens[5:261], "ab", "bc", "abc", "cd"]
    merges = ["a b", "c d", "b c", "a bc", "ab c", "a b"]
    ids = {token: i for i, token in enumerate(letters)}
    spec = check_tokenizer(byte_level_tokenizer(WORD_RULES["gpt-2"], ids, merges, []))
    part, whole = both(spec)
    for text in ("abc", "abcd", "bcd", "ab", "aabbccdd", "abab"):
        ids_of = part.backend_for(text, plain=True).encode(text).ids
        assert ids_of == whole._plain.encode(text).ids


@pytest.mark.parametrize(
    "changes",
    [{"dropout": 0.1}, {"continuing_subword_prefix": "##"}, {"end_of_word_suffix": "</w>"}],
    ids=str,
)
def test_what_merges_are_not_all_of_it_does_not_fit(changes: dict[str, Any]) -> None:
    assert PartTokenizer.fits(spec_of())
    assert not PartTokenizer.fits(spec_of(**changes))


def test_a_missing_byte_or_another_kind_of_words_does_not_fit() -> None:
    values = json.loads(spec_of().to_json())
    assert PartTokenizer.fits(check_tokenizer(values))
    without = {**values, "pre_tokenizer": {"type": "Whitespace"}}
    assert not PartTokenizer.fits(check_tokenizer(without))
    vocab = dict(values["model"]["vocab"])
    vocab["Ω"] = vocab.pop("Ā")
    model = values["model"] | {"vocab": vocab}
    assert not PartTokenizer.fits(check_tokenizer({**values, "model": model}))


def test_the_whole_tokenizer_takes_over() -> None:
    tokenizer = TextTokenizer(spec_of())
    want = tokenizer.encode("the cat")
    assert tokenizer._part is not None
    assert "_plain" not in vars(tokenizer)
    for _ in range(20):
        assert tokenizer.encode("the cat") == want
    assert tokenizer._part is None
    long = TextTokenizer(spec_of())
    assert long.encode("the cat" * 3000) == tokenizer.encode("the cat" * 3000)
    assert long._part is None


def test_wrong_text_and_wrong_merges_are_refused_all_the_same() -> None:
    with pytest.raises(RequestError, match="not valid Unicode"):
        TextTokenizer(spec_of()).encode("\ud800")
    values = json.loads(spec_of().to_json())
    values["model"]["merges"][7] = "the zzz"
    with pytest.raises(TokenizerError, match=r"merges\[7\] names 'zzz'"):
        TextTokenizer(check_tokenizer(values))
