"""Sessions: a longrope model takes one set of factors for all positions of all its texts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from miudo.config import ModelConfig, RopeKind, RopeScaling
from miudo.decoder.decoder import Decoder
from miudo.decoder.torch_engine import TorchEngine
from miudo.engine.native import NativeEngine
from miudo.errors import ConfigError, RequestError
from miudo.formats import ModelFile
from miudo.protocol import Engine, SeqWork, Want

ORIGINAL, MOST = 16, 64
FACTORS = RopeScaling(
    RopeKind.LONGROPE,
    ORIGINAL,
    short_factors=(1.0, 1.5, 2.0, 2.5),
    long_factors=(4.0, 6.0, 8.0, 9.0),
)
CONFIG = ModelConfig.uniform(
    n_layers=2, d_model=32, n_heads=4, d_ff=64, vocab_size=50, max_positions=MOST,
    rope_scaling=FACTORS,
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> ModelFile:
    torch.set_num_threads(1)
    decoder, generator = Decoder(CONFIG), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in decoder.parameters():
            value.normal_(0.0, 0.3, generator=generator)
    return ModelFile(CONFIG, decoder.to_weights(), None, None, None, "", None)


@pytest.fixture(params=["torch", "native"])
def engine(request: pytest.FixtureRequest, model: ModelFile):  # noqa: ANN201 - a function
    def make(context: int | None) -> Engine:
        if request.param == "native":
            return NativeEngine(model, threads=1, activations="float", context=context)
        return TorchEngine(Decoder.from_weights(CONFIG, model.weights, context=context))

    return make


def last(engine: Engine, ids: list[int]) -> np.ndarray:
    (out,) = engine.step([SeqWork(engine.open(), ids, want=Want.LAST_LOGITS)])
    assert out.logits is not None
    return out.logits


def test_a_session_has_the_original_positions_unless_more_are_asked_for(engine) -> None:  # noqa: ANN001
    assert engine(None).config.max_positions == ORIGINAL
    assert engine(33).config.max_positions == 33
    with pytest.raises(RequestError, match="17 positions, the model has 16"):
        last(engine(None), list(range(17)))
    with pytest.raises(ConfigError, match="context is 65"):
        engine(MOST + 1)


def test_all_positions_of_a_long_session_take_the_long_factors(engine) -> None:  # noqa: ANN001
    ids = list(range(12))
    short, long = last(engine(None), ids), last(engine(33), ids)
    assert np.abs(short - long).max() > 1e-2
    np.testing.assert_allclose(last(engine(ORIGINAL), ids), short, atol=1e-6)
    np.testing.assert_allclose(last(engine(ORIGINAL + 1), ids), long, atol=1e-6)


def test_a_row_without_a_cache_is_rotated_as_its_length_wants(model: ModelFile) -> None:
    ids = torch.arange(33)[None] % 50
    plain = Decoder.from_weights(CONFIG, model.weights)
    asked = Decoder.from_weights(CONFIG, model.weights, context=33)
    with torch.no_grad():
        assert torch.equal(plain(ids), asked(ids))
        assert not torch.allclose(plain(ids[:, :12]), asked(ids[:, :12]), atol=1e-3)
    with pytest.raises(RequestError, match="65 positions, the model has 64"):
        plain(torch.zeros(1, MOST + 1, dtype=torch.int64))
    assert plain.config == CONFIG  # what is written keeps all its positions


def test_other_models_have_all_their_positions() -> None:
    plain = ModelConfig.uniform(
        n_layers=1, d_model=32, n_heads=4, d_ff=64, vocab_size=50, max_positions=MOST
    )
    assert Decoder(plain).session == plain
    assert plain.with_context(8).max_positions == 8
