"""Special tokens are found wherever files hide them, and never made up."""

from __future__ import annotations

import json
from typing import Any

import pytest

from miudo.errors import TokenizerError
from miudo.text.special_tokens import TokenSources, with_special_tokens
from miudo.text.tokenizer import TextTokenizer, train_bpe
from miudo.text.tokenizer_json import check_tokenizer

BASE: dict[str, Any] = json.loads(
    train_bpe(["hello hello"] * 3, vocab_size=262, special=("<e>",)).to_json()
)
ROWS = len(BASE["model"]["vocab"])
FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)


def bare() -> dict[str, Any]:
    """The vocabulary as vocab.json has it: nothing is special."""
    return {**BASE, "added_tokens": []}


PLACES: dict[str, TokenSources] = {
    "a role": TokenSources(roles=("<e>",)),
    "a name in special_tokens_map": TokenSources(named={"eos_token": "<e>"}),
    "a name with flags": TokenSources(named={"eos_token": {"content": "<e>", "lstrip": False}}),
    "a name in tokenizer_config": TokenSources(settings={"pad_token": "<e>"}),
    "a list of names": TokenSources(settings={"additional_special_tokens": ["<e>"]}),
    "names of their own": TokenSources(settings={"extra_special_tokens": {"end": "<e>"}}),
    "ids in tokenizer_config": TokenSources(
        settings={"added_tokens_decoder": {"0": {"content": "<e>", "special": True}}}
    ),
    "added_tokens.json and a name": TokenSources(added={"<e>": 0}, named={"eos_token": "<e>"}),
}


@pytest.mark.parametrize("sources", PLACES.values(), ids=PLACES)
def test_a_special_token_is_found(sources: TokenSources) -> None:
    found = TextTokenizer(check_tokenizer(with_special_tokens(bare(), sources)))
    assert found.special_ids == {"<e>": 0}
    assert 0 not in found.encode("hello<e>")
    assert found.encode("hello<e>", allow_special=True)[-1] == 0


def test_added_tokens_extend_the_vocabulary() -> None:
    sources = TokenSources(
        added={"<think>": ROWS},
        settings={"added_tokens_decoder": {str(ROWS + 1): {"content": "<x>", "rstrip": True}}},
    )
    found = TextTokenizer(check_tokenizer(with_special_tokens(bare(), sources)))
    assert found.added_ids == {"<think>": ROWS, "<x>": ROWS + 1}
    assert found.special_ids == {}
    assert found.encode("<think>hello") == [ROWS, *found.encode("hello")]
    assert found.encode("<x>  hello") == [ROWS + 1, *found.encode("hello")]


def test_what_is_listed_by_id_wins_over_the_file() -> None:
    sources = TokenSources(
        settings={"added_tokens_decoder": {"0": {"content": "<e>", "special": False}}}
    )
    values = with_special_tokens(BASE, sources)
    assert values["added_tokens"] == [{"id": 0, "content": "<e>", **FLAGS, "special": False}]


@pytest.mark.parametrize("text", ["h", "".join(BASE["model"]["merges"][0])])
def test_what_is_text_stays_text_whatever_role_its_id_has(text: str) -> None:
    # Many a config names id 0 as padding, which is "!" there.
    assert text in BASE["model"]["vocab"]
    assert with_special_tokens(bare(), TokenSources(roles=(text,))) == bare()


def test_a_name_without_an_id_makes_no_token() -> None:
    assert with_special_tokens(BASE, TokenSources(named={"pad_token": "[PAD]"})) == BASE


@pytest.mark.parametrize(
    ("sources", "says"),
    [
        (TokenSources(added={"<e>": 5}), "'<e>' has id 5 in one file, 0 in the vocabulary"),
        (TokenSources(settings={"added_tokens_decoder": {"7": {"content": "<e>"}}}), "has id 7"),
        (TokenSources(settings={"added_tokens_decoder": {"-1": {"content": "x"}}}), "no token"),
        (TokenSources(settings={"added_tokens_decoder": {"1": "x"}}), "no token"),
        (TokenSources(settings={"added_tokens_decoder": ["x"]}), "no object"),
    ],
)
def test_places_that_contradict_are_refused(sources: TokenSources, says: str) -> None:
    with pytest.raises(TokenizerError, match=says):
        with_special_tokens(bare(), sources)


@pytest.mark.parametrize("number", [ROWS + 5, "3", None, True, 1.0])
def test_ids_that_cannot_be_are_refused_with_the_rest(number: object) -> None:
    values = with_special_tokens(bare(), TokenSources(added={"<new>": number}))
    with pytest.raises(TokenizerError, match="<new>"):
        check_tokenizer(values)
