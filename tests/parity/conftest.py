"""What several of these tests ask of other programs."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from miudo.tensors import DType


@pytest.fixture(scope="session")
def ggml_quantize() -> Callable[[npt.NDArray[np.float32], DType], npt.NDArray[np.uint8]]:
    """llama.cpp's own quantisation, out of the library that xllamacpp carries."""
    gguf = pytest.importorskip("gguf")
    (library,) = Path(pytest.importorskip("xllamacpp").__file__).parent.glob("*.so")
    quantize = ctypes.CDLL(str(library)).ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64,
        ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip

    def call(values: npt.NDArray[np.float32], dtype: DType) -> npt.NDArray[np.uint8]:
        out = np.zeros(dtype.size_bytes(values.shape), dtype=np.uint8)
        kind, (rows, cols) = gguf.GGMLQuantizationType[dtype.value], values.shape
        done = quantize(kind, values.ctypes.data, out.ctypes.data, 0, rows, cols, None)
        assert done == out.size
        return out

    return call
