"""The limits: frozen, and no lower than what real models need."""

from __future__ import annotations

import dataclasses

import pytest

from miudo.config import ModelConfig, check_config
from miudo.errors import ConfigError
from miudo.limits import LIMITS, Limits


def test_limits_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        LIMITS.d_model = 1  # type: ignore[misc]


def test_every_limit_is_a_positive_whole_number() -> None:
    for name, value in dataclasses.asdict(LIMITS).items():
        assert type(value) is int, name
        assert value > 0, name


def test_the_largest_published_shapes_fit() -> None:
    # Llama 3.1 405B: 126 layers of 16,384; Gemma 3: a vocabulary of 262,144; Qwen2.5-1M.
    assert LIMITS.n_layers >= 126
    assert LIMITS.d_model >= 16_384
    assert LIMITS.d_ff >= 53_248
    assert LIMITS.vocab_size >= 262_144
    assert LIMITS.max_positions >= 1_010_000


def test_a_lowered_limit_is_obeyed() -> None:
    config = ModelConfig.uniform(
        n_layers=2, d_model=8, n_heads=2, d_ff=16, vocab_size=32, max_positions=64
    )
    check_config(config, LIMITS)
    with pytest.raises(ConfigError, match="d_model is 8, allowed a whole number from 1 to 7"):
        check_config(config, Limits(d_model=7))
