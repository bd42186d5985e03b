"""Every block type: bits, error beside llama.cpp's quantisation, time to write and to multiply.

    python benchmarks/block_types.py [--rows 1024] [--cols 2048]

The error is the root mean square over that of the values, on normal noise; times are CPU time,
single thread. llama.cpp's quantisation is called in the library that xllamacpp carries.
"""

from __future__ import annotations

import argparse
import ctypes
import time
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import xllamacpp

from miudo.engine.native_door import DTYPES, call, load_native
from miudo.formats.blocks import WRITABLE, encode, to_f32
from miudo.tensors import DType, StoredTensor

Floats = npt.NDArray[np.float32]


def theirs(values: Floats, dtype: DType) -> StoredTensor:
    """llama.cpp's quantisation of `values`."""
    (library,) = Path(xllamacpp.__file__).parent.glob("*.so")
    quantize = ctypes.CDLL(str(library)).ggml_quantize_chunk
    size, pointer = ctypes.c_int64, ctypes.c_void_p
    quantize.argtypes = [ctypes.c_int, pointer, pointer, size, size, size, pointer]
    out = np.zeros(dtype.size_bytes(values.shape), dtype=np.uint8)
    kind = gguf.GGMLQuantizationType[dtype.value]
    quantize(kind, values.ctypes.data, out.ctypes.data, 0, *values.shape, None)
    return StoredTensor(dtype, values.shape, out)


def error(stored: StoredTensor, values: Floats) -> float:
    """Relative root mean square error."""
    off = (to_f32(stored) - values).astype(np.float64)
    return float(np.sqrt(np.mean(off**2) / np.mean(values.astype(np.float64) ** 2)))


def multiply_ns(stored: StoredTensor, n: int) -> float:
    """CPU nanoseconds a weight and position, packing taken off, of the best of five runs."""
    native, (rows, cols) = load_native(), stored.shape
    kind, best = DTYPES.index(stored.dtype), {0: np.inf, n: np.inf}
    for _ in range(5):
        for count in best:
            x = np.ones((count, cols), dtype=np.float32)
            out = np.empty((count, rows), dtype=np.float32)
            start = time.process_time()
            call(native.linear, kind, rows, cols, stored.data, x, False, out)
            best[count] = min(best[count], time.process_time() - start)
    return (best[n] - best[0]) / (rows * cols * n) * 1e9


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--cols", type=int, default=2048)
    shape = parser.parse_args()
    rng = np.random.default_rng(0)
    values = rng.standard_normal((shape.rows, shape.cols)).astype(np.float32)
    print("| type | bits | error | llama.cpp's | encode ns | 1 position ns | 32 positions ns |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for dtype in (t for t in DType if not t.sparse):
        if dtype.block == 1:
            continue
        reference = theirs(values, dtype)
        ours, encode_ns = reference, ""
        if dtype in WRITABLE:
            start = time.process_time()
            ours = encode(values, dtype)
            encode_ns = f"{(time.process_time() - start) / values.size * 1e9:.0f}"
        bits = 8 * dtype.block_bytes / dtype.block
        own = f"{error(ours, values):.5f}" if dtype in WRITABLE else ""
        print(
            f"| {dtype} | {bits:.4g} | {own} | {error(reference, values):.5f} | {encode_ns} "
            f"| {multiply_ns(ours, 1):.3f} | {multiply_ns(ours, 32):.3f} |"
        )


if __name__ == "__main__":
    main()
