"""`ModelConfig`: what it accepts, what it refuses and with which words, and its JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miudo.config import (
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
from miudo.errors import ConfigError


def small(**changes: Any) -> ModelConfig:
    values: dict[str, Any] = {
        "n_layers": 2,
        "d_model": 8,
        "n_heads": 2,
        "d_ff": 16,
        "vocab_size": 32,
        "max_positions": 64,
    }
    return ModelConfig.uniform(**values | changes)


def as_json(config: ModelConfig) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(config.to_json()))
    return values


layers = st.builds(
    lambda groups, kv, dim, v_dim, d_ff, window, theta: LayerConfig(
        n_heads=groups * kv,
        n_kv_heads=kv,
        head_dim=2 * dim,
        v_head_dim=v_dim,
        d_ff=d_ff,
        window=window,
        rope_theta=theta,
    ),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 8),
    st.integers(1, 16),
    st.integers(1, 64),
    st.none() | st.integers(1, 100),
    st.floats(1.0, 1e9, exclude_min=True),  # a base of 1 has no yarn ramp, which a test below says
)
scales = st.floats(1e-3, 1e3)
scalings = st.builds(
    RopeScaling,
    kind=st.sampled_from([RopeKind.LINEAR, RopeKind.LLAMA3, RopeKind.YARN]),
    original_positions=st.integers(1, 1000),
    factor=st.floats(1.0, 64.0),
    attention_factor=st.floats(0.5, 2.0),
    high_freq_factor=st.floats(2.0, 8.0),
)
configs = st.builds(
    ModelConfig,
    vocab_size=st.integers(8, 100),
    d_model=st.integers(1, 64),
    max_positions=st.integers(1, 1000),
    layers=st.lists(layers, min_size=1, max_size=4).map(tuple),
    norm=st.sampled_from(Norm),
    mlp=st.sampled_from(Mlp),
    qk_norm=st.sampled_from(QkNorm),
    block=st.sampled_from(Block),
    embed_norm=st.booleans(),
    rope_scaling=st.none() | scalings,
    attn_scale=st.none() | scales,
    attn_softcap=st.none() | scales,
    logit_softcap=st.none() | scales,
    embed_scale=scales,
    residual_scale=scales,
    logit_scale=scales,
    qkv_bias=st.booleans(),
    tie_embeddings=st.booleans(),
    bos_id=st.none() | st.integers(0, 7),
    eos_ids=st.lists(st.integers(0, 7), max_size=3).map(tuple),
)


@given(configs)
def test_json_gives_back_an_equal_config(config: ModelConfig) -> None:
    again = ModelConfig.from_json(as_json(config))
    assert again == config
    assert hash(again) == hash(config)
    assert type(again.norm) is Norm
    assert type(again.layers) is tuple


def test_layers_may_differ() -> None:
    config = small()
    other = dataclasses.replace(config.layers[0], n_kv_heads=1, d_ff=24, window=5, v_head_dim=6)
    mixed = dataclasses.replace(config, layers=(config.layers[0], other))
    assert mixed.n_layers == 2
    assert ModelConfig.from_json(as_json(mixed)) == mixed


def test_latent_and_factored_parts_survive_json() -> None:
    layer = dataclasses.replace(small().layers[0], head_dim=6, v_head_dim=5, rotary_dim=2)
    config = dataclasses.replace(
        small(),
        layers=(layer,),
        latent=LatentAttention(kv_rank=4, rope_dim=2, q_rank=3),
        rope_scaling=RopeScaling(
            RopeKind.LONGROPE, 16, short_factors=(1.0,), long_factors=(2.5,), attention_factor=1.2
        ),
    )
    assert ModelConfig.from_json(as_json(config)) == config


def test_a_shorter_context_keeps_the_model() -> None:
    config = small()
    assert config.with_context(16) == dataclasses.replace(config, max_positions=16)
    with pytest.raises(ConfigError, match="context is 65"):
        config.with_context(65)
    learned = small(position=Position.LEARNED)
    assert learned.with_context(16) is learned


def test_uniform_derives_head_sizes_and_rotation() -> None:
    layer = small().layers[0]
    assert (layer.head_dim, layer.v_head_dim, layer.n_kv_heads, layer.rotary) == (4, 4, 2, True)
    learned = small(position=Position.LEARNED).layers[0]
    assert not learned.rotary
    assert small(n_kv_heads=1, head_dim=6).layers[0].v_head_dim == 6


def test_a_config_is_frozen_and_usable_as_a_key() -> None:
    config = small()
    assert {config: 1}[small()] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.d_model = 16  # type: ignore[misc]


ABSURD = [0, -1, 2**31, 10**9 * 10**9, 2.5, math.nan, math.inf, True, None, "8", [8]]


@pytest.mark.parametrize("value", ABSURD, ids=repr)
@pytest.mark.parametrize("field", ["vocab_size", "d_model", "max_positions"])
def test_absurd_sizes_are_refused_by_name_and_value(field: str, value: object) -> None:
    values = as_json(small()) | {field: value}
    with pytest.raises(ConfigError, match=f"{field} is "):
        ModelConfig.from_json(values)


@pytest.mark.parametrize("value", ABSURD, ids=repr)
@pytest.mark.parametrize("field", ["n_heads", "n_kv_heads", "head_dim", "v_head_dim", "d_ff"])
def test_absurd_layer_sizes_are_refused_by_place(field: str, value: object) -> None:
    values = as_json(small())
    values["layers"][1][field] = value
    with pytest.raises(ConfigError, match=rf"layers\[1\]\.{field} is "):
        ModelConfig.from_json(values)


@pytest.mark.parametrize("value", [v for v in ABSURD if v is not None], ids=repr)
@pytest.mark.parametrize("field", ["n_layers", "n_heads", "d_model", "n_kv_heads", "head_dim"])
def test_uniform_refuses_the_same_before_computing_with_it(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        small(**{field: value})


def test_json_that_overflows_to_infinity_is_refused() -> None:
    values = json.loads('{"d_model": 1e999}')
    with pytest.raises(ConfigError, match="d_model is inf"):
        ModelConfig.from_json(as_json(small()) | values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_heads": 3, "n_kv_heads": 2, "head_dim": 4}, "3 is not a multiple of n_kv_heads 2"),
        ({"n_heads": 2, "n_kv_heads": 4}, "n_kv_heads is 4, allowed a whole number from 1 to 2"),
        ({"head_dim": 3}, "head_dim 3 is odd"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0"),
        ({"norm_eps": math.nan}, "norm_eps is nan"),
        ({"norm_eps": "1e-5"}, "norm_eps is '1e-5', not a float"),
        ({"rope_theta": 0.5}, "rope_theta is 0.5"),
        ({"rope_theta": math.inf}, "rope_theta is inf"),
        ({"window": 0}, "window is 0"),
        ({"bos_id": 32}, "bos_id is 32, allowed a whole number from 0 to 31"),
        ({"pad_id": -1}, "pad_id is -1"),
        ({"eos_ids": (1, 99)}, "eos_ids is 99"),
        ({"eos_ids": [1]}, r"eos_ids is \[1\], not a tuple"),
        ({"tie_embeddings": "false"}, "tie_embeddings is 'false', not a bool"),
        ({"qkv_bias": 1}, "qkv_bias is 1, not a bool"),
        ({"norm": "rms"}, "norm is 'rms', not a Norm"),
        ({"n_heads": 16}, "head_dim is 0"),
        ({"embed_scale": 0.0}, "embed_scale is 0.0"),
        ({"logit_scale": None}, "logit_scale is None"),
        ({"attn_softcap": -1.0}, "attn_softcap is -1.0"),
        ({"norm_weight": False, "norm_bias": True}, "norm_bias is set but norm_weight is not"),
        ({"parallel": Parallel.TWO_NORMS, "block": Block.POST}, "block is post, not pre"),
        ({"block": "pre"}, "block is 'pre', not a Block"),
        (
            {"position": Position.ALIBI, "rope_scaling": RopeScaling(RopeKind.LINEAR, 8)},
            "rope_scaling is set but position is alibi",
        ),
        ({"rope_scaling": RopeScaling(RopeKind.LINEAR, 0)}, "original_positions is 0"),
        ({"rope_scaling": RopeScaling(RopeKind.LINEAR, 8, factor=0.5)}, "factor is 0.5"),
        (
            {"rope_scaling": RopeScaling(RopeKind.LLAMA3, 8, high_freq_factor=1.0)},
            "high_freq_factor 1.0 is not above",
        ),
        (
            {"rope_scaling": RopeScaling(RopeKind.LONGROPE, 8, short_factors=(1.0,))},
            r"short_factors has 1 numbers, the layers rotate \[2\] pairs",
        ),
        ({"latent": LatentAttention(kv_rank=0, rope_dim=2)}, "latent.kv_rank is 0"),
        ({"latent": LatentAttention(kv_rank=4, rope_dim=2)}, "rotary_dim is None, latent.rope_dim"),
        ({"latent": LatentAttention(kv_rank=4, rope_dim=4), "n_kv_heads": 1}, "as many keys"),
        (
            {"latent": LatentAttention(kv_rank=4, rope_dim=4), "qkv_bias": True},
            "neither qkv_bias nor qk_norm",
        ),
    ],
)
def test_impossible_values_are_refused_with_the_reason(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**changes)


def test_a_rotary_layer_needs_rotary_positions() -> None:
    config = small(position=Position.LEARNED)
    layer = dataclasses.replace(config.layers[0], rotary=True)
    with pytest.raises(ConfigError, match="rotary is set but position is learned"):
        dataclasses.replace(config, layers=(layer,))


def test_a_layer_without_rotation_may_stand_among_rotary_ones() -> None:
    config = small()
    layer = dataclasses.replace(config.layers[0], rotary=False)
    assert not dataclasses.replace(config, layers=(layer, config.layers[1])).layers[0].rotary


def test_unknown_keys_are_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown keys n_embd\. ModelConfig has \['activation'"):
        ModelConfig.from_json(as_json(small()) | {"n_embd": 8})
    values = as_json(small())
    values["layers"][0]["heads"] = 2
    with pytest.raises(ConfigError, match="unknown keys heads"):
        ModelConfig.from_json(values)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"layers": []},
        {"layers": 5},
        {"layers": [5]},
        {"layers": [{}]},
        {"layers": None},
        [],
        7,
        None,
        {1: 2, "a": 3},
    ],
    ids=repr,
)
def test_values_of_another_shape_are_a_config_error(values: Any) -> None:
    with pytest.raises(ConfigError):
        ModelConfig.from_json(values)


@pytest.mark.parametrize("field", ["layers", "vocab_size", "d_model", "max_positions"])
def test_a_missing_field_is_a_config_error(field: str) -> None:
    values = as_json(small())
    del values[field]
    with pytest.raises(ConfigError, match=field):
        ModelConfig.from_json(values)


@pytest.mark.parametrize("field", ["norm", "position", "mlp", "activation", "qk_norm"])
def test_an_unknown_choice_is_a_config_error(field: str) -> None:
    with pytest.raises(ConfigError, match="magic"):
        ModelConfig.from_json(as_json(small()) | {field: "magic"})


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(st.data())
def test_any_value_in_any_place_gives_a_config_or_a_config_error(data: st.DataObject) -> None:
    values = as_json(small())
    place = data.draw(st.sampled_from([values, values["layers"][0]]))
    place[data.draw(st.sampled_from(sorted(place)))] = data.draw(plain)
    try:
        config = ModelConfig.from_json(values)
    except ConfigError:
        return
    assert hash(config) == hash(ModelConfig.from_json(as_json(config)))
