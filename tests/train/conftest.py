"""A tiny decoder and tokens in memory for the tests of training."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
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
from miudo.train.loop import FitResult, fit
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


def begin(out: Path, **changes: Any) -> FitResult:
    """Trains the tiny decoder into `out`."""
    return fit(make_decoder(), make_tokens(), replace(SETTINGS, **changes), out)


def go_on(out: Path, **changes: Any) -> FitResult:
    """Resumes with a decoder of other weights, which must not matter."""
    given = {name: changes.pop(name) for name in ("from_step", "data", "loss") if name in changes}
    data = given.pop("data", make_tokens())
    return fit(make_decoder(9), data, replace(SETTINGS, **changes), out, resume=True, **given)


def forget_after(out: Path, step: int) -> None:
    """As if the run had been killed after the save at `step`."""
    for later in saved_steps(out):
        if later > step:
            shutil.rmtree(step_folder(out / "checkpoints", later))


@pytest.fixture
def small() -> SimpleNamespace:
    """What tests of training need; a conftest cannot be imported."""
    return SimpleNamespace(
        settings=lambda **changes: replace(SETTINGS, **changes),
        config=CONFIG,
        decoder=make_decoder,
        tokens=make_tokens,
        hashes=tensor_hashes,
        steps=saved_steps,
        begin=begin,
        go_on=go_on,
        forget_after=forget_after,
    )


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that saved every step."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    begin(out, save_every=1)
    torch.set_num_threads(threads)
    return out
