"""Attention rows and hidden states of every family beside those of `transformers`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("xllamacpp")

from zoo import measure
from zoo.case import ids, noised
from zoo.registry import CASES

from miudo.engine.insides import attention_rows, hidden_states
from miudo.engine.native import NativeEngine
from miudo.formats import open_model

pytestmark = pytest.mark.parity

BOUND = measure.BOUND  # at numbers of size about 10, which logits are
LENGTH = 33  # past every window of these models


@pytest.fixture(params=sorted(CASES))
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[NativeEngine, Any]:
    """A case's model on the native engine, and the reference's insides of the same text."""
    torch.set_num_threads(1)
    case = CASES[request.param]
    model = noised(case.make())
    case.save(model, tmp_path)
    with torch.no_grad():
        try:
            found = model(
                torch.tensor([ids(LENGTH)]), output_attentions=True, output_hidden_states=True
            )
        except (TypeError, ValueError, NotImplementedError) as absent:
            pytest.skip(f"the reference has no insides to show ({absent})")
    if not getattr(found, "attentions", None) or not getattr(found, "hidden_states", None):
        pytest.skip("the reference shows no insides")
    engine = measure.native(open_model(tmp_path), LENGTH)
    assert isinstance(engine, NativeEngine)
    return engine, found


def test_insides_are_the_reference_s(pair: tuple[NativeEngine, Any]) -> None:
    engine, found = pair
    given, n_layers = ids(LENGTH), engine.config.n_layers
    rows, theirs = attention_rows(engine, given), found.attentions
    assert len(rows) == len(theirs) == n_layers
    for ours, right in zip(rows, theirs, strict=True):
        expected = right[0].float().numpy()
        assert np.ptp(expected) > 0.1  # rows that favour nothing would agree with anything
        np.testing.assert_allclose(ours, expected, rtol=0, atol=BOUND)
    states = hidden_states(engine, given)
    # Theirs are L + 1 as ours; but the last one has gone through the final norm.
    for ours, right in zip(states[:-1], found.hidden_states[:-1], strict=True):
        expected = right[0].float().numpy()
        size = max(1.0, float(np.abs(expected).max()) / 10)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=BOUND * size)
    np.testing.assert_allclose(
        engine.unembed(states[-1]), found.logits[0].float().numpy(), rtol=0, atol=BOUND
    )
