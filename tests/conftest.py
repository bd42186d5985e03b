"""What every test gets: seeds, a user folder of its own, and the files outside the repository."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from miudo.formats.blocks import to_f32
from miudo.tensors import DType, StoredTensor

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _own_user_folder(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No test reads or writes the user's own files."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    for name in ("CONFIG", "CACHE", "DATA", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(home / name.lower()))
    for name in [n for n in os.environ if n.startswith("MIUDO_") and n != "MIUDO_SHARED"]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real text and weights: MIUDO_SHARED, or `../shared` beside the repository."""
    path = Path(os.environ.get("MIUDO_SHARED") or REPOSITORY.parent / "shared")
    if not (path / "data").is_dir():
        pytest.skip(f"needs {path} (set MIUDO_SHARED)")
    return path


# Where a block has float16 scales, in bytes; MXFP4 has one byte of exponent, the first.
_SCALES = {
    DType.Q2_K: (80, 82), DType.Q3_K: (108,), DType.Q6_K: (208,), DType.Q4_1: (0, 2),
    DType.Q5_1: (0, 2), DType.Q4_K: (0, 2), DType.Q5_K: (0, 2), DType.Q8_0: (0,),
    DType.Q4_0: (0,), DType.Q5_0: (0,), DType.IQ4_NL: (0,), DType.IQ4_XS: (0,),
}  # fmt: skip


def _noise_blocks(
    dtype: DType, shape: tuple[int, ...], seed: int = 5, spread: float | None = None
) -> StoredTensor:
    """Blocks of random bits with finite scales, or with values that spread about so much."""
    n = dtype.size_bytes(shape) // dtype.block_bytes
    data = np.random.default_rng(seed).integers(0, 256, (n, dtype.block_bytes), dtype=np.uint8)
    for at in _SCALES.get(dtype, ()):
        data[:, at + 1] &= 0xBF  # no exponent of ones
    if dtype is DType.MXFP4:
        data[:, 0] = np.minimum(data[:, 0], 252)
    if spread is not None:
        _set_scales(dtype, data, 1.0)
        have = to_f32(StoredTensor(dtype, shape, data.reshape(-1))).std()
        _set_scales(dtype, data, spread / float(have))
    return StoredTensor(dtype, shape, data.reshape(-1))


def _set_scales(dtype: DType, data: npt.NDArray[np.uint8], scale: float) -> None:
    for at in _SCALES.get(dtype, ()):
        # Of both signs, or types without negative numbers would have a mean far from 0.
        signed = np.where(data[:, at] & 1, scale, -scale).astype("<f2")
        data[:, at : at + 2] = signed.view(np.uint8).reshape(-1, 2)
    if dtype is DType.MXFP4:
        data[:, 0] = 128 + round(np.log2(scale))


@pytest.fixture
def noise_blocks() -> Callable[..., StoredTensor]:
    return _noise_blocks


@pytest.fixture
def block_scales() -> Mapping[DType, tuple[int, ...]]:
    return _SCALES
