"""Rotations in files: both generations of config.json, GGUF's keys and factors, what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miudo.config import ModelConfig, RopeKind, RopeScaling
from miudo.errors import ConfigError, ModelFileError
from miudo.families import by_gguf, by_hf_config, gguf_misfit, hf_misfit
from miudo.families.gguf_rope import ROPE_TENSORS, rope_tensors
from miudo.positional import frequencies

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50,
    "max_position_embeddings": 64,
}  # fmt: skip
PHI = LLAMA | {"architectures": ["Phi3ForCausalLM"]}
MISTRAL = LLAMA | {"architectures": ["MistralForCausalLM"], "num_key_value_heads": 2}
SMOLLM3 = LLAMA | {"architectures": ["SmolLM3ForCausalLM"]}
GRANITE = LLAMA | {"architectures": ["GraniteForCausalLM"]}
MINICPM = LLAMA | {
    "architectures": ["MiniCPMForCausalLM"], "scale_emb": 12, "scale_depth": 1.4,
    "dim_model_base": 16,
}  # fmt: skip
MINICPM3 = LLAMA | {"architectures": ["MiniCPM3ForCausalLM"]}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LISTS = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2, 3, 4, 5.5]}
ORIGINAL = {"original_max_position_embeddings": 16}


def read(values: dict[str, Any]) -> ModelConfig:
    return by_hf_config(values).config_from_hf(values)


def scaled(kind: str, **numbers: Any) -> dict[str, Any]:
    return LLAMA | {"rope_scaling": {"rope_type": kind} | numbers}


@pytest.mark.parametrize("word", ["type", "rope_type"])
@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        ("linear", {"factor": 4.0}),
        ("llama3", LLAMA3 | ORIGINAL),
        ("yarn", {"factor": 4.0} | ORIGINAL),
        ("longrope", LISTS | ORIGINAL),
    ],
)
def test_the_old_and_the_new_generation_say_the_same(
    word: str, kind: str, numbers: dict[str, Any]
) -> None:
    old = read(LLAMA | {"rope_theta": 5e5, "rope_scaling": {word: kind} | numbers})
    new = read(LLAMA | {"rope_parameters": {word: kind, "rope_theta": 5e5} | numbers})
    assert old == new
    assert old.rope_scaling is not None
    assert old.rope_scaling.kind == kind
    assert old.layers[0].rope_theta == 5e5


def test_attention_factors_as_the_papers_derive_them() -> None:
    def factor(values: dict[str, Any]) -> float:
        scaling = read(values).rope_scaling
        assert scaling is not None
        return scaling.attention_factor

    assert factor(scaled("yarn", factor=4.0, **ORIGINAL)) == pytest.approx(0.1 * np.log(4) + 1)
    both = {"mscale": 1.0, "mscale_all_dim": 0.5}
    ratio = (0.1 * np.log(4) + 1) / (0.05 * np.log(4) + 1)
    assert factor(scaled("yarn", factor=4.0, **ORIGINAL, **both)) == pytest.approx(ratio)
    assert factor(scaled("yarn", factor=4.0, attention_factor=1.5, **ORIGINAL)) == 1.5
    # 64 positions of 16: sqrt(1 + ln 4 / ln 16).
    assert factor(scaled("longrope", **LISTS, **ORIGINAL)) == pytest.approx(1.5**0.5)
    assert factor(scaled("longrope", **LISTS, original_max_position_embeddings=64)) == 1.0
    assert factor(scaled("longrope", attention_factor=1.25, **LISTS, **ORIGINAL)) == 1.25


def test_phi_3_5_has_the_factor_of_its_paper() -> None:
    published = PHI | {
        "hidden_size": 3072, "num_attention_heads": 32, "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096, "sliding_window": 262144,
        "rope_scaling": {"type": "su", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48},
    }  # fmt: skip
    config = read(published)
    assert config.rope_scaling is not None
    assert config.rope_scaling.attention_factor == pytest.approx(1.19024, abs=1e-5)
    assert config.layers[0].window is None  # no text is that long
    assert config.with_context().max_positions == 4096
    assert config.with_context(4097).max_positions == 4097


def test_yarn_that_was_added_by_hand_reaches_what_it_is_for() -> None:
    config = read(scaled("yarn", factor=4.0, original_max_position_embeddings=64))
    assert config.max_positions == 256


def test_dynamic_stretching_acts_on_no_text_that_fits() -> None:
    assert read(scaled("dynamic", factor=4.0)) == read(LLAMA)


def test_windows_of_mistral() -> None:
    long = MISTRAL | {"max_position_embeddings": 32768}
    assert {layer.window for layer in read(long).layers} == {4096}  # as the class has it
    assert read(long | {"sliding_window": None}).layers[0].window is None
    assert read(MISTRAL | {"sliding_window": 8}).layers[1].window == 8
    assert read(MISTRAL | {"sliding_window": 64}).layers[1].window is None


def test_layers_without_rotation() -> None:
    def rotary(values: dict[str, Any]) -> list[bool]:
        return [layer.rotary for layer in read(values).layers]

    five = SMOLLM3 | {"num_hidden_layers": 5}
    assert rotary(five) == [True, True, True, False, True]
    assert rotary(five | {"no_rope_layer_interval": 2}) == [True, False, True, False, True]
    assert rotary(five | {"no_rope_layers": [0, 1, 1, 1, 0, 0]}) == [False, True, True, True, False]


def test_scales_of_minicpm() -> None:
    config = read(MINICPM)
    assert config.tie_embeddings
    assert config.residual_scale == pytest.approx(1.4 / 2**0.5)
    assert (config.embed_scale, config.logit_scale, config.attn_scale) == (12.0, 0.5, None)
    off = read(MINICPM3 | {"scale_depth": None, "dim_model_base": None, "scale_emb": 1})
    assert (off.embed_scale, off.residual_scale, off.logit_scale) == (1.0, 1.0, 1.0)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown kind": (scaled("proportional", factor=2.0), "proportional"),
    "sections of images": (scaled("default", mrope_section=[2, 2]), "mrope_section"),
    "yarn cut elsewhere": (scaled("yarn", factor=2.0, truncate=False), "truncate"),
    "cosines turned round": (
        scaled("yarn", factor=np.e, mscale=1.0, mscale_all_dim=-10.0, **ORIGINAL), "mscale"
    ),
    "linear without factor": (scaled("linear"), "factor is missing"),
    "llama3 without bands": (scaled("llama3", factor=8.0), "low_freq_factor is missing"),
    "no list": (scaled("longrope", **LISTS | {"long_factor": 3.0}), "long_factor"),
    "a list of text": (scaled("longrope", **LISTS | {"long_factor": ["a"]}), "long_factor"),
    "part of a head": (LLAMA | {"partial_rotary_factor": 0.5}, "0.5"),
    "thresholds (MiniCPM-S)": (MINICPM | {"hidden_act": "fatrelu"}, "fatrelu"),
    "experts (MiniCPM-MoE)": (MINICPM | {"num_experts": 8}, "num_experts is 8"),
    "sparse attention (MiniCPM4)": (MINICPM | {"sparse_config": {"topk": 64}}, "sparse_config"),
    "an embedding model": (MINICPM | {"is_causal": False}, "is_causal"),
    "no scale": ({k: v for k, v in MINICPM.items() if k != "scale_emb"}, "scale_emb is missing"),
    "scaled scores of MiniCPM3": (
        MINICPM3 | {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "longrope"
    ),
    "grouped keys of MiniCPM3": (MINICPM3 | {"num_key_value_heads": 2}, "num_key_value_heads"),
    "kinds of layers of Mistral": (
        MISTRAL | {"layer_types": ["full_attention"] * 2}, "layer_types"
    ),
    "windows of SmolLM3": (SMOLLM3 | {"use_sliding_window": True}, "use_sliding_window"),
    "too few layers of SmolLM3": (SMOLLM3 | {"no_rope_layers": [1]}, "no_rope_layers"),
    "layers that are no switches": (SMOLLM3 | {"no_rope_layers": [1, 2]}, "no_rope_layers"),
    "logits by nothing": (GRANITE | {"logits_scaling": 0}, "logits_scaling"),
}  # fmt: skip


@pytest.mark.parametrize(("values", "word"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_computed_is_refused_by_name(values: dict[str, Any], word: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        read(values)
    assert word in str(caught.value)


def test_a_base_without_waves_cannot_be_stretched_by_yarn() -> None:
    with pytest.raises(ConfigError, match="rope_theta is 1"):
        read(scaled("yarn", factor=2.0, **ORIGINAL) | {"rope_theta": 1.0})


VALUES = [0, -1, 1e-30, 1e30, 10**30, 2**63, True, "x", [], [1.0], {}, None]


@given(
    kind=st.sampled_from(["linear", "llama3", "yarn", "longrope", "dynamic"]),
    key=st.sampled_from(
        [
            "factor",
            "original_max_position_embeddings",
            "attention_factor",
            "low_freq_factor",
            "rope_theta",
            "high_freq_factor",
            "beta_fast",
            "beta_slow",
            "short_factor",
            "long_factor",
            "mscale",
            "rope_type",
        ]
    ),
    value=st.sampled_from(VALUES),
)
def test_hostile_numbers_are_refused_or_make_finite_frequencies(
    kind: str, key: str, value: object
) -> None:
    good = {"factor": 2.0, "mscale": 1.0, "mscale_all_dim": 1.0} | LLAMA3 | LISTS | ORIGINAL
    try:
        config = read(scaled(kind, **good | {key: value}))
    except (ModelFileError, ConfigError):
        return
    for session in (1, config.max_positions):
        running = config.with_context(session)
        assert np.isfinite(frequencies(running, running.layers[0])).all()


def test_factors_of_another_number_than_the_pairs() -> None:
    with pytest.raises(ConfigError, match="long_factors"):
        read(scaled("longrope", **LISTS | {"long_factor": [1.0]}, **ORIGINAL))


numbers = st.floats(1.0, 64.0, width=32)
factors = st.lists(st.floats(0.5, 100.0, width=32), min_size=4, max_size=4).map(tuple)
scalings = st.one_of(
    st.builds(RopeScaling, st.just(RopeKind.LINEAR), st.just(64), numbers.filter(lambda x: x > 1)),
    st.builds(
        RopeScaling,
        st.just(RopeKind.LLAMA3),
        st.integers(1, 4096),
        numbers,
        low_freq_factor=st.floats(0.5, 2.0, width=32),
        high_freq_factor=st.floats(2.5, 8.0, width=32),
    ),
    st.builds(RopeScaling, st.just(RopeKind.YARN), st.integers(1, 32), numbers.map(lambda _: 2.0)),
    st.builds(
        RopeScaling,
        st.just(RopeKind.LONGROPE),
        st.integers(2, 64),
        attention_factor=st.floats(0.5, 2.0, width=32),
        short_factors=factors,
        long_factors=factors,
    ),
)


@given(scaling=scalings, theta=st.sampled_from([1e4, 5e5]))
def test_every_rotation_comes_back_from_both_kinds_of_files(
    scaling: RopeScaling, theta: float
) -> None:
    config = ModelConfig.uniform(
        n_layers=2, d_model=32, n_heads=4, d_ff=64, vocab_size=50, max_positions=64,
        rope_theta=theta, rope_scaling=scaling, embed_scale=2.0, attn_scale=0.5,
    )  # fmt: skip
    granite = by_gguf("granite")
    for lost in (hf_misfit(granite, config), gguf_misfit(granite, config)):
        # A factor of all logits' cosines is said as its ratio to the paper's; float32 leaves some.
        assert lost is None or "attention_factor" in lost or "rope_scaling" in lost
    keys = granite.config_to_gguf(config) | {
        "vocab_size": 50, "bos_id": None, "eos_ids": (), "pad_id": None,
        ROPE_TENSORS: rope_tensors(config),
    }  # fmt: skip
    back = granite.config_from_gguf(keys, frozenset())
    for session in (16, 64):
        ours, theirs = config.with_context(session), back.with_context(session)
        np.testing.assert_allclose(
            frequencies(ours, ours.layers[0]), frequencies(theirs, theirs.layers[0]), rtol=1e-6
        )
    assert back.rope_scaling is not None
    assert back.rope_scaling.attention_factor == pytest.approx(scaling.attention_factor, rel=1e-6)


def gguf(factors: tuple[float, ...] | None = None, **more: Any) -> ModelConfig:
    family = by_gguf("llama")
    keys = family.config_to_gguf(read(LLAMA)) | {
        "vocab_size": 50, "bos_id": None, "eos_ids": (), "pad_id": None, **more
    }  # fmt: skip
    if factors is not None:
        keys[ROPE_TENSORS] = {"rope_freqs.weight": factors}
    return family.config_from_gguf(keys, frozenset())


def test_factors_of_llama_3_are_known_by_their_numbers() -> None:
    config = ModelConfig.uniform(
        n_layers=1, d_model=64, n_heads=1, d_ff=64, vocab_size=50, max_positions=131072,
        rope_theta=5e5, rope_scaling=RopeScaling(RopeKind.LLAMA3, 8192, 32.0),
    )  # fmt: skip
    (held,) = rope_tensors(config).values()
    assert (held[0], held[-1]) == (1.0, 32.0)
    family = by_gguf("llama")
    keys = {k: v for k, v in family.config_to_gguf(config).items() if "miudo" not in k}
    keys |= {"vocab_size": 50, "bos_id": None, "eos_ids": (), "pad_id": None}
    keys[ROPE_TENSORS] = {"rope_freqs.weight": held}
    assert family.config_from_gguf(keys, frozenset()) == dataclasses.replace(
        config, tie_embeddings=True
    )


def test_other_factors_are_kept_as_they_are() -> None:
    config = gguf((1.0, 1.5, 2.0, 7.0))
    plain = np.array(frequencies(gguf(), gguf().layers[0]))
    found = np.array(frequencies(config, config.layers[0]))
    np.testing.assert_allclose(plain / found, (1.0, 1.5, 2.0, 7.0), rtol=1e-6)


def test_factors_that_disagree_with_our_numbers() -> None:
    ours = {f"miudo.rope_{name}": value for name, value in LLAMA3.items()}
    with pytest.raises(ModelFileError, match="disagree"):
        gguf((1.0, 1.5, 2.0, 7.0), **ours)


@pytest.mark.parametrize("held", [(), (1.0,), (0.0,) * 4, (float("nan"),) * 4, (-1.0,) * 4])
def test_factors_that_no_model_can_have(held: tuple[float, ...]) -> None:
    with pytest.raises((ModelFileError, ConfigError, ValueError)):
        gguf(held)
