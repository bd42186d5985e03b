"""The native engine equals the decoder: on the tiny model, from a folder and from GGUF.

The float path keeps to 1e-4 in logits. The int8 path rounds activations, and is held against a
decoder that rounds by the same rule.
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
FLOAT_KL = 1e-10  # what 1e-5 in logits comes to
ROUNDINGS = 2.0  # two independent roundings differ by the cost of both
SAME_TOP = 0.95  # 0.96 of 200 ids at Q8_0: a float16 scale is one more step to fall beside


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


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def divergence(log_p: np.ndarray, log_q: np.ndarray) -> float:
    """Mean KL(p || q) a position, in nats."""
    return float((np.exp(log_p) * (log_p - log_q)).sum(1).mean())


def test_float_path_equals_the_decoder(model: ModelFile) -> None:
    torch_engine = TorchEngine(Decoder.from_weights(model.config, model.weights))
    native = NativeEngine(model, activations="float")
    ids = corpus(model, 200)
    difference = np.abs(all_logits(native, ids) - all_logits(torch_engine, ids))
    assert difference.max() <= FLOAT_BOUND
    assert greedy(native, ids[:3], 197) == ids


def test_int8_path_is_as_near_as_its_own_rounding(model: ModelFile) -> None:
    """Linear layers are equal bit for bit (tests/engine); between them a sum of floats that
    differs in its last bit now and then falls on the other side of a rounding step, and from
    there on the two round different numbers. So whole models differ by about what rounding
    activations costs at all, not by less: no other bound holds for both kinds of arithmetic.
    """
    blocks = [name for name, tensor in model.weights.items() if tensor.dtype is DType.Q8_0]
    exact = TorchEngine(Decoder.from_weights(model.config, model.weights))
    rounded_decoder = Decoder.from_weights(model.config, model.weights)
    rounded = TorchEngine(round_activations(rounded_decoder, blocks))
    ids = corpus(model, 200)
    ours = log_softmax(all_logits(NativeEngine(model, cache="f32"), ids))
    truth, plain = (log_softmax(all_logits(engine, ids)) for engine in (rounded, exact))
    cost_of_rounding = divergence(plain, truth) + FLOAT_KL
    assert divergence(truth, ours) <= ROUNDINGS * cost_of_rounding
    assert (ours.argmax(1) == truth.argmax(1)).mean() >= SAME_TOP
    np.testing.assert_allclose(ours[0], truth[0], atol=FLOAT_BOUND)  # before anything drifted


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
