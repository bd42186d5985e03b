"""What several of these tests ask of other programs; keeps what the zoo's suite measured."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from miudo.tensors import DType

_MEASURED = pytest.StashKey[dict[str, dict[str, float | str]]]()


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Callable[[str, str, float | str], None]:
    """Records a number of a case under a column of the table in docs/zoo.md."""
    table = request.config.stash.setdefault(_MEASURED, {})

    def keep(case: str, column: str, value: float | str) -> None:
        row = table.setdefault(case, {})
        held = row.get(column)
        worse = isinstance(held, float) and isinstance(value, float) and held > value
        row[column] = held if worse and held is not None else value

    return keep


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Writes the measurements of this run as JSON."""
    path, table = os.environ.get("ZOO_RESULTS"), session.config.stash.get(_MEASURED, {})
    if path and table:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")


@pytest.fixture(scope="session")
def ggml_quantize() -> Callable[..., npt.NDArray[np.uint8]]:
    """llama.cpp's own quantisation, out of the library that xllamacpp carries.

    Takes values [rows, I], a type and, optional, an importance matrix's row [I].
    """
    gguf = pytest.importorskip("gguf")
    (library,) = Path(pytest.importorskip("xllamacpp").__file__).parent.glob("*.so")
    quantize = ctypes.CDLL(str(library)).ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64,
        ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip

    def call(
        values: npt.NDArray[np.float32],
        dtype: DType,
        importance: npt.NDArray[np.float32] | None = None,
    ) -> npt.NDArray[np.uint8]:
        out = np.zeros(dtype.size_bytes(values.shape), dtype=np.uint8)
        kind, (rows, cols) = gguf.GGMLQuantizationType[dtype.value], values.shape
        weights = None if importance is None else importance.ctypes.data
        done = quantize(kind, values.ctypes.data, out.ctypes.data, 0, rows, cols, weights)
        assert done == out.size
        return out

    return call
