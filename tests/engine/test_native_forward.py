"""The native forward against a second one, written here in NumPy and float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from miudo.config import Activation, LayerConfig, Mlp, ModelConfig, Norm, Position, QkNorm
from miudo.decoder.decoder import Decoder
from miudo.decoder.torch_engine import TorchEngine
from miudo.engine.native import NativeEngine
from miudo.formats.blocks import to_f32
from miudo.protocol import SeqWork, Want
from miudo.tensors import DType, StoredTensor

Doubles = npt.NDArray[np.float64]

FLOAT_ROUNDING = 1e-4  # the design's bound on logits of the reference path
LENGTH = 101  # past three tiles of 32 positions, and no multiple of anything


class Oracle:
    """Logits, hidden states and attention of all positions at once, one head at a time."""

    def __init__(self, config: ModelConfig, weights: dict[str, StoredTensor]) -> None:
        self.c = config
        self.w = {name: to_f32(t).astype(np.float64) for name, t in weights.items()}
        self.hidden: list[Doubles] = []
        self.attention: list[Doubles] = []

    def logits(self, ids: list[int]) -> Doubles:
        x = self.w["embed.weight"][ids]
        if self.c.position is Position.LEARNED:
            x = x + self.w["position.weight"][: len(ids)]
        for i, layer in enumerate(self.c.layers):
            self.hidden.append(x)
            at = f"layers.{i}."
            x = x + self.attend(at + "attn.", layer, self.norm(at + "attn_norm", x))
            x = x + self.feed(at + "mlp.", self.norm(at + "mlp_norm", x))
        self.hidden.append(x)
        head = "head" if "head.weight" in self.w else "embed"
        return self.linear(head, self.norm("norm", x))

    def linear(self, name: str, x: Doubles) -> Doubles:
        return self.taken(x) @ self.w[name + ".weight"].T + self.w.get(name + ".bias", 0.0)

    def taken(self, x: Doubles) -> Doubles:
        return x

    def norm(self, name: str, x: Doubles) -> Doubles:
        if self.c.norm is Norm.LAYER:
            x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + self.c.norm_eps)
        return x * self.w[name + ".weight"] + self.w.get(name + ".bias", 0.0)

    def feed(self, at: str, x: Doubles) -> Doubles:
        if self.c.mlp is Mlp.GATED:
            inner = self.act(self.linear(at + "gate", x)) * self.linear(at + "up", x)
        else:
            inner = self.act(self.linear(at + "up", x))
        return self.linear(at + "down", inner)

    def act(self, x: Doubles) -> Doubles:
        match self.c.activation:
            case Activation.SILU:
                return x / (1 + np.exp(-x))
            case Activation.RELU:
                return np.maximum(x, 0)
            case Activation.GELU:
                return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
            case Activation.GELU_TANH:
                return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def attend(self, at: str, c: LayerConfig, x: Doubles) -> Doubles:
        q, k, v = (self.linear(at + name, x) for name in "qkv")
        mixed, shown = [], []
        for head in range(c.n_heads):
            kv = head // (c.n_heads // c.n_kv_heads)
            one = self.turn(at + "q_norm", c, q[:, head * c.head_dim :][:, : c.head_dim])
            key = self.turn(at + "k_norm", c, k[:, kv * c.head_dim :][:, : c.head_dim])
            scores = one @ key.T / math.sqrt(c.head_dim)
            i, j = np.indices(scores.shape)
            scores[(j > i) | (i - j >= (c.window or len(x)))] = -np.inf
            p = np.exp(scores - scores.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            shown.append(p)
            mixed.append(p @ v[:, kv * c.v_head_dim :][:, : c.v_head_dim])
        self.attention.append(np.stack(shown))
        return self.linear(at + "o", np.concatenate(mixed, axis=1))

    def turn(self, norm: str, c: LayerConfig, x: Doubles) -> Doubles:
        if self.c.qk_norm is QkNorm.HEAD:
            x = x / np.sqrt((x**2).mean(-1, keepdims=True) + self.c.norm_eps)
            x = x * self.w[norm + ".weight"]
        if not c.rotary or self.c.position is not Position.ROPE:
            return x
        half = c.head_dim // 2
        angles = np.outer(np.arange(len(x)), c.rope_theta ** (-np.arange(half) / half))
        a, b, cos, sin = x[:, :half], x[:, half:], np.cos(angles), np.sin(angles)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=1)


class RoundingOracle(Oracle):
    """Every input of a matrix is rounded to int8, in groups of 32 that share a float16 scale."""

    def taken(self, x: Doubles) -> Doubles:
        groups = x.reshape(len(x), -1, 32)
        exact = np.abs(groups).max(-1, keepdims=True) / 127
        kept = exact.astype(np.float16).astype(np.float64)
        return (np.rint(groups / exact) * kept).reshape(x.shape)


def ids_for(config: ModelConfig, length: int = LENGTH) -> list[int]:
    rng = np.random.default_rng(3)
    return [int(i) for i in rng.integers(0, config.vocab_size, length)]


@pytest.fixture(params=["portable", "best"])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "portable":
        monkeypatch.setenv("MIUDO_ISA", "portable")
    return str(request.param)


def test_every_kind_of_model_gives_the_oracle_s_numbers(
    config: ModelConfig, make_model: Callable[..., Any], isa: str
) -> None:
    model = make_model(config)
    oracle, ids = Oracle(config, model.weights), ids_for(config)
    expected = oracle.logits(ids)
    engine = NativeEngine(model, threads=2)
    assert engine.isa == isa or isa == "best"
    want = Want.ALL_LOGITS | Want.HIDDEN | Want.ATTENTION
    (out,) = engine.step([SeqWork(engine.open(), ids, want)])
    assert out.logits is not None
    assert out.hidden is not None
    assert out.attention is not None
    assert np.ptp(expected) > 1  # a model that says nothing would agree with everything
    np.testing.assert_allclose(out.logits, expected, rtol=0, atol=FLOAT_ROUNDING)
    np.testing.assert_allclose(out.hidden, np.stack(oracle.hidden), rtol=0, atol=FLOAT_ROUNDING)
    for shown, right in zip(out.attention, oracle.attention, strict=True):
        np.testing.assert_allclose(shown, right, rtol=0, atol=FLOAT_ROUNDING)


def test_each_tensor_matters(config: ModelConfig, make_model: Callable[..., Any]) -> None:
    """Moving any one tensor moves the logits by what the oracle says."""
    model, ids = make_model(config), ids_for(config, 9)
    for name in model.weights:
        moved = dict(model.weights)
        rng = np.random.default_rng(len(name))
        shape = model.weights[name].shape
        noise = rng.standard_normal(shape).astype(np.float32) / np.float32(shape[-1] ** 0.5)
        moved[name] = StoredTensor.from_f32(to_f32(model.weights[name]) + noise)
        engine = NativeEngine(type(model)(config, moved), threads=1)
        (out,) = engine.step([SeqWork(engine.open(), ids, Want.ALL_LOGITS)])
        assert out.logits is not None
        expected = Oracle(config, moved).logits(ids)
        np.testing.assert_allclose(out.logits, expected, rtol=0, atol=FLOAT_ROUNDING)


@pytest.mark.parametrize("dtype", [t for t in DType if t.block > 1])
def test_blocks_give_the_decoder_s_numbers_and_take_the_file_s_memory(
    block_model: Callable[..., Any], dtype: DType, isa: str
) -> None:
    model = block_model(dtype)
    ids = ids_for(model.config, 40)
    engine = NativeEngine(model, threads=2, activations="float")
    conversation, rows = engine.open(), []
    for part in (ids[:33], ids[33:34], ids[34:]):  # a prompt, one id, a few
        (out,) = engine.step([SeqWork(conversation, part, Want.ALL_LOGITS)])
        rows.append(out.logits)
    truth = TorchEngine(Decoder.from_weights(model.config, model.weights))
    (expected,) = truth.step([SeqWork(truth.open(), ids, Want.ALL_LOGITS)])
    logits = np.concatenate(rows)
    assert np.abs(logits).max() > 1
    np.testing.assert_allclose(logits, expected.logits, rtol=0, atol=FLOAT_ROUNDING)
    stored = sum(t.data.size for t in model.weights.values())
    assert engine.weight_bytes < 1.02 * stored  # the last tile of the 131 rows of the vocabulary


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16, DType.Q8_0])
def test_stored_types_give_the_oracle_s_numbers(
    llama_q8: Any, make_model: Callable[..., Any], dtype: DType, isa: str
) -> None:
    model = make_model(llama_q8.config, seed=4, dtype=dtype)
    ids = ids_for(model.config)
    engine = NativeEngine(model, threads=1, activations="float")
    (out,) = engine.step([SeqWork(engine.open(), ids, Want.ALL_LOGITS)])
    assert out.logits is not None
    expected = Oracle(model.config, model.weights).logits(ids)
    np.testing.assert_allclose(out.logits, expected, rtol=0, atol=FLOAT_ROUNDING)


def test_adapters_equal_the_decoder_s_in_every_kind_of_model(
    config: ModelConfig, make_model: Callable[..., Any], make_adapter: Callable[..., Any]
) -> None:
    model, ids = make_model(config), ids_for(config)
    native = NativeEngine(model, threads=2, activations="float")
    truth = TorchEngine(Decoder.from_weights(model.config, model.weights))
    rows = []
    for engine in (native, truth):
        engine.add_adapter("beside", make_adapter(model))
        work = [
            SeqWork(engine.open(), ids, Want.ALL_LOGITS, adapter=name) for name in ("beside", None)
        ]
        rows.append([out.logits for out in engine.step(work)])
    for ours, theirs in zip(*rows, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=FLOAT_ROUNDING)
    assert np.abs(rows[0][0] - rows[0][1]).max() > 1.0


def test_int8_activations_give_the_rounding_oracle_s_numbers(llama_q8: Any, isa: str) -> None:
    ids = ids_for(llama_q8.config)
    engine = NativeEngine(llama_q8, threads=1, activations="int8")
    (out,) = engine.step([SeqWork(engine.open(), ids, Want.ALL_LOGITS)])
    assert out.logits is not None
    rounded = RoundingOracle(llama_q8.config, llama_q8.weights).logits(ids)
    exact = Oracle(llama_q8.config, llama_q8.weights).logits(ids)
    # A float32 that falls on the other side of a rounding step moves what follows by one step,
    # so a few logits may differ; the many must not.
    assert np.median(np.abs(out.logits - rounded)) < 1e-5 < np.median(np.abs(exact - rounded))
    assert np.mean(out.logits.argmax(1) == rounded.argmax(1)) > 0.98


def test_packed_weights_take_no_more_than_their_files_and_padding(llama_q8: Any) -> None:
    stored = sum(t.data.nbytes for t in llama_q8.weights.values())
    assert NativeEngine(llama_q8).weight_bytes <= stored * 1.1
