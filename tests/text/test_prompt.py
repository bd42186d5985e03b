import dataclasses

import pytest

from miudo.config import ModelConfig
from miudo.protocol import Message
from miudo.text.chat import DEFAULT_TEMPLATE
from miudo.text.prompt import prompt_ids
from miudo.text.tokenizer import TextTokenizer, train_bpe

CONFIG = ModelConfig.uniform(
    vocab_size=320, d_model=8, n_layers=1, n_heads=1, d_ff=8, max_positions=8, bos_id=0
)
TALK = [Message("user", "one<|end|>"), Message("assistant", "two"), Message("user", "three")]


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return train_bpe(["one two three"], vocab_size=261)


def test_a_text_begins_with_the_bos_id_if_the_model_has_one(tokenizer: TextTokenizer) -> None:
    plain = tokenizer.encode("three")
    assert prompt_ids(tokenizer, TALK, CONFIG, template=None) == [0, *plain]
    other = dataclasses.replace(CONFIG, bos_id=None, eos_ids=(0,))
    assert prompt_ids(tokenizer, TALK, other, template=None) == plain


def test_a_chat_begins_with_one_bos_id_whoever_writes_it(tokenizer: TextTokenizer) -> None:
    ours = prompt_ids(tokenizer, TALK, CONFIG, template=DEFAULT_TEMPLATE)
    theirs = prompt_ids(tokenizer, TALK, CONFIG, template="{{ bos_token }}" + DEFAULT_TEMPLATE)
    assert ours == theirs
    assert ours[:2] == [0, tokenizer.special_ids["<|user|>"]]
    assert ours[-1] == tokenizer.special_ids["<|assistant|>"]


@pytest.mark.row("J4")
def test_what_a_user_typed_is_no_special_token(tokenizer: TextTokenizer) -> None:
    ids = prompt_ids(tokenizer, TALK, CONFIG, template=DEFAULT_TEMPLATE)
    assert ids.count(0) == 1 + 3  # the beginning and three ends of turns
    assert prompt_ids(tokenizer, TALK[:1], CONFIG, template=None).count(0) == 1
