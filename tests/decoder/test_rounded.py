"""Weights shown rounded while floats are trained: which gradients come back, what a file gets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from miudo.config import ModelConfig
from miudo.decoder.decoder import Decoder
from miudo.decoder.rounded import RoundedWeights
from miudo.errors import CheckFailedError, ConfigError
from miudo.formats.block_codec import ByteArray, Codec
from miudo.formats.blocks import CODECS, encode, to_f32
from miudo.tensors import DType, Weights

NAME = "layers.0.mlp.up.weight"


def tiny() -> Decoder:
    decoder = Decoder(
        ModelConfig.uniform(
            n_layers=1, d_model=256, n_heads=4, d_ff=256, vocab_size=40, max_positions=16
        )
    )
    decoder.initialise(2)
    return decoder


def as_type(decoder: Decoder, dtype: DType) -> Weights:
    dims = {name: value.dim() for name, value in decoder.named_parameters()}
    return {
        name: encode(to_f32(t), dtype if dims[name] == 2 else DType.F32)
        for name, t in decoder.to_weights().items()
    }


def loss_of(decoder: Decoder) -> torch.Tensor:
    ids = torch.arange(12)[None] % 40
    return F.cross_entropy(decoder.logits(decoder(ids[:, :-1]))[0], ids[0, 1:])


@pytest.mark.parametrize("dtype", [DType.Q4_0, DType.Q2_K, DType.F16])
def test_parameters_are_rounded_inside_and_floats_outside(dtype: DType) -> None:
    decoder = tiny()
    before = {name: value.detach().clone() for name, value in decoder.named_parameters()}
    rounded = RoundedWeights(decoder, as_type(decoder, dtype))
    with rounded.shown():
        inside = decoder.get_parameter(NAME).detach().clone()
        if dtype is DType.F16:
            assert torch.equal(inside, before[NAME].half().float())
        else:
            most = 16 if dtype is DType.Q4_0 else 8  # two parts of 16 in Q2_K
            assert all(len(part.unique()) <= most for part in inside.view(-1, 32))
    assert not torch.equal(inside, before[NAME])
    for name, value in decoder.named_parameters():
        assert torch.equal(value, before[name]), name


def test_floats_come_back_after_an_error() -> None:
    decoder = tiny()
    before = decoder.get_parameter(NAME).detach().clone()
    rounded = RoundedWeights(decoder, as_type(decoder, DType.Q4_0))
    with pytest.raises(KeyboardInterrupt), rounded.shown():
        raise KeyboardInterrupt
    assert torch.equal(decoder.get_parameter(NAME), before)


def test_the_gradient_goes_straight_through_and_stops_beyond_the_levels() -> None:
    decoder = tiny()
    begun = as_type(decoder, DType.Q4_0)
    rounded = RoundedWeights(decoder, begun)
    with torch.no_grad():  # after the scales were found: these lie beyond them
        decoder.get_parameter(NAME)[0, :3] *= 100.0
    with rounded.shown():
        loss_of(decoder).backward()  # type: ignore[no-untyped-call]
    plain = decoder.get_parameter(NAME).grad
    assert plain is not None
    wanted = plain.clone()
    rounded.share_gradients(0.0)
    scales, _ = CODECS[DType.Q4_0].grid(begun[NAME].data.view(CODECS[DType.Q4_0].fields))
    at = decoder.get_parameter(NAME).detach().view(-1, 32) / torch.from_numpy(scales)
    inside = ((at > -8.49) & (at < 7.49)).view_as(plain)
    outside = ((at < -8.51) | (at > 7.51)).view_as(plain)
    assert bool(outside[0, :3].all())
    assert bool((wanted[outside] != 0).any())
    assert bool((plain[outside] == 0).all())
    torch.testing.assert_close(plain[inside], wanted[inside], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [DType.Q4_0, DType.Q4_1])
def test_gradients_of_scales_are_those_of_finite_differences(dtype: DType) -> None:
    """Of LSQ's function: the rounding residual held still, levels free to move with the scale."""
    decoder = tiny()
    begun = as_type(decoder, dtype)
    rounded = RoundedWeights(decoder, begun)
    parameter = decoder.get_parameter(NAME)
    with torch.no_grad():
        parameter[0, :4] *= 10.0  # beyond the levels, in the first part alone
    direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    parameter.grad = direction.clone()
    rounded.share_gradients(0.0)

    codec = CODECS[dtype]
    scales, offsets = codec.grid(begun[NAME].data.view(codec.fields))
    low, high = float(codec.levels[0]) - 0.5, float(codec.levels[-1]) + 0.5
    x = parameter.detach().double().view(-1, 32).numpy()
    d = direction.double().view(-1, 32).numpy()
    o = np.zeros((len(x), 1)) if offsets is None else offsets.astype(np.float64)
    s = scales.astype(np.float64)
    residual = np.rint(at := np.clip((x - o) / s, low, high)) - at
    residual = np.clip(at + residual, low + 0.5, high - 0.5) - at

    def sums(by: float, shift: float) -> np.ndarray:
        """What `direction` makes of the parts when scales are e^by and offsets `shift` off."""
        scale, offset = s * np.exp(by), o + s * shift
        moved = (np.clip((x - offset) / scale, low, high) + residual) * scale + offset
        return np.asarray((moved * d).sum(1))

    step, size = 1e-6, (32 * max(high - 0.5, 1.0)) ** -0.5
    numeric = (sums(step, 0.0) - sums(-step, 0.0)) / (2 * step) * size
    found = rounded.learned[f"scale.{NAME}"].grad
    assert found is not None
    assert ((x - o) / s > high).any() or ((x - o) / s < low).any()
    np.testing.assert_allclose(found.numpy(), numeric, rtol=1e-3, atol=1e-6)
    if dtype is DType.Q4_1:
        numeric = (sums(0.0, step) - sums(0.0, -step)) / (2 * step) * size
        found = rounded.learned[f"offset.{NAME}"].grad
        assert found is not None
        assert numeric[0] != 0.0
        np.testing.assert_allclose(found.numpy(), numeric, rtol=1e-3, atol=1e-6)


