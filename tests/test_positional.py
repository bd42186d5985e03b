"""Rotary frequencies and ALiBi slopes: known values, and what each scaling must keep."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from miudo.config import ModelConfig, RopeKind, RopeScaling
from miudo.positional import alibi_slopes, attention_factor, frequencies


def turns(scaling: RopeScaling | None = None, **changes: Any) -> np.ndarray[Any, Any]:
    values: dict[str, Any] = {
        "n_layers": 1, "d_model": 64, "n_heads": 1, "d_ff": 8, "vocab_size": 8,
        "max_positions": 64, "rope_scaling": scaling,
    }  # fmt: skip
    config = ModelConfig.uniform(**values | changes)
    return np.array(frequencies(config, config.layers[0]))


def test_plain_frequencies_are_powers_of_theta() -> None:
    plain = turns(rope_theta=10000.0)
    assert plain.shape == (32,)
    np.testing.assert_allclose(plain, [10000.0 ** (-i / 32) for i in range(32)], rtol=1e-7)


def test_part_of_a_head_counts_its_own_pairs() -> None:
    config = ModelConfig.uniform(
        n_layers=1, d_model=64, n_heads=1, d_ff=8, vocab_size=8, max_positions=8
    )
    layer = dataclasses.replace(config.layers[0], rotary_dim=4)
    assert frequencies(config, layer) == pytest.approx((1.0, 0.01))


def test_linear_scaling_divides_every_frequency() -> None:
    np.testing.assert_allclose(turns(RopeScaling(RopeKind.LINEAR, 8, factor=4.0)) * 4, turns())


def test_llama3_keeps_fast_pairs_and_stretches_slow_ones() -> None:
    scaling = RopeScaling(RopeKind.LLAMA3, 64, factor=8.0, low_freq_factor=1.0)
    ratio = turns(scaling) / turns()
    waves = 2 * math.pi / turns()
    np.testing.assert_allclose(ratio[waves < 64 / 4], 1.0)
    np.testing.assert_allclose(ratio[waves > 64], 1 / 8)
    between = ratio[(waves > 64 / 4) & (waves < 64)]
    assert between.size
    assert ((between > 1 / 8) & (between < 1)).all()


def test_yarn_goes_from_kept_to_interpolated() -> None:
    ratio = turns(RopeScaling(RopeKind.YARN, 4096, factor=4.0)) / turns()
    assert ratio[0] == pytest.approx(1.0)
    assert ratio[-1] == pytest.approx(1 / 4)
    assert (np.diff(ratio) <= 1e-9).all()


@pytest.mark.parametrize(("positions", "factor"), [(16, 2.0), (17, 5.0)])
def test_longrope_takes_its_factors_by_the_models_context(positions: int, factor: float) -> None:
    scaling = RopeScaling(
        RopeKind.LONGROPE, 16, short_factors=(2.0,) * 32, long_factors=(5.0,) * 32
    )
    stretched = turns(scaling, max_positions=positions)
    np.testing.assert_allclose(stretched * factor, turns(), rtol=1e-6)


def test_the_attention_factor_is_one_without_scaling() -> None:
    config = ModelConfig.uniform(
        n_layers=1, d_model=8, n_heads=1, d_ff=8, vocab_size=8, max_positions=8
    )
    assert attention_factor(config) == 1.0
    scaling = RopeScaling(RopeKind.YARN, 4, attention_factor=1.5)
    assert attention_factor(dataclasses.replace(config, rope_scaling=scaling)) == 1.5


def test_alibi_slopes_for_eight_and_for_six_heads() -> None:
    assert alibi_slopes(8) == pytest.approx([2.0**-i for i in range(1, 9)])
    # Four heads have 1/4, 1/16, ...; two more take every other slope of eight.
    assert alibi_slopes(6) == pytest.approx([2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3])
