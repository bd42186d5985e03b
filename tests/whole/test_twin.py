"""The native engine equals the decoder: on the tiny model, from a folder and from GGUF.

The bounds are the design's: float path 1e-4 in logits; int8 activations KL at most 1e-5 a token
and the same most probable id for at least 99.9% of tokens.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from miudo.decoder.decoder import Decoder
from miudo.decoder.fake_quant import round_activations
from miudo.decoder.torch_engine import TorchEngine
from miudo.engine.native import NativeEngine
from miudo.formats import ModelFile, open_model
from miudo.formats.gguf import write_gguf
from miudo.protocol import Engine, SeqWork, Want
from miudo.tensors import DType

TINY = Path(__file__).parent.parent / "data" / "tiny"
FLOAT_BOUND = 1e-4
KL_BOUND = 1e-5
SAME_TOP = 0.999


@pytest.fixture(params=["folder", "f32", "q8_0"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> ModelFile:
    folder = open_model(TINY)
    if request.param == "folder":
        return folder
    dtype = DType.F32 if request.param == "f32" else DType.Q8_0
    write_gguf(tmp_path / "tiny.gguf", folder, dtype=dtype)
    return open_model(tmp_path / "tiny.gguf")


def corpus(model: ModelFile, n: int) -> list[int]:
    """Ids that the model itself finds likely: text, as far as a tiny model knows it."""
    engine = TorchEngine(Decoder.from_weights(model.config, model.weights))
    return greedy(engine, [0, 5, 9], n - 3)


def greedy(engine: Engine, prompt: Sequence[int], n: int) -> list[int]:
    conversation, ids, pending = engine.open(), list(prompt), list(prompt)
    for _ in range(n):
        (out,) = engine.step([SeqWork(conversation, pending)])
        assert out.token is not None
        pending = [out.token]
        ids += pending
    engine.close(conversation)
    return ids


def all_logits(engine: Engine, ids: Sequence[int]) -> np.ndarray:
    (out,) = engine.step([SeqWork(engine.open(), ids, Want.ALL_LOGITS)])
    assert out.logits is not None
    return out.logits.astype(np.float64)


def test_float_path_equals_the_decoder(model: ModelFile) -> None:
    torch_engine = TorchEngine(Decoder.from_weights(model.config, model.weights))
    native = NativeEngine(model, activations="float")
    ids = corpus(model, 200)
    difference = np.abs(all_logits(native, ids) - all_logits(torch_engine, ids))
    assert difference.max() <= FLOAT_BOUND
    assert greedy(native, ids[:3], 197) == ids


def test_int8_path_equals_the_decoder_that_rounds_alike(model: ModelFile) -> None:
    blocks = [name for name, tensor in model.weights.items() if tensor.dtype is DType.Q8_0]
    decoder = Decoder.from_weights(model.config, model.weights)
    torch_engine = TorchEngine(round_activations(decoder, blocks))
    native = NativeEngine(model, activations="int8")
    ids = corpus(model, 200)
    ours, truth = all_logits(native, ids), all_logits(torch_engine, ids)
    log_p, log_q = (x - np.log(np.exp(x).sum(1, keepdims=True)) for x in (truth, ours))
    assert (np.exp(log_p) * (log_p - log_q)).sum(1).mean() <= KL_BOUND
    assert (ours.argmax(1) == truth.argmax(1)).mean() >= SAME_TOP


def test_insides_equal_the_decoder_s(model: ModelFile) -> None:
    torch_engine = TorchEngine(Decoder.from_weights(model.config, model.weights))
    native = NativeEngine(model, activations="float")
    ids, want = corpus(model, 60), Want.HIDDEN | Want.ATTENTION
    (a,) = native.step([SeqWork(native.open(), ids, want)])
    (b,) = torch_engine.step([SeqWork(torch_engine.open(), ids, want)])
    np.testing.assert_allclose(a.hidden, b.hidden, atol=FLOAT_BOUND)
    assert a.attention is not None
    assert b.attention is not None
    for ours, truth in zip(a.attention, b.attention, strict=True):
        np.testing.assert_allclose(ours, truth, atol=FLOAT_BOUND)