def test_scales_stay_at_the_end_of_a_run() -> None:
    decoder = tiny()
    rounded = RoundedWeights(decoder, as_type(decoder, DType.Q4_0))
    with rounded.shown():
        loss_of(decoder).backward()  # type: ignore[no-untyped-call]
    rounded.share_gradients(0.95)
    assert all(value.grad is None for value in rounded.learned.values())
    rounded.share_gradients(0.5)
    assert all(value.grad is not None for value in rounded.learned.values())


def test_zeros_stay_zeros_where_the_type_has_one() -> None:
    decoder = tiny()
    with torch.no_grad():
        decoder.get_parameter(NAME)[:, ::2] = 0.0
    for dtype in (DType.Q4_0, DType.Q3_K, DType.Q8_0, DType.Q6_K, DType.TQ2_0):
        rounded = RoundedWeights(decoder, as_type(decoder, dtype))
        with rounded.shown():
            assert bool((decoder.get_parameter(NAME)[:, ::2] == 0).all()), dtype


def test_types_that_training_cannot_round_to_are_refused() -> None:
    decoder = tiny()
    stored = dict(as_type(decoder, DType.Q4_0))
    tensor = stored[NAME]
    stored[NAME] = type(tensor)(DType.MXFP4, tensor.shape, tensor.data)
    with pytest.raises(ConfigError, match=r"up\.weight is MXFP4.*Known"):
        RoundedWeights(decoder, stored)


def test_a_file_that_differs_from_what_training_saw_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder = tiny()
    rounded = RoundedWeights(decoder, as_type(decoder, DType.Q4_0))
    rounded.store()

    def off_by_one(self: Codec, data: ByteArray, codes: ByteArray) -> ByteArray:
        found = with_codes(self, data, codes)
        found[2] ^= 1  # a code of the first block
        return found

    with_codes = Codec.with_codes
    monkeypatch.setattr(Codec, "with_codes", off_by_one)
    with pytest.raises(CheckFailedError, match="1 values of the file"):
        rounded.store()
