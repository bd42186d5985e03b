"""Presets: sizes as their names say, shapes that every type of weight fits."""

from __future__ import annotations

import pytest

from miudo.errors import ConfigError
from miudo.presets import load_preset, preset_names
from miudo.tensors import parameter_count

MILLIONS = {"1m": 1, "6m": 6, "15m": 15, "30m": 30, "100m": 100}


def test_the_presets_there_are() -> None:
    assert set(preset_names()) == set(MILLIONS)


@pytest.mark.parametrize("name", sorted(MILLIONS))
def test_a_preset_is_as_large_and_as_even_as_promised(name: str) -> None:
    config = load_preset(name)
    size = parameter_count(config)
    assert size == pytest.approx(MILLIONS[name] * 1e6, rel=0.05)
    multiple, head = (32, 32) if name == "1m" else (256, 64)
    assert config.d_model % multiple == 0
    assert config.vocab_size % 64 == 0
    assert config.vocab_size == (2048 if name == "1m" else 8192)
    for layer in config.layers:
        assert layer.d_ff % multiple == 0
        assert layer.head_dim == layer.v_head_dim == head
        assert layer.n_heads * head == config.d_model


def test_the_vocabulary_may_be_anothers() -> None:
    assert load_preset("1m", vocab_size=640).vocab_size == 640


def test_an_unknown_preset_names_the_known() -> None:
    with pytest.raises(ConfigError, match=r"no preset '2m'.*100m, 15m, 1m, 30m, 6m"):
        load_preset("2m")
