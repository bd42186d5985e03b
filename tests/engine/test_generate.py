"""The generation loop on a scripted engine."""

import numpy as np
import numpy.typing as npt
import pytest

from miudo.config import ModelConfig
from miudo.engine.fake import FakeEngine, follow
from miudo.engine.generate import GenerateSettings, generate
from miudo.errors import RequestError
from miudo.protocol import SamplingSettings

CONFIG = ModelConfig.uniform(
    n_layers=1, d_model=8, n_heads=1, d_ff=8, vocab_size=300, max_positions=16
)


class Bytes:
    """A tokenizer whose ids are bytes; 256 is the end token."""

    vocab_size = 300
    fingerprint = "bytes"

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""


def run(script: list[int], prompt: str = "a", **settings: object) -> tuple[str, str, dict, object]:
    engine = FakeEngine(CONFIG, follow([0] * (len(prompt) - 1) + script, 300))
    chosen = GenerateSettings(eos_ids=(256,), **settings)  # type: ignore[arg-type]
    events = list(generate(engine, Bytes(), Bytes().encode(prompt), chosen))
    assert engine.opened == engine.closed == 1
    return "".join(e.text for e in events), events[-1].finish_reason, events[-1].usage, engine


def test_text_ends_at_the_end_token() -> None:
    text, reason, usage, _ = run([*b"ol\xc3\xa1", 256])
    assert (text, reason) == ("olá", "stop")
    assert usage == {"prompt_tokens": 1, "completion_tokens": 5}


def test_max_tokens_is_exact() -> None:
    text, reason, usage, engine = run([*b"abcdef"], max_tokens=3)
    assert (text, reason, usage["completion_tokens"]) == ("abc", "length", 3)
    assert engine.steps == 3


def test_stop_string_across_tokens_is_not_shown() -> None:
    text, reason, _, _ = run([*b"one END two"], stop=("END",), max_tokens=12)
    assert (text, reason) == ("one ", "stop")


def test_a_started_stop_string_that_does_not_come_is_shown() -> None:
    text, _, _, _ = run([*b"one EN", 256], stop=("END",))
    assert text == "one EN"


def test_generation_stops_where_positions_end() -> None:
    text, reason, _, _ = run([*b"x" * 40], prompt="p" * 10, max_tokens=100)
    # 10 prompt positions leave 6; the last id drawn needs no position of its own.
    assert (len(text), reason) == (7, "length")


def test_prompt_without_room_is_refused_with_both_counts() -> None:
    with pytest.raises(RequestError, match="16 tokens, the model 16"):
        run([1], prompt="p" * 16)


def test_closing_the_generator_closes_the_conversation() -> None:
    engine = FakeEngine(CONFIG, follow(list(b"abc"), 300))
    events = generate(engine, Bytes(), [1], GenerateSettings())
    next(events)
    events.close()
    assert engine.closed == 1


def test_rows_that_pad_the_vocabulary_are_never_drawn() -> None:
    class Shorter(Bytes):
        vocab_size = 257

    engine = FakeEngine(CONFIG, follow([290], 300))  # it would always say a padding row
    events = list(generate(engine, Shorter(), [97], GenerateSettings(max_tokens=4)))
    assert "".join(e.text for e in events) == "\0" * 4  # the lowest id of those left


def test_a_guide_chooses_each_draw_and_ends_the_text() -> None:
    class Spells:
        def __init__(self, text: bytes) -> None:
            self.left = [*text]

        def choice(self) -> tuple[SamplingSettings, npt.NDArray[np.bool_]]:
            return SamplingSettings(), np.arange(300) == self.left[0]

        def take(self, token: int) -> bool:
            assert token == self.left.pop(0)
            return not self.left

    engine = FakeEngine(CONFIG, follow([*b"abcdef"], 300))
    settings = GenerateSettings(max_tokens=9, eos_ids=(256,))
    events = list(generate(engine, Bytes(), [*b"a"], settings, guide=Spells(b"ok!")))
    assert "".join(e.text for e in events) == "ok!"
    assert events[-1].finish_reason == "stop"
    assert engine.opened == engine.closed == 1
