"""Vectors of texts: the states that the decoder has after its final norm, pooled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from miudo.config import ModelConfig
from miudo.decoder.decoder import Decoder
from miudo.engine.embedding import Embedder
from miudo.engine.native import NativeEngine
from miudo.errors import RequestError

# Of a state, whose numbers are about 1: the engines agree to 1e-4 in logits.
STATE_TOLERANCE = 1e-4


@pytest.fixture
def embedder(plain: ModelConfig, make_model: Callable[..., Any]) -> Embedder:
    model = make_model(plain)
    return Embedder(NativeEngine(model, activations="float"), model.weights)


def test_states_are_the_decoders_in_every_config(
    config: ModelConfig, make_model: Callable[..., Any]
) -> None:
    model = make_model(config)
    engine = NativeEngine(model, activations="float")
    ids = [i % config.vocab_size for i in range(3, 40)]
    states = Embedder(engine, model.weights).states(engine.open(), ids)
    with torch.no_grad():
        expected = Decoder.from_weights(config, model.weights)(torch.tensor([ids]))[0].numpy()
    np.testing.assert_allclose(states, expected, rtol=0, atol=STATE_TOLERANCE)


def test_vectors_are_the_mean_or_the_last_of_length_one(
    plain: ModelConfig, make_model: Callable[..., Any]
) -> None:
    model = make_model(plain)
    engine = NativeEngine(model, activations="float")
    embedder = Embedder(engine, model.weights)
    ids = [i % plain.vocab_size for i in range(150)]  # more than two chunks
    states = embedder.states(engine.open(), ids)
    for pooling, expected in (("mean", states.mean(axis=0)), ("last", states[-1])):
        vector = embedder.embed(ids, pooling)  # type: ignore[arg-type]
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-5)
    assert abs(float(embedder.embed(ids) @ embedder.embed(ids, "last"))) < 0.999


def test_a_text_in_company_has_the_vector_that_it_has_alone(embedder: Embedder) -> None:
    alone = embedder.embed([1, 2, 3])
    embedder.embed(list(range(40)))
    np.testing.assert_array_equal(embedder.embed([1, 2, 3]), alone)
    assert not np.array_equal(embedder.embed([3, 2, 1]), alone)


@pytest.mark.parametrize("ids", [[], [-1], [10**6], [1] * 161])
def test_what_cannot_be_embedded_is_refused_and_leaves_nothing(
    plain: ModelConfig, make_model: Callable[..., Any], ids: list[int]
) -> None:
    model = make_model(plain)
    engine = NativeEngine(model)
    with pytest.raises(RequestError):
        Embedder(engine, model.weights).embed(ids)
    assert engine.cache_bytes_used == 0
