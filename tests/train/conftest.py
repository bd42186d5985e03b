"""A tiny decoder and tokens in memory for the tests of training."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from miudo.config import ModelConfig
from miudo.decoder.decoder import Decoder
from miudo.files import sha256_file
from miudo.philox import permutation
from miudo.train.checkpoint import checkpoint_steps, step_folder
from miudo.train.settings import Compile, FitSettings, Precision

CONFIG = ModelConfig.uniform(
    vocab_size=64, d_model=32, n_layers=2, n_heads=2, d_ff=32, max_positions=16
)
SETTINGS = FitSettings(
    steps=8,
    batch_size=2,
    length=8,
    warmup=0.25,
    precision=Precision.F32,
    compile=Compile.OFF,
    save_every=2,
    log_every=1,
    keep=100,
)


@dataclass(frozen=True)
class MemoryTokens:
    """Ids in memory, in the shape of `PackedTokens`."""

    ids: npt.NDArray[np.int32]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.ids.tobytes()).hexdigest()

    def n_blocks(self, length: int) -> int:
        return (len(self.ids) - 1) // length

    def block(self, index: int, length: int) -> npt.NDArray[np.int32]:
        return self.ids[index * length : (index + 1) * length + 1]

    def batch(self, seed: int, step: int, batch_size: int, length: int) -> npt.NDArray[np.int32]:
        n = self.n_blocks(length)
        places = range(step * batch_size, (step + 1) * batch_size)
        order = [int(permutation(seed, p // n, n)[p % n]) for p in places]
        return np.stack([self.block(i, length) for i in order])


def make_tokens(count: int = 8 * 11 + 1) -> MemoryTokens:
    """Eleven blocks of 8: an epoch ends inside a batch of two."""
    ids = np.random.Generator(np.random.Philox(5)).integers(0, 64, count)
    return MemoryTokens(ids.astype(np.int32))


def make_decoder(seed: int = 3) -> Decoder:
    decoder = Decoder(CONFIG)
    decoder.initialise(seed)
    return decoder


def tensor_hashes(out: Path, step: int) -> dict[str, str]:
    """SHA-256 of a checkpoint's tensors: weights, moments, random state."""
    return {p.name: sha256_file(p) for p in step_folder(out / "checkpoints", step).glob("*.safe*")}


def saved_steps(out: Path) -> list[int]:
    return checkpoint_steps(out / "checkpoints")


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def decoder() -> Decoder:
    return make_decoder()


@pytest.fixture
def tokens() -> MemoryTokens:
    return make_tokens()


@pytest.fixture
def settings() -> Callable[..., FitSettings]:
    return lambda **changes: replace(SETTINGS, **changes)
