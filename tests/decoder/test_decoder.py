"""The decoder: cached against whole, every switch, captures, weights in and out."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from miudo.config import ModelConfig
from miudo.decoder.attention import Capture
from miudo.decoder.cache import KVCache
from miudo.decoder.decoder import Decoder
from miudo.decoder.masks import causal_mask
from miudo.decoder.position import rotate, rotation
from miudo.errors import ModelFileError, RequestError
from miudo.tensors import StoredTensor, parameter_count, tensor_table

# Two float32 orders of summation over some hundred products differ by about this much.
ROUNDING = 2e-5


def noised(config: ModelConfig, seed: int = 0) -> Decoder:
    """A decoder whose every parameter matters: default norms and biases would hide errors."""
    decoder = Decoder(config)
    decoder.initialise(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for value in decoder.parameters():
            value.add_(torch.randn(value.shape, generator=generator) * 0.2)
    return decoder.eval()


@pytest.mark.parametrize("chunks", [(40,), (1,) * 40, (17, 1, 22)], ids=["whole", "one", "mixed"])
@torch.inference_mode()
def test_cached_forward_equals_whole_forward(config: ModelConfig, chunks: tuple[int, ...]) -> None:
    decoder = noised(config)
    ids = torch.arange(80).reshape(2, 40) % config.vocab_size
    whole = decoder.logits(decoder(ids))
    cache = KVCache(decoder.config, batch=2)
    pieces = [decoder(part, cache=cache) for part in ids.split(list(chunks), dim=1)]
    assert cache.length == 40
    torch.testing.assert_close(
        decoder.logits(torch.cat(pieces, 1)), whole, atol=ROUNDING * 10, rtol=0
    )


@torch.inference_mode()
def test_future_ids_change_nothing_before_them(config: ModelConfig) -> None:
    decoder = noised(config)
    ids = torch.arange(30)[None]
    other = ids.clone()
    other[0, 20:] = 59
    before, after = decoder(ids)[:, :20], decoder(other)[:, :20]
    torch.testing.assert_close(before, after, atol=ROUNDING, rtol=0)
    assert not torch.equal(decoder(ids)[:, 20:], decoder(other)[:, 20:])


@torch.inference_mode()
def test_capture_changes_no_number_and_attention_sums_to_one(config: ModelConfig) -> None:
    decoder = noised(config)
    ids = torch.arange(24)[None]
    capture = Capture(want_attention=True)
    torch.testing.assert_close(decoder(ids, capture=capture), decoder(ids), atol=1e-4, rtol=0)
    assert len(capture.hidden) == decoder.config.n_layers + 1
    torch.testing.assert_close(decoder.norm(capture.hidden[-1]), decoder(ids), atol=1e-4, rtol=0)
    for weights, layer in zip(capture.attention, config.layers, strict=True):
        assert weights.shape == (1, layer.n_heads, 24, 24)
        torch.testing.assert_close(weights.sum(-1), torch.ones(1, layer.n_heads, 24))
        seen = causal_mask(torch.arange(24), 24, layer.window)
        assert float(weights[..., ~seen].abs().max()) == 0.0


@torch.inference_mode()
def test_capture_after_a_cached_prompt(config: ModelConfig) -> None:
    """The weights shown are those that were used: also where keys outnumber queries."""
    decoder = noised(config)
    ids = torch.arange(24)[None]
    whole, part = Capture(want_attention=True), Capture(want_attention=True)
    right = decoder(ids, capture=whole)
    cache = KVCache(config)
    decoder(ids[:, :9], cache=cache)
    out = decoder(ids[:, 9:], cache=cache, capture=part)
    torch.testing.assert_close(out, right[:, 9:], atol=1e-4, rtol=0)
    for one, other in zip(whole.attention, part.attention, strict=True):
        torch.testing.assert_close(one[:, :, 9:], other, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_every_switch_moves_the_logits(
    switched: ModelConfig, plain: ModelConfig, make_model: Callable[..., Any]
) -> None:
    """What both models store is equal, so the switch alone makes them differ."""
    ids = torch.arange(60)[None]
    rows = [
        decoder.logits(decoder(ids))
        for decoder in (Decoder.from_weights(c, make_model(c).weights) for c in (plain, switched))
    ]
    assert float((rows[0] - rows[1]).abs().max()) > 0.1


def test_mask_of_a_window_by_hand() -> None:
    mask = causal_mask(torch.tensor([2, 3]), 5, window=2)
    assert mask.tolist() == [
        [False, True, True, False, False],
        [False, False, True, True, False],
    ]


def test_rotation_turns_pairs_by_position_times_frequency() -> None:
    x = torch.tensor([[[1.0, 0.0, 0.0, 1.0]]])  # pairs (1, 0) and (0, 1)
    turned = rotate(x, rotation(torch.tensor([3]), (1.0, 0.1), 1.0))[0, 0]
    # Angles 3 and 0.3.
    expected = [np.cos(3), -np.sin(0.3), np.sin(3), np.cos(0.3)]
    np.testing.assert_allclose(turned.numpy(), expected, atol=1e-6)


def test_parameters_are_the_tensor_table(config: ModelConfig) -> None:
    decoder = Decoder(config)
    table = {spec.name: spec.shape for spec in tensor_table(decoder.config)}
    assert {n: tuple(p.shape) for n, p in decoder.named_parameters()} == table
    assert sum(p.numel() for p in decoder.parameters()) == parameter_count(decoder.config)


@torch.inference_mode()
def test_weights_out_and_in_give_the_same_bits(config: ModelConfig) -> None:
    decoder = noised(config)
    again = Decoder.from_weights(decoder.config, decoder.to_weights())
    ids = torch.arange(20)[None]
    assert torch.equal(again.logits(again(ids)), decoder.logits(decoder(ids)))


def test_weights_are_a_copy(plain: ModelConfig) -> None:
    decoder = noised(plain)
    weights = decoder.to_weights()
    before = bytes(weights["norm.weight"].data)
    with torch.no_grad():
        decoder.norm.weight.add_(1.0)
    assert bytes(weights["norm.weight"].data) == before


def test_all_wrong_tensors_are_listed_at_once(plain: ModelConfig) -> None:
    weights = dict(Decoder(plain).to_weights())
    del weights["layers.1.attn.q.weight"]
    weights["stranger"] = weights["norm.weight"]
    weights["norm.weight"] = StoredTensor.from_f32(np.zeros(3, np.float32))
    with pytest.raises(ModelFileError) as caught:
        Decoder.from_weights(plain, weights)
    for text in ("layers.1.attn.q.weight is missing", "stranger is unknown", "norm.weight is [3]"):
        assert text in str(caught.value)


def test_initialisation_follows_the_seed_alone(plain: ModelConfig) -> None:
    def state(seed: int) -> dict[str, torch.Tensor]:
        decoder = Decoder(plain)
        torch.manual_seed(torch.randint(0, 1000, ()).item())  # type: ignore[arg-type]
        decoder.initialise(seed)
        return decoder.state_dict()

    first, again, other = state(3), state(3), state(4)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["embed.weight"], other["embed.weight"])


def test_more_positions_than_the_model_has_are_refused(plain: ModelConfig) -> None:
    with pytest.raises(RequestError, match="161 positions, the model has 160"):
        Decoder(plain)(torch.zeros(1, 161, dtype=torch.int64))
