"""Every family, and a tiny config that only needs its files."""

from __future__ import annotations

import dataclasses

import pytest
from family_examples import EXAMPLES, IDS, LAYERS, SHAPE

from miudo.config import ModelConfig
from miudo.families import FAMILIES
from miudo.families.family import Family


@pytest.fixture(params=FAMILIES, ids=lambda f: f.name)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture
def example(family: Family) -> ModelConfig:
    config = ModelConfig.uniform(**(SHAPE | EXAMPLES[family.name] | IDS))
    changed = [
        dataclasses.replace(config.layers[0], **change) for change in LAYERS.get(family.name, ())
    ]
    return dataclasses.replace(config, layers=tuple(changed) or config.layers)
