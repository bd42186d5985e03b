"""Guessing changes no token, is used where it pays, and is left where it does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from miudo.config import ModelConfig
from miudo.decoder.decoder import Decoder
from miudo.decoder.torch_engine import TorchEngine
from miudo.engine.drafts import ModelDrafter, TextDrafter
from miudo.engine.fake import FakeEngine, babble, follow
from miudo.engine.generate import GenerateSettings, generate
from miudo.engine.native import NativeEngine
from miudo.engine.speculate import LENGTHS, Agreement, Costs, Speculation
from miudo.errors import RequestError
from miudo.protocol import Engine, SamplingSettings, SeqWork, StepOut

V = 61
CONFIG = ModelConfig.uniform(
    n_layers=1, d_model=32, n_heads=2, d_ff=48, vocab_size=V, max_positions=96
)


class Letters:
    """A tokenizer of one letter a token."""

    vocab_size = V
    fingerprint = "letters"

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        return [ord(c) - 64 for c in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(64 + i) for i in ids)

    def token_bytes(self, token: int) -> bytes:
        return bytes([64 + token])


def written(engine: Engine, prompt: Sequence[int], how: GenerateSettings, **more: Any) -> Any:
    events = list(generate(engine, Letters(), prompt, how, **more))
    usage = {k: events[-1].usage[k] for k in ("prompt_tokens", "completion_tokens")}
    return "".join(e.text for e in events), events[-1].finish_reason, usage


class Whimsical(Speculation):
    """Guesses whatever the test says, for better or worse."""

    lengths: Callable[[], int]

    def choose(self, evidence: str, most: int, *, free: bool) -> tuple[int, float]:
        length = self.lengths()
        return min(length, most), float(length)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    made = Decoder(CONFIG)
    made.initialise(3)
    for value in made.parameters():
        value.data.mul_(3.0)
    return made


@pytest.fixture(params=["torch", "native", "fake"], scope="module")
def engine(request: pytest.FixtureRequest, decoder: Decoder) -> Engine:
    if request.param == "torch":
        return TorchEngine(decoder)
    if request.param == "fake":  # order 1: it goes round in circles, and lookups find them
        return FakeEngine(CONFIG, babble(V, order=1))

    class Model:
        config, weights = CONFIG, decoder.to_weights()

    return NativeEngine(Model(), threads=1)


SAMPLINGS = st.sampled_from(
    [
        SamplingSettings(),
        SamplingSettings(repetition_penalty=1.2),
        SamplingSettings(temperature=0.3, seed=5, request=2),
        SamplingSettings(temperature=0.8, top_k=9, top_p=0.9, min_p=0.01, seed=1),
        SamplingSettings(temperature=0.5, repetition_penalty=1.1, logit_bias=((4, 1.0),)),
    ]
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), sampling=SAMPLINGS)
def test_whatever_is_guessed_the_text_stays(
    engine: Engine, decoder: Decoder, data: st.DataObject, sampling: SamplingSettings
) -> None:
    prompt = data.draw(st.lists(st.integers(0, V - 1), min_size=1, max_size=90))
    how = GenerateSettings(
        data.draw(st.integers(1, 60)),
        sampling,
        stop=data.draw(st.sampled_from([(), ("AB",), ("z", "Q")])),
        eos_ids=data.draw(st.sampled_from([(), (7,), (3, 50)])),
    )
    drafting = data.draw(st.sampled_from([None, "fake", "torch"]))
    draft_engine: Any = TorchEngine(decoder) if drafting == "torch" else None
    if drafting == "fake":
        shorter = dataclasses.replace(CONFIG, max_positions=50)
        draft_engine = FakeEngine(shorter, babble(V, order=1))
    guessing = Whimsical(draft_engine)
    guessing.lengths = lambda: data.draw(st.sampled_from([0, *LENGTHS]))
    right = written(engine, prompt, how)
    assert written(engine, prompt, how, speculation=guessing) == right


def test_conversations_of_both_engines_are_closed() -> None:
    large, small = (FakeEngine(CONFIG, babble(V, order=1)) for _ in range(2))
    events = generate(large, Letters(), [1], GenerateSettings(), speculation=Speculation(small))
    next(events)
    assert (large.opened, small.opened) == (1, 1)
    events.close()
    assert (large.closed, small.closed) == (1, 1)


def test_a_draft_model_of_another_vocabulary_is_refused() -> None:
    large = FakeEngine(CONFIG, babble(V))
    other = FakeEngine(dataclasses.replace(CONFIG, vocab_size=9), babble(9))
    with pytest.raises(RequestError, match="has 9 ids, the model 61"):
        next(generate(large, Letters(), [1], GenerateSettings(), speculation=Speculation(other)))
    assert large.opened == large.closed


class Timed(FakeEngine):
    """Takes time: `a_step` for a step of one row, `a_row` for each further one."""

    now = 0.0

    def __init__(self, logits_of: Any, a_step: float, a_row: float, positions: int = 2000) -> None:
        config = ModelConfig.uniform(
            n_layers=1, d_model=8, n_heads=1, d_ff=8, vocab_size=V, max_positions=positions
        )
        super().__init__(config, logits_of)
        self.a_step, self.a_row = a_step, a_row

    def step(self, batch: Sequence[SeqWork]) -> list[StepOut]:
        Timed.now += self.a_step + self.a_row * (sum(len(w.ids) for w in batch) - 1)
        return super().step(batch)


def seconds(large: Timed, small: Timed | None = None, *, guess: bool = True, n: int = 1500) -> Any:
    known = Speculation(small, clock=lambda: Timed.now) if guess else None
    start = Timed.now
    events = list(generate(large, Letters(), [1], GenerateSettings(n), speculation=known))
    return Timed.now - start, events[-1].usage


CIRCLE = babble(V, order=1)  # soon repeats itself
NOISE = babble(V)  # never does


def test_cheap_rows_and_a_text_that_repeats_itself() -> None:
    took, usage = seconds(Timed(CIRCLE, 1.0, 0.05))
    assert took < 1500 / 6  # 16 tokens for 1.75 steps would be 9 times as fast
    assert usage["accepted_tokens"] > 0.95 * usage["drafted_tokens"] > 0


@pytest.mark.parametrize(("text", "a_row"), [(CIRCLE, 1.0), (NOISE, 0.05)])
def test_dear_rows_or_a_text_without_repeats_cost_little(text: Any, a_row: float) -> None:
    took, usage = seconds(Timed(text, 1.0, a_row))
    assert took < 1.03 * seconds(Timed(text, 1.0, a_row), guess=False)[0]
    assert usage["drafted_tokens"] < 150


def test_a_draft_model_that_is_cheap_and_right_is_used() -> None:
    took, usage = seconds(Timed(NOISE, 1.0, 0.05), Timed(NOISE, 0.1, 0.0))
    # 8 tokens for 1.35 steps and 7 guesses of 0.1 each would be 3.9 times as fast.
    assert took < 1500 / 3.5
    assert usage["accepted_tokens"] == usage["drafted_tokens"]


@pytest.mark.parametrize(("wrong", "cost"), [(True, 0.1), (False, 1.0)])
def test_a_draft_model_that_is_wrong_or_dear_is_left_and_tried_again(
    wrong: bool, cost: float
) -> None:
    small = Timed(babble(V, seed=9) if wrong else NOISE, cost, 0.0)
    took, usage = seconds(Timed(NOISE, 1.0, 0.05), small)
    assert took < 1.05 * 1500
    # Trials come after pauses of 32, 64, 128, 256 and 512 steps.
    assert small.steps >= 4
    assert usage["drafted_tokens"] < 150


@pytest.mark.parametrize(("a_row", "faster"), [(0.05, 4.5), (0.6, 1.25), (1.0, 0.95)])
def test_a_machine_that_is_slow_at_times_misleads_nobody(
    a_row: float, faster: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Timed, "now", 0.0)  # the disturbance hangs on it

    class Disturbed(Timed):
        def step(self, batch: Sequence[SeqWork]) -> list[StepOut]:
            before = Timed.now
            outs = super().step(batch)
            worse = 1.0 + (before % 90 > 45) + 4.0 * (hash((before, 1)) % 7 == 0)
            Timed.now = before + worse * (Timed.now - before)
            return outs

    guessed = [seconds(Disturbed(CIRCLE, 1.0, a_row))[0] for _ in range(3)]
    alone = [seconds(Disturbed(CIRCLE, 1.0, a_row), guess=False)[0] for _ in range(3)]
    assert sum(alone) / sum(guessed) > faster


def test_what_pays_only_later_is_found_out() -> None:
    script = [(7 * i * i + i // 5) % V for i in range(600)] + [1, 2, 3, 4, 5, 6, 8] * 150
    took, _ = seconds(Timed(follow(script, V), 1.0, 0.05))
    alone, _ = seconds(Timed(follow(script, V), 1.0, 0.05), guess=False)
    assert took < 0.6 * alone


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 3), max_size=40), most=st.integers(1, 12))
def test_the_text_drafter_copies_from_the_best_place(ids: list[int], most: int) -> None:
    drafter = TextDrafter()
    for end in range(len(ids) + 1):  # it is asked all along
        evidence = drafter.evidence(ids[:end])
    n = len(ids)

    def agreement(place: int) -> int:
        same = 0
        while same < min(8, place) and ids[place - 1 - same] == ids[n - 1 - same]:
            same += 1
        return same

    places = [p for p in range(2, n) if agreement(p) >= 2][-8:]
    if not places:
        assert evidence is None
        return
    best = max(places, key=lambda p: (agreement(p), p))
    assert evidence == f"{agreement(best)} ids of text"
    expected = list(ids)
    for i in range(most):
        expected.append(expected[best + i])
    assert list(drafter.guess(most)) == expected[n:]


def test_a_model_drafter_reads_on_from_what_was_right() -> None:
    engine = FakeEngine(CONFIG, NOISE)
    drafter = ModelDrafter(engine, V, SamplingSettings(temperature=0.9, seed=4))
    ids = [5, 6, 7]
    assert drafter.evidence(ids) == "model"
    first = list(drafter.guess(4))
    ids += [*first[:2], 9]  # two were right
    drafter.evidence(ids)
    second = list(drafter.guess(3))
    fresh = ModelDrafter(engine, V, SamplingSettings(temperature=0.9, seed=4))
    fresh.evidence(ids)
    assert list(fresh.guess(3)) == second
    assert drafter.evidence(list(range(50)) + list(range(46))) is None  # no position is left
    drafter.evidence(list(range(50)) + list(range(45)))
    assert len(drafter.guess(9)) == 2
    drafter.close()
    fresh.close()
    assert engine.opened == engine.closed


def test_costs_between_and_beyond_what_was_measured() -> None:
    costs = Costs(0.1)
    assert costs.of(3) is None
    for seconds in (1.0, 9.0, 8.0, 1.0):  # two were disturbed
        costs.note(1, seconds)
    assert (costs.of(1), costs.of(3)) == (1.0, pytest.approx(1.2))
    costs.note(5, 1.8)
    assert costs.of(3) == pytest.approx(1.4)
    assert costs.of(9) == pytest.approx(1.8 * 1.8 / 1.4)
    for _ in range(100):  # what was is forgotten
        costs.note(1, 2.0)
    assert (costs.of(1), costs.count(1)) == (2.0, 64)


def test_expected_tokens_are_those_of_a_geometric_run() -> None:
    agreement = Agreement(held=3.0, tried=4.0)
    assert agreement.expected(3) == pytest.approx(1 + 0.75 + 0.75**2 + 0.75**3)
    agreement.note(held=0, tried=1)
    assert agreement.rate < 0.75
