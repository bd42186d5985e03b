"""What engines show of themselves: attention rows, states, and what each layer would say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest

from miudo.config import ModelConfig
from miudo.decoder.decoder import Decoder
from miudo.decoder.torch_engine import TorchEngine
from miudo.engine.fake import FakeEngine, babble
from miudo.engine.insides import (
    MOST_ATTENTION,
    MOST_POSITIONS,
    MOST_STATES,
    attention_rows,
    hidden_states,
    lens_row,
)
from miudo.engine.native import NativeEngine
from miudo.errors import RequestError
from miudo.protocol import Engine, SeqWork, Want
from miudo.tensors import DType

FLOAT_ROUNDING = 1e-4  # the design's bound between engine and decoder
ROW_SUM = 1e-5  # float32 sums of some tens of numbers


def some_ids(config: ModelConfig, length: int = 40) -> list[int]:
    rng = np.random.default_rng(7)
    return [int(i) for i in rng.integers(0, config.vocab_size, length)]


def pair(model: Any) -> tuple[NativeEngine, TorchEngine]:
    decoder = Decoder.from_weights(model.config, model.weights)
    return NativeEngine(model, threads=1, cache="f32"), TorchEngine(decoder)


def test_every_kind_of_model_shows_what_the_decoder_shows(
    config: ModelConfig, make_model: Callable[..., Any]
) -> None:
    native, twin = pair(make_model(config))
    ids = some_ids(config)
    states = hidden_states(twin, ids)
    np.testing.assert_allclose(hidden_states(native, ids), states, rtol=0, atol=FLOAT_ROUNDING)
    rows = zip(attention_rows(native, ids), attention_rows(twin, ids), strict=True)
    for ours, theirs in rows:
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=FLOAT_ROUNDING)
        np.testing.assert_allclose(ours.sum(-1), 1, rtol=0, atol=ROW_SUM)
        assert np.triu(ours, 1).max() == 0  # nobody looks ahead
    for state in states:  # any layer's: the head takes what it is given
        ours, theirs = native.unembed(state), twin.unembed(state)
        assert np.ptp(theirs) > 0.5
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=FLOAT_ROUNDING)


@pytest.mark.parametrize("activations", ["int8", "float"])
def test_the_last_layer_says_what_the_model_says(
    make_model: Callable[..., Any], plain: ModelConfig, activations: Literal["int8", "float"]
) -> None:
    """To the bit, however many rows are asked about at once, looked at or not."""
    model = make_model(plain, dtype=DType.Q8_0) if plain.d_model % 32 == 0 else make_model(plain)
    engine = NativeEngine(model, threads=2, activations=activations)
    ids = some_ids(plain)
    (out,) = engine.step([SeqWork(engine.open(), ids, Want.ALL_LOGITS)])
    last = hidden_states(engine, ids)[-1]
    assert out.logits is not None
    np.testing.assert_array_equal(engine.unembed(last), out.logits)
    np.testing.assert_array_equal(engine.unembed(last[7:8]), out.logits[7:8])
    assert engine.unembed(last[:0]).shape == (0, plain.vocab_size)


def test_looking_leaves_nothing_behind(make_model: Callable[..., Any], plain: ModelConfig) -> None:
    engine = NativeEngine(make_model(plain), threads=1)
    attention_rows(engine, some_ids(plain))
    hidden_states(engine, some_ids(plain))
    assert engine.cache_bytes_used == 0


def test_a_lens_reads_the_distribution(make_model: Callable[..., Any], plain: ModelConfig) -> None:
    native, twin = pair(make_model(plain))
    ids, size = some_ids(plain), plain.vocab_size
    state = hidden_states(twin, ids)[1]
    logits = twin.unembed(state).astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    for engine in (native, twin):
        row = lens_row(engine, state, ids, top=4, n_tokens=size)
        best = np.sort(logprobs, axis=1)[:, ::-1][:, :4]
        np.testing.assert_allclose(row.top_logprobs, best, atol=FLOAT_ROUNDING)
        np.testing.assert_allclose(
            row.entropy, -(np.exp(logprobs) * logprobs).sum(1), atol=FLOAT_ROUNDING
        )
        own = logprobs[np.arange(len(ids) - 1), ids[1:]]
        np.testing.assert_allclose(row.logprobs, own, atol=FLOAT_ROUNDING)
        assert (row.top_ids == np.argsort(-logprobs, axis=1)[:, :4]).mean() > 0.99
        assert [int(r) for r in row.ranks] == [
            int((logprobs[i] > own[i]).sum()) for i in range(len(ids) - 1)
        ]


def test_rows_that_are_no_tokens_are_never_the_best(
    make_model: Callable[..., Any], plain: ModelConfig
) -> None:
    engine = NativeEngine(make_model(plain), threads=1)
    ids = some_ids(plain)
    state = hidden_states(engine, ids)[-1]
    few = lens_row(engine, state, ids, top=3, n_tokens=11)
    assert few.top_ids.max() < 11
    whole = lens_row(engine, state, ids, top=3, n_tokens=plain.vocab_size)
    np.testing.assert_array_equal(few.entropy, whole.entropy)


def test_too_much_is_refused_with_both_counts(
    make_model: Callable[..., Any], plain: ModelConfig
) -> None:
    long = MOST_POSITIONS + 1
    wide = ModelConfig.uniform(
        n_layers=40, d_model=32, n_heads=16, d_ff=16, vocab_size=50, max_positions=512
    )
    engine: Engine = FakeEngine(wide, babble(50))
    for look in (attention_rows, hidden_states):
        with pytest.raises(RequestError, match=f"{long} positions, the limit is {MOST_POSITIONS}"):
            look(engine, [1] * long)
    with pytest.raises(RequestError, match=f"{200 * 200 * 640:,} numbers.*{MOST_ATTENTION:,}"):
        attention_rows(engine, [1] * 200)
    with pytest.raises(RequestError, match=f"{101 * 41:,}, the limit is {MOST_STATES:,}"):
        hidden_states(engine, [1] * 101)


@pytest.mark.parametrize(
    "hidden",
    [
        np.zeros((2, 5), np.float32),
        np.zeros((2, 3, 4), np.float32),
        np.zeros((2, 4), np.float64),
        [[0.0] * 4],
    ],
)
def test_states_of_another_shape_are_refused(
    make_model: Callable[..., Any], plain: ModelConfig, hidden: Any
) -> None:
    engine = NativeEngine(make_model(plain), threads=1)
    with pytest.raises(RequestError, match="hidden"):
        engine.unembed(hidden)
