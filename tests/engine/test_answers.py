"""A local model behind the protocol of text: what it is asked, and how it draws."""

from __future__ import annotations

import dataclasses

from miudo.config import ModelConfig
from miudo.engine.answers import EngineGenerator
from miudo.engine.fake import FakeEngine, babble
from miudo.engine.generate import GenerateSettings, generate
from miudo.protocol import Generator, Message, SamplingSettings
from miudo.text.prompt import prompt_ids
from miudo.text.tokenizer import DEFAULT_SPECIALS, TextTokenizer, train_bpe

CONFIG = ModelConfig.uniform(
    n_layers=1, d_model=8, n_heads=1, d_ff=8, vocab_size=280, max_positions=64, eos_ids=(0,)
)
SAMPLING = GenerateSettings(sampling=SamplingSettings(temperature=1.0, seed=3))


def tokenizer() -> TextTokenizer:
    return train_bpe(["a b c"], vocab_size=256 + len(DEFAULT_SPECIALS))


def answer(generator: EngineGenerator, text: str) -> str:
    return "".join(e.text for e in generator.generate([Message("user", text)], max_tokens=9))


def test_it_says_what_the_engine_says() -> None:
    words = tokenizer()
    engine = FakeEngine(CONFIG, babble(280))
    made = EngineGenerator(engine, words, CONFIG, GenerateSettings())
    assert isinstance(made, Generator)
    messages = [Message("user", "ola")]
    settings = dataclasses.replace(GenerateSettings(), max_tokens=9, eos_ids=(0,))
    ids = prompt_ids(words, messages, CONFIG, template=None)
    expected = list(generate(engine, words, ids, settings))
    assert list(made.generate(messages, max_tokens=9)) == expected
    assert engine.opened == engine.closed == 2


def test_an_answer_depends_on_the_messages_and_the_seed_alone() -> None:
    words = tokenizer()
    flat = FakeEngine(CONFIG, lambda ids: babble(280, order=0)(()))
    made = EngineGenerator(flat, words, CONFIG, SAMPLING)
    first, second = answer(made, "um"), answer(made, "dois")
    assert first != second  # equal logits: only the draws differ
    assert answer(made, "um") == first
    again = EngineGenerator(flat, words, CONFIG, SAMPLING)
    assert answer(again, "dois") == second
