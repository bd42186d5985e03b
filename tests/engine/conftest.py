"""Adapters and models for the engines' tests, beside those of `tests/conftest.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from miudo.adapter import Adapter, LowRank, base_fingerprint
from miudo.config import ModelConfig
from miudo.engine.native import NativeEngine
from miudo.errors import RequestError
from miudo.tensors import DType, Role, tensor_table


def random_adapter(model: Any, seed: int = 1, rank: int = 5) -> Adapter:
    """Corrects every matrix as strongly as the matrix itself works, each with a rank of its own."""
    rng = np.random.default_rng(seed)
    parts = {}
    for i, spec in enumerate(tensor_table(model.config)):
        if spec.role in (Role.ATTENTION, Role.MLP):
            rows, cols = spec.shape
            r = rank + i % 3
            down = rng.standard_normal((r, cols)).astype(np.float32) * np.float32(cols**-0.5)
            up = rng.standard_normal((rows, r)).astype(np.float32) * np.float32(r**-0.5)
            parts[spec.name] = LowRank(down, up, 0.75)
    return Adapter(parts, base_fingerprint(model.config, model.weights))


@pytest.fixture
def make_adapter() -> Callable[..., Adapter]:
    return random_adapter


@pytest.fixture
def force_isa(monkeypatch: pytest.MonkeyPatch, llama: Any) -> Callable[[str | None], None]:
    """Makes engines from now on use an instruction set, None the best; skips where it is absent."""

    def force(isa: str | None) -> None:
        if isa is None:
            return
        monkeypatch.setenv("MIUDO_ISA", isa)
        try:
            NativeEngine(llama, threads=1)
        except RequestError as absent:
            if "MIUDO_ISA" not in str(absent):
                raise
            pytest.skip(str(absent))

    return force


@pytest.fixture
def llama(make_model: Callable[..., Any], plain: ModelConfig) -> Any:
    return make_model(plain)


@pytest.fixture
def llama_q8(make_model: Callable[..., Any]) -> Any:
    """All of its matrices fit Q8_0."""
    config = ModelConfig.uniform(
        n_layers=2, d_model=64, n_heads=4, n_kv_heads=2, d_ff=160, vocab_size=131,
        max_positions=160,
    )  # fmt: skip
    return make_model(config, seed=2, dtype=DType.Q8_0)
