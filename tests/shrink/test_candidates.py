"""What is proposed follows from the catalogue."""

import dataclasses
import json
from dataclasses import dataclass
from typing import ClassVar

import pytest

from miudo.compress.catalogue import METHODS
from miudo.compress.quantize.nearest import NearestRounding
from miudo.config import ModelConfig, Position
from miudo.errors import ConfigError
from miudo.shrink.candidates import LEARN, STUDENT, Candidate, Order, Step, absent, propose
from miudo.tensors import DType


@pytest.fixture
def config() -> ModelConfig:
    return ModelConfig.uniform(
        n_layers=6, d_model=64, n_heads=2, d_ff=128, vocab_size=320, max_positions=32
    )


def test_at_least_ten_with_names_of_their_own(config: ModelConfig) -> None:
    found = propose(config)
    assert len(found) >= 10
    assert len({c.name for c in found}) == len(found)
    assert any(not c.trunk for c in found)  # the teacher, rounded
    assert {c.order for c in found} >= {
        Order.CUT_ROUND,
        Order.CUT_LEARN_ROUND,
        Order.STUDENT_LEARN_ROUND,
    }


def test_they_survive_json_and_every_step_can_be_built(config: ModelConfig) -> None:
    for candidate in propose(config):
        again = Candidate.from_json(json.loads(json.dumps(candidate.to_json())))
        assert again == candidate
        for step in (*candidate.trunk, candidate.rounding):
            if step.method not in (LEARN, STUDENT):
                assert step.build().name == step.method


@pytest.mark.parametrize("order", Order)
def test_one_order_alone(config: ModelConfig, order: Order) -> None:
    assert {c.order for c in propose(config, order)} <= {order}


def test_a_method_joins_by_its_name_alone(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass(frozen=True, slots=True)
    class Importance(NearestRounding):
        name: ClassVar[str] = "importance"

        def __post_init__(self) -> None:
            if self.dtype is not DType.Q4_0:
                raise ConfigError("only Q4_0")

    def methods() -> set[str]:
        return {c.rounding.method for c in propose(config)}

    known = {name: kind for name, kind in METHODS.items() if name != "importance"}
    for place in ("miudo.compress.catalogue.METHODS", "miudo.shrink.candidates.METHODS"):
        monkeypatch.setattr(place, known)
    assert "importance" not in methods()
    assert "importance" in absent()
    known["importance"] = Importance
    assert "importance" in methods()
    assert absent() == []
    found = {c.dtype for c in propose(config) if c.rounding.method == "importance"}
    assert found == {"Q4_0"}  # what it refuses is left out


def test_one_layer_has_no_depth_to_cut() -> None:
    config = ModelConfig.uniform(
        n_layers=1, d_model=64, n_heads=2, d_ff=128, vocab_size=320, max_positions=32
    )
    names = {step.method for c in propose(config) for step in c.trunk}
    assert "depth" not in names
    assert "width" in names


def test_heads_are_cut_where_there_are_some(config: ModelConfig) -> None:
    def methods(shape: ModelConfig) -> set[str]:
        return {step.method for c in propose(shape) for step in c.trunk}

    assert {"heads", "hidden"} <= methods(config)
    alone = ModelConfig.uniform(
        n_layers=6, d_model=64, n_heads=1, d_ff=128, vocab_size=320, max_positions=32
    )
    assert "heads" not in methods(alone)
    layers = tuple(dataclasses.replace(layer, rotary=False) for layer in config.layers)
    slopes = dataclasses.replace(config, layers=layers, position=Position.ALIBI)
    assert "heads" not in methods(slopes)
    assert "hidden" in methods(slopes)


def test_labels_name_folders() -> None:
    steps = Step.of("depth", drop=2), Step.of(LEARN, loss="teacher")
    candidate = Candidate(Order.CUT_LEARN_ROUND, steps, Step.of("nearest", dtype="Q4_K"))
    assert candidate.name == "depth-2_learn_Q4_K"
    assert candidate.learns
