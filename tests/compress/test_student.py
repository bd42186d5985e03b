"""Student shapes: the asked share of parameters, in shapes that other programs load."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from miudo.compress.distill.student import scaled
from miudo.config import ModelConfig, RopeKind, RopeScaling
from miudo.errors import ConfigError
from miudo.tensors import parameter_count


def teacher(n_layers: int, d_model: int, n_heads: int, n_kv_heads: int, d_ff: int) -> ModelConfig:
    return ModelConfig.uniform(
        n_layers=n_layers, d_model=d_model, n_heads=n_heads, n_kv_heads=n_kv_heads, d_ff=d_ff,
        vocab_size=2048, max_positions=256, rope_theta=5000.0,
    )  # fmt: skip


TEACHERS = [
    teacher(4, 128, 2, 2, 384), teacher(6, 256, 4, 2, 768), teacher(8, 384, 6, 6, 1024),
    teacher(5, 64, 8, 4, 172), teacher(12, 768, 12, 12, 2048),
]  # fmt: skip


@pytest.mark.parametrize("config", TEACHERS, ids=lambda c: f"d{c.d_model}")
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75, 1.0])
def test_share_and_shape(config: ModelConfig, ratio: float) -> None:
    student = scaled(config, ratio)
    share = parameter_count(student, embeddings=False) / parameter_count(config, embeddings=False)
    assert share == pytest.approx(ratio, rel=0.25)
    assert student.vocab_size == config.vocab_size
    assert student.d_model % 32 == 0
    for layer in student.layers:
        assert layer.d_ff % 32 == 0 or student.d_model == config.d_model
        assert layer.head_dim % 2 == 0
        assert layer.head_dim >= 8
        assert layer.n_heads * layer.head_dim == student.d_model
        assert layer.rope_theta == 5000.0


@pytest.mark.parametrize("changes", [
    {"rotary_dim": 24},
    {"rope_scaling": RopeScaling(
        RopeKind.LONGROPE, 16, attention_factor=1.25,
        short_factors=(1.0,) * 16, long_factors=(2.0,) * 16,
    )},
])  # fmt: skip
def test_heads_too_narrow_for_their_rotation_are_passed_over(changes: dict[str, Any]) -> None:
    config = ModelConfig.uniform(
        n_layers=4, d_model=128, n_heads=4, d_ff=384, vocab_size=64, max_positions=64, **changes
    )
    assert scaled(config, 0.5).layers[0].head_dim == 32


def test_embeddings_stay_scaled_by_the_root_of_their_width() -> None:
    root = dataclasses.replace(TEACHERS[1], embed_scale=16.0)
    student = scaled(root, 0.25)
    assert student.d_model < 256
    assert student.embed_scale == student.d_model**0.5
    other = dataclasses.replace(TEACHERS[1], embed_scale=12.0)
    assert scaled(other, 0.25).embed_scale == 12.0


def test_a_ratio_too_small_is_refused_with_the_value() -> None:
    with pytest.raises(ConfigError, match=r"0\.0001"):
        scaled(TEACHERS[0], 0.0001)
