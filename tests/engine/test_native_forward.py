"""The native forward against a second one, written here in NumPy and float64."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from miudo.config import (
    Activation,
    Block,
    LatentAttention,
    LayerConfig,
    Mlp,
    ModelConfig,
    Norm,
    Parallel,
    Position,
    QkNorm,
    RopeKind,
    RopeScaling,
)
from miudo.decoder.decoder import Decoder
from miudo.decoder.torch_engine import TorchEngine
from miudo.engine.native import NativeEngine
from miudo.formats.blocks import to_f32
from miudo.positional import alibi_slopes, frequencies
from miudo.protocol import SeqWork, Want
from miudo.tensors import DType, Role, StoredTensor, tensor_table

Doubles = npt.NDArray[np.float64]

WATCHED = Want.ALL_LOGITS | Want.HIDDEN | Want.ATTENTION
FLOAT_ROUNDING = 1e-4  # the design's bound on logits of the reference path
UNSTORED = ("attn_norm", "mlp_norm")  # norms of a model that stores no weights for them
LENGTH = 101  # past three tiles of 32 positions, and no multiple of anything


class Oracle:
    """Logits, hidden states and attention of all positions at once, one head at a time."""

    def __init__(self, config: ModelConfig, weights: dict[str, StoredTensor]) -> None:
        self.c = config
        self.w = {name: to_f32(t).astype(np.float64) for name, t in weights.items()}
        self.norms = {
            s.name.rpartition(".")[0] for s in tensor_table(config) if s.role is Role.NORM
        }
        if not config.norm_weight:
            self.norms |= {"norm"} | {f"layers.{i}.{n}" for i in range(9) for n in UNSTORED}
        self.hidden: list[Doubles] = []
        self.attention: list[Doubles] = []

    def logits(self, ids: list[int]) -> Doubles:
        c = self.c
        x = self.norm("embed_norm", self.w["embed.weight"][ids] * c.embed_scale)
        if c.position is Position.LEARNED:
            x = x + self.w["position.weight"][: len(ids)]
        for i, layer in enumerate(c.layers):
            self.hidden.append(x)
            at = f"layers.{i}."
            before = self.norm(at + "attn_norm", x)
            mixed = self.norm(at + "attn_post_norm", self.attend(at + "attn.", layer, before))
            if c.parallel is Parallel.NONE:
                x = x + mixed * c.residual_scale
                fed = self.feed(at + "mlp.", self.norm(at + "mlp_norm", x))
                x = x + self.norm(at + "mlp_post_norm", fed) * c.residual_scale
            else:
                shared = c.parallel is Parallel.ONE_NORM
                fed = self.feed(at + "mlp.", before if shared else self.norm(at + "mlp_norm", x))
                x = x + (mixed + fed) * c.residual_scale
        self.hidden.append(x)
        head = "head" if "head.weight" in self.w else "embed"
        return capped(self.linear(head, self.norm("norm", x)) * c.logit_scale, c.logit_softcap)

    def linear(self, name: str, x: Doubles) -> Doubles:
        return self.taken(x) @ self.w[name + ".weight"].T + self.w.get(name + ".bias", 0.0)

    def taken(self, x: Doubles) -> Doubles:
        return x

    def norm(self, name: str, x: Doubles) -> Doubles:
        if name not in self.norms:
            return x
        if self.c.norm is Norm.LAYER:
            x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + self.c.norm_eps)
        return x * self.w.get(name + ".weight", 1.0) + self.w.get(name + ".bias", 0.0)

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
        q, k, v = (self.plain if self.c.latent is None else self.latent)(at, c, x)
        mixed, shown = [], []
        for head in range(c.n_heads):
            kv = head // (c.n_heads // c.n_kv_heads)
            scores = q[:, head] @ k[:, kv].T * (self.c.attn_scale or c.head_dim**-0.5)
            scores = capped(scores, self.c.attn_softcap)
            i, j = np.indices(scores.shape)
            if self.c.position is Position.ALIBI:
                scores = scores + alibi_slopes(c.n_heads)[head] * (j - i)
            scores[(j > i) | (i - j >= (c.window or len(x)))] = -np.inf
            p = np.exp(scores - scores.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            shown.append(p)
            mixed.append(p @ v[:, kv])
        self.attention.append(np.stack(shown))
        return self.linear(at + "o", np.concatenate(mixed, axis=1))

    def plain(self, at: str, c: LayerConfig, x: Doubles) -> tuple[Doubles, Doubles, Doubles]:
        """Queries, keys and values [T, heads, size]."""
        made = []
        for name, heads in (("q", c.n_heads), ("k", c.n_kv_heads)):
            y, t = self.linear(at + name, x), len(x)
            if self.c.qk_norm is QkNorm.FULL:
                y = self.norm(f"{at}{name}_norm", y)
            y = y.reshape(t, heads, c.head_dim)
            if self.c.qk_norm is QkNorm.HEAD:
                y = self.norm(f"{at}{name}_norm", y)
            made.append(np.stack([self.turn(c, y[:, h]) for h in range(heads)], axis=1))
        v = self.linear(at + "v", x).reshape(len(x), c.n_kv_heads, c.v_head_dim)
        return made[0], made[1], v

    def latent(self, at: str, c: LayerConfig, x: Doubles) -> tuple[Doubles, Doubles, Doubles]:
        s = self.c.latent
        assert s is not None
        plain, t = c.head_dim - s.rope_dim, len(x)

        def rms(name: str, y: Doubles) -> Doubles:
            return y / np.sqrt((y**2).mean(-1, keepdims=True) + s.norm_eps) * self.w[at + name]

        low = x if s.q_rank is None else rms("q_a_norm.weight", self.linear(at + "q_a", x))
        q = self.linear(at + ("q" if s.q_rank is None else "q_b"), low).reshape(t, c.n_heads, -1)
        narrow = self.linear(at + "kv_a", x)
        wide = self.linear(at + "kv_b", rms("kv_a_norm.weight", narrow[:, : s.kv_rank]))
        wide = wide.reshape(t, c.n_heads, -1)
        shared = self.turn(c, narrow[:, s.kv_rank :])
        queries = [
            np.concatenate([q[:, h, :plain], self.turn(c, q[:, h, plain:])], 1)
            for h in range(c.n_heads)
        ]
        keys = [np.concatenate([wide[:, h, :plain], shared], 1) for h in range(c.n_heads)]
        return np.stack(queries, 1), np.stack(keys, 1), wide[:, :, plain:]

    def turn(self, c: LayerConfig, x: Doubles) -> Doubles:
        if not c.rotary:
            return x
        angles = np.outer(np.arange(len(x)), frequencies(self.c, c))
        half = angles.shape[1]
        factor = self.c.rope_scaling.attention_factor if self.c.rope_scaling else 1.0
        a, b, cos, sin = x[:, :half], x[:, half : 2 * half], np.cos(angles), np.sin(angles)
        turned = [(a * cos - b * sin) * factor, (b * cos + a * sin) * factor]
        return np.concatenate([*turned, x[:, 2 * half :]], axis=1)


def capped(x: Doubles, cap: float | None) -> Doubles:
    return x if cap is None else cap * np.tanh(x / cap)


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


@pytest.fixture(params=["portable", "avx2", "best"])
def isa(request: pytest.FixtureRequest, force_isa: Callable[[str | None], None]) -> str:
    force_isa(None if request.param == "best" else request.param)
    return str(request.param)


def test_every_kind_of_model_gives_the_oracle_s_numbers(
    config: ModelConfig, make_model: Callable[..., Any], isa: str
) -> None:
    model = make_model(config)
    oracle, ids = Oracle(config, model.weights), ids_for(config)
    expected = oracle.logits(ids)
    engine = NativeEngine(model, threads=2, cache="f32")
    assert engine.isa == isa or isa == "best"
    (out,) = engine.step([SeqWork(engine.open(), ids, WATCHED)])
    assert out.logits is not None
    assert out.hidden is not None
    assert out.attention is not None
    assert np.ptp(expected) > 1  # a model that says nothing would agree with everything
    np.testing.assert_allclose(out.logits, expected, rtol=0, atol=FLOAT_ROUNDING)
    np.testing.assert_allclose(out.hidden, np.stack(oracle.hidden), rtol=0, atol=FLOAT_ROUNDING)
    for shown, right in zip(out.attention, oracle.attention, strict=True):
        np.testing.assert_allclose(shown, right, rtol=0, atol=FLOAT_ROUNDING)


def test_each_tensor_matters(family: ModelConfig, make_model: Callable[..., Any]) -> None:
    """Moving any one tensor moves the logits by what the oracle says."""
    config = family
    model, ids = make_model(config), ids_for(config, 9)
    for name in model.weights:
        moved = dict(model.weights)
        rng = np.random.default_rng(len(name))
        shape = model.weights[name].shape
        noise = rng.standard_normal(shape).astype(np.float32) / np.float32(shape[-1] ** 0.5)
        moved[name] = StoredTensor.from_f32(to_f32(model.weights[name]) + noise)
        engine = NativeEngine(type(model)(config, moved), threads=1, cache="f32")
        (out,) = engine.step([SeqWork(engine.open(), ids, Want.ALL_LOGITS)])
        assert out.logits is not None
        expected = Oracle(config, moved).logits(ids)
        np.testing.assert_allclose(out.logits, expected, rtol=0, atol=FLOAT_ROUNDING)


@pytest.mark.parametrize("dtype", [t for t in DType if t.block > 1 and not t.sparse])
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
    # Scales of scales on lines of their own, and the last tile of the 131 rows of the vocabulary.
    # TQ1_0, five values in a byte, is unpacked to two bits a value.
    assert engine.weight_bytes < (1.3 if dtype is DType.TQ1_0 else 1.12) * stored


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


def decoder_of(model: Any) -> TorchEngine:
    return TorchEngine(Decoder.from_weights(model.config, model.weights))


def test_every_kind_of_model_equals_the_decoder(
    config: ModelConfig, make_model: Callable[..., Any]
) -> None:
    """A prompt at once, then ids one by one: logits, hidden states and attention."""
    model, ids = make_model(config), ids_for(config, 60)
    engines = (NativeEngine(model, threads=1, cache="f32"), decoder_of(model))
    conversations = [engine.open() for engine in engines]
    for part in (ids[:50], *([i] for i in ids[50:])):
        ours, theirs = (
            engine.step([SeqWork(k, part, WATCHED)])[0]
            for engine, k in zip(engines, conversations, strict=True)
        )
        np.testing.assert_allclose(ours.logits, theirs.logits, rtol=0, atol=FLOAT_ROUNDING)
        np.testing.assert_allclose(ours.hidden, theirs.hidden, rtol=0, atol=FLOAT_ROUNDING)
        assert ours.attention is not None
        assert theirs.attention is not None
        for one, other in zip(ours.attention, theirs.attention, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=FLOAT_ROUNDING)


def mixture(seed: int) -> ModelConfig:
    """Switches drawn at random, among those that may go together; every layer of its own shape."""
    rng = np.random.default_rng(seed)

    def one(*choices: Any) -> Any:
        return choices[rng.integers(len(choices))]

    position, norm_weight = one(*Position), one(True, True, False)
    latent = one(None, None, LatentAttention(kv_rank=9, rope_dim=4, q_rank=one(None, 11)))
    layers = []
    for _ in range(3):
        kv, group = one(1, 2, 3), 1 if latent else one(1, 2)
        rotary = position is Position.ROPE and one(True, True, False)
        layers.append(
            LayerConfig(
                n_heads=kv * group, n_kv_heads=kv, head_dim=one(6, 8, 14), v_head_dim=one(5, 8),
                d_ff=one(24, 33), window=one(None, 3, 40), rotary=rotary,
                rotary_dim=4 if latent else one(None, 2, 6), rope_theta=one(100.0, 1e5),
            )
        )  # fmt: skip
    block = one(*Block)
    scaling = RopeScaling(one(RopeKind.LINEAR, RopeKind.LLAMA3, RopeKind.YARN), 16, factor=4.0)
    return ModelConfig(
        vocab_size=59, d_model=30, max_positions=128, layers=tuple(layers), position=position,
        norm=one(*Norm), norm_eps=one(1e-6, 1e-2), norm_weight=norm_weight,
        norm_bias=norm_weight and one(True, False), block=block,
        parallel=one(*Parallel) if block is Block.PRE else Parallel.NONE,
        embed_norm=one(True, False), latent=latent, mlp=one(*Mlp), activation=one(*Activation),
        rope_scaling=one(None, scaling) if position is Position.ROPE else None,
        qk_norm=QkNorm.NONE if latent else one(*QkNorm),
        qkv_bias=False if latent else one(True, False), o_bias=one(True, False),
        mlp_bias=one(True, False), tie_embeddings=one(True, False),
        attn_scale=one(None, 0.7), attn_softcap=one(None, 2.0), logit_softcap=one(None, 3.0),
        embed_scale=one(1.0, 5.0), residual_scale=one(1.0, 0.5), logit_scale=one(1.0, 1.7),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(40))
def test_any_mixture_equals_the_decoder_and_its_own_pieces(
    seed: int, make_model: Callable[..., Any]
) -> None:
    config = mixture(seed)
    model, ids = make_model(config), ids_for(config, 70)
    ours, theirs = NativeEngine(model, threads=1, cache="f32"), decoder_of(model)
    (whole,), (right,) = (
        engine.step([SeqWork(engine.open(), ids, WATCHED)]) for engine in (ours, theirs)
    )
    np.testing.assert_allclose(whole.logits, right.logits, rtol=0, atol=FLOAT_ROUNDING)
    np.testing.assert_allclose(whole.hidden, right.hidden, rtol=0, atol=FLOAT_ROUNDING)
    conversation, rows = ours.open(), []
    for part in (ids[:1], ids[1:35], ids[35:]):
        (out,) = ours.step([SeqWork(conversation, part, Want.ALL_LOGITS)])
        rows.append(out.logits)
    np.testing.assert_array_equal(np.concatenate(rows), whole.logits)


def test_no_field_of_a_config_is_left_out(
    plain: ModelConfig, every_config: dict[str, ModelConfig]
) -> None:
    """A field that the engine did not know would pass all tests that never set it."""

    def moved(field: dataclasses.Field[Any], configs: list[Any], usual: Any) -> bool:
        return any(getattr(c, field.name) != getattr(usual, field.name) for c in configs)

    configs = list(every_config.values())
    for field in dataclasses.fields(ModelConfig):
        if field.name not in ("bos_id", "eos_ids", "pad_id"):  # nothing is computed with them
            assert moved(field, configs, plain), field.name
    layers = [layer for c in configs for layer in c.layers]
    for field in dataclasses.fields(LayerConfig):
        assert moved(field, layers, plain.layers[0]), field.name


def test_every_switch_moves_the_logits(
    switched: ModelConfig, plain: ModelConfig, make_model: Callable[..., Any]
) -> None:
    """What both models store is equal, so the switch alone makes them differ."""
    ids, rows = ids_for(plain, 60), []
    for config in (plain, switched):
        engine = NativeEngine(make_model(config), threads=1)
        (out,) = engine.step([SeqWork(engine.open(), ids, Want.ALL_LOGITS)])
        rows.append(out.logits)
    assert np.abs(rows[0] - rows[1]).max() > 1000 * FLOAT_ROUNDING


def test_adapters_equal_the_decoder_s_in_every_kind_of_model(
    family: ModelConfig, make_model: Callable[..., Any], make_adapter: Callable[..., Any]
) -> None:
    model, ids = make_model(family), ids_for(family)
    rows = []
    for engine in (NativeEngine(model, threads=2, activations="float"), decoder_of(model)):
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
    engine = NativeEngine(llama_q8, threads=1, activations="int8", cache="f32")
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
