"""The suite can fail: each slip that a port makes takes the logits beyond the bound."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from zoo import measure
from zoo.case import ids, noised
from zoo.registry import CASES

from miudo.config import Activation
from miudo.decoder import attention
from miudo.formats import ModelFile, open_model

pytestmark = pytest.mark.parity

Note = Callable[[str, str, float | str], None]
Mutation = Callable[[ModelFile, pytest.MonkeyPatch], ModelFile]


def changed(**values: Any) -> Mutation:
    """The same weights under a config that differs in `values`."""

    def mutate(model: ModelFile, _: pytest.MonkeyPatch) -> ModelFile:
        return dataclasses.replace(model, config=dataclasses.replace(model.config, **values))

    return mutate


def in_layers(**values: Any) -> Mutation:
    def mutate(model: ModelFile, patch: pytest.MonkeyPatch) -> ModelFile:
        layers = tuple(dataclasses.replace(layer, **values) for layer in model.config.layers)
        return changed(layers=layers)(model, patch)

    return mutate


def without_mask(model: ModelFile, patch: pytest.MonkeyPatch) -> ModelFile:
    """Every query sees every key that is there."""
    real = attention.causal_mask
    patch.setattr(attention, "causal_mask", lambda *a: torch.ones_like(real(*a)))
    return model


def swapped(model: ModelFile, _: pytest.MonkeyPatch) -> ModelFile:
    """Queries made with the keys' matrix and the other way round."""
    names = {"attn.q.": "attn.k.", "attn.k.": "attn.q."}
    weights = {
        next((n.replace(a, b) for a, b in names.items() if a in n), n): tensor
        for n, tensor in model.weights.items()
    }
    return dataclasses.replace(model, weights={n: weights[n] for n in model.weights})


def short_for_long(model: ModelFile, patch: pytest.MonkeyPatch) -> ModelFile:
    scaling = model.config.rope_scaling
    assert scaling is not None
    other = dataclasses.replace(scaling, long_factors=scaling.short_factors)
    return changed(rope_scaling=other)(model, patch)


def eps_times_ten(model: ModelFile, patch: pytest.MonkeyPatch) -> ModelFile:
    return changed(norm_eps=model.config.norm_eps * 10)(model, patch)


MUTATIONS: dict[str, tuple[str, Mutation]] = {
    "wrong rope base": ("llama", in_layers(rope_theta=11000.0)),
    "missing mask": ("mistral-window", without_mask),
    "missing window": ("mistral-window", in_layers(window=None)),
    "wrong eps": ("llama", eps_times_ten),
    "missing softcap of scores": ("gemma2", changed(attn_softcap=None)),
    "missing softcap of logits": ("gemma2", changed(logit_softcap=None)),
    "swapped queries and keys": ("gpt2", swapped),
    "missing stretch": ("llama-3.1", changed(rope_scaling=None)),
    "short factors for long": ("phi-3.5", short_for_long),
    "wrong scale of scores": ("granite", changed(attn_scale=None)),
    "missing scale of sublayers": ("minicpm", changed(residual_scale=1.0)),
    "rotation where there is none": ("smollm3", in_layers(rotary=True)),
    "whole heads rotated": ("stablelm", in_layers(rotary_dim=None)),
    "another gelu": ("cerebras", changed(activation=Activation.GELU_TANH)),
}


@pytest.mark.parametrize("slip", MUTATIONS)
def test_a_slip_makes_the_suite_fail(
    slip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, note: Note
) -> None:
    name, mutate = MUTATIONS[slip]
    torch.set_num_threads(1)
    model = noised(CASES[name].make())
    CASES[name].save(model, tmp_path / "theirs")
    right = open_model(tmp_path / "theirs")
    text = ids(CASES[name].lengths[-1])
    expected = measure.reference(model, text)

    def prefill(ours: ModelFile) -> Any:
        return measure.logits(measure.decoder(ours, len(text)), text)["prefill"]

    measure.check_close(prefill(right), expected)
    wrong = prefill(mutate(right, monkeypatch))
    with pytest.raises(AssertionError):
        measure.check_close(wrong, expected)
    note(f"slip: {slip}", name, measure.worst(wrong, expected))
