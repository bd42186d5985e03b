"""Rules that cut words: each has a name that it is found under again, and cuts as told."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from miudo.text.tokenizer import TextTokenizer, train_bpe
from miudo.text.tokenizer_json import check_tokenizer
from miudo.text.word_rules import WORD_RULES, byte_level_tokenizer, word_rule_name

VOCAB = {token: i for i, token in enumerate(train_bpe([""], vocab_size=261).tokens)}


def values(name: str) -> dict[str, Any]:
    return byte_level_tokenizer(WORD_RULES[name], VOCAB, [], [])


@pytest.mark.parametrize("name", WORD_RULES)
def test_a_rule_is_found_under_a_name_that_means_the_same(name: str) -> None:
    found = word_rule_name(values(name))
    assert found is not None
    assert WORD_RULES[found] == WORD_RULES[name]


@pytest.mark.parametrize("name", WORD_RULES)
def test_any_text_comes_back(name: str) -> None:
    tokenizer = TextTokenizer(check_tokenizer(values(name)))
    for text in ("don't stop, I'LL  see 12345 ação!\n\n\tx", "漢字 👩‍👩‍👧 \x00\x7f", " (a|b) …"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


CUTS = {
    "gpt-2": ["don", "'t", " stop", "  ", " 1234", "\n", "\n", "x"],
    "smollm": ["don", "'t", " stop", "   ", "1", "2", "3", "4", "\n", "\n", "x"],
    "llama-bpe": ["don", "'t", " stop", "  ", " ", "123", "4", "\n\n", "x"],
    "qwen2": ["don", "'t", " stop", "  ", " ", "1", "2", "3", "4", "\n\n", "x"],
    "tekken": ["don", "'t", " stop", "  ", " ", "1", "2", "3", "4", "\n\n", "x"],
    "gpt-4o": ["don't", " stop", "  ", " ", "123", "4", "\n\n", "x"],
}


@pytest.mark.parametrize(("name", "words"), CUTS.items(), ids=CUTS)
def test_words_are_cut_as_the_rule_says(name: str, words: list[str]) -> None:
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(json.dumps(values(name)))
    cut = backend.pre_tokenizer.pre_tokenize_str("don't stop   1234\n\nx")
    text = "don't stop   1234\n\nx"
    assert [text[begin:end] for _, (begin, end) in cut] == words


def test_another_way_to_say_the_same_rule_is_seen_through() -> None:
    other = copy.deepcopy(values("gpt-4o"))
    split, level = other["pre_tokenizer"]["pretokenizers"]
    split |= {"behavior": "Removed", "invert": True}
    level["trim_offsets"] = not level["trim_offsets"]
    assert word_rule_name(other) == "gpt-4o"
    split["pattern"] = {"Regex": r"\w+"}
    assert word_rule_name(other) is None


def test_rules_with_one_pattern_are_told_apart_by_the_rest() -> None:
    assert word_rule_name(values("gpt-2")) == "gpt-2"
    assert word_rule_name(values("olmo")) == "olmo"
    assert word_rule_name(values("dbrx")) == "dbrx"
    assert word_rule_name(values("llama-bpe")) == "llama-bpe"
