"""What rounded keys and values cost: numbers against the float32 cache, and bytes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from miudo.config import ModelConfig
from miudo.data.sample import sample_documents
from miudo.decoder.cache import KVCache
from miudo.decoder.decoder import Decoder
from miudo.engine.native import CACHE_TYPES, CacheType, NativeEngine
from miudo.errors import RequestError, ResourceError
from miudo.formats import open_model
from miudo.hub.resolve import embedded_path
from miudo.protocol import SeqWork, Want
from miudo.text.tokenizer import TextTokenizer


def log_softmax(engine: NativeEngine, ids: list[int]) -> np.ndarray:
    (out,) = engine.step([SeqWork(engine.open(), ids, Want.ALL_LOGITS)])
    assert out.logits is not None
    logits = out.logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def divergence(log_p: np.ndarray, log_q: np.ndarray) -> float:
    """Mean KL(p || q) a position, in nats."""
    return float((np.exp(log_p) * (log_p - log_q)).sum(1).mean())


def test_the_rule_is_f16_and_f32_where_activations_are_floats(llama: Any) -> None:
    assert NativeEngine(llama).cache == "f16"
    assert NativeEngine(llama, activations="float").cache == "f32"
    for cache in CACHE_TYPES:
        assert NativeEngine(llama, activations="float", cache=cache).cache == cache
    with pytest.raises(
        RequestError, match=r"cache is 'f64'.*Say one of f32, f16, bf16, int8, int4"
    ):
        NativeEngine(llama, cache="f64")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cache", "bound"), [("f16", 5e-7), ("bf16", 4e-5), ("int8", 4e-4), ("int4", 4.5e-2)]
)
def test_divergence_of_a_trained_model_on_text(cache: CacheType, bound: float) -> None:
    """About three times what is seen: 1.5e-7, 1.2e-5, 1.1e-4 and 1.5e-2."""
    model = open_model(embedded_path())
    assert model.tokenizer is not None
    texts = [document.text for document in islice(sample_documents(0), 40)]
    ids = TextTokenizer(model.tokenizer).encode("\n".join(texts))[:480]
    assert len(ids) == 480
    engines = [NativeEngine(model, activations="float", cache=c) for c in ("f32", cache)]
    right, rounded = (log_softmax(engine, ids) for engine in engines)
    kl = divergence(right, rounded)
    assert 0 < kl <= bound
    assert (right.argmax(1) == rounded.argmax(1)).mean() >= (0.8 if cache == "int4" else 0.99)


@pytest.mark.parametrize("isa", ["portable", "avx2", None])
@pytest.mark.parametrize("cache", CACHE_TYPES)
def test_every_kind_of_model_is_near_its_float32_cache(
    family: ModelConfig,
    make_model: Callable[..., Any],
    cache: CacheType,
    isa: str | None,
    force_isa: Callable[[str | None], None],
) -> None:
    """Random weights are as hard as it gets: a step of a key is one of a score."""
    force_isa(isa)
    model = make_model(family)
    ids = np.random.default_rng(1).integers(0, family.vocab_size, 70).tolist()
    outs = []
    for engine in (NativeEngine(model, activations="float", cache=c) for c in ("f32", cache)):
        (out,) = engine.step([SeqWork(engine.open(), ids, Want.ALL_LOGITS)])
        outs.append(out.logits)
    off = np.abs(outs[0] - outs[1])
    bound = {"f32": 0.0, "f16": 2e-3, "bf16": 2e-2, "int8": 2e-2, "int4": 2e-1}[cache]
    assert np.median(off) <= bound
    assert (off.max() > 0) == (cache != "f32")


def int8_rounded(x: Tensor) -> Tensor:
    """The rule on groups [..., 32]: float16 scales of amax / 127, numbers half to even."""
    most = x.abs().amax(-1, keepdim=True)
    scale = (most / 127).half().float()
    inverse = torch.where((scale > 0) & (most > 0), 127 / most, torch.zeros(()))
    return (x * inverse).round().clamp(-127, 127) * scale


def int4_rounded(x: Tensor) -> Tensor:
    """The rule on groups [..., n]: a float16 minimum, then a float16 fifteenth of what is above."""
    least = x.amin(-1, keepdim=True).half().float()
    step = ((x.amax(-1, keepdim=True) - least) / 15).clamp(min=0).half().float()
    inverse = torch.where(step > 0, 1 / step, torch.zeros(()))
    return ((x - least) * inverse).round().clamp(0, 15) * step + least


class RoundedCache(KVCache):
    """The decoder's cache, but what it holds is rounded in groups of 32."""

    def __init__(self, config: ModelConfig, rounded: Callable[[Tensor], Tensor]) -> None:
        super().__init__(config)
        self.rounded = rounded

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        kept = [
            torch.cat([self.rounded(group) for group in x.split(32, dim=-1)], dim=-1)
            for x in (keys, values)
        ]
        return super().extend(layer, *kept)


@pytest.mark.parametrize("isa", ["portable", "avx2", None])
@pytest.mark.parametrize(
    ("cache", "rounded"), [("int8", int8_rounded), ("int4", int4_rounded)], ids=["int8", "int4"]
)
def test_the_decoder_with_a_cache_so_rounded_has_the_same_logits(
    family: ModelConfig,
    make_model: Callable[..., Any],
    cache: CacheType,
    rounded: Callable[[Tensor], Tensor],
    isa: str | None,
    force_isa: Callable[[str | None], None],
) -> None:
    """Within a hundredth of what rounding changes: where sums differ in their last bit, a number
    may fall on the other side of a step, and all that comes after it differs a little."""
    force_isa(isa)
    model = make_model(family)
    ids = np.random.default_rng(1).integers(0, family.vocab_size, 70).tolist()
    engine = NativeEngine(model, activations="float", cache=cache)
    (out,) = engine.step([SeqWork(engine.open(), ids, Want.ALL_LOGITS)])
    decoder = Decoder.from_weights(model.config, model.weights)
    caches = (RoundedCache(model.config, rounded), KVCache(model.config))
    with torch.inference_mode():
        off, cost = (
            np.median(np.abs(out.logits - decoder.logits(hidden)[0].numpy()).max(1))
            for hidden in (decoder(torch.tensor([ids]), cache=c) for c in caches)
        )
    assert off <= cost / 100


@pytest.mark.parametrize(
    ("cache", "head_bytes"),
    # A position's key of 40 and value of 40, which has room for 48; int8 with two scales each. Int4
    # has two numbers a byte in a whole group, one in a last one of 16 or fewer; two scales a group.
    [
        ("f32", 4 * 88),
        ("f16", 2 * 88),
        ("bf16", 2 * 88),
        ("int8", 88 + 2 * 2 * 2),
        ("int4", (16 + 8) + (16 + 16) + 2 * 2 * 4),
    ],
)
def test_bytes_of_a_page(make_model: Callable[..., Any], cache: CacheType, head_bytes: int) -> None:
    config = ModelConfig.uniform(
        n_layers=3, d_model=80, n_heads=4, n_kv_heads=2, head_dim=40, d_ff=32, vocab_size=40,
        max_positions=128,
    )  # fmt: skip
    model, page = make_model(config), 32 * 3 * 2 * head_bytes
    engine = NativeEngine(model, threads=1, cache=cache, cache_bytes=2 * page)
    k = engine.open()
    for length, pages in ((1, 1), (32, 1), (33, 2), (64, 2)):
        engine.step([SeqWork(k, range(length - engine.length(k)), Want.NOTHING)])
        assert engine.cache_bytes_used == pages * page
    with pytest.raises(RequestError, match="the cache is full: 1 pages are wanted, 0 are free"):
        engine.step([SeqWork(k, [1])])
    with pytest.raises(ResourceError, match=f"one page of 32 positions takes {page}"):
        NativeEngine(model, cache=cache, cache_bytes=page - 1)
