"""Tensors that are made when asked for, and mapped pages given back: models larger than memory.

For: writers that put one tensor after the other into a file, and loaders that copy each once.
Not for: what is made (`miudo.formats.layout`).
Read next: `miudo.formats.gguf`.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from miudo.tensors import DType, StoredTensor

__all__ = ["DerivedTensor", "drop_pages", "map_under", "mapped_before"]

_Bytes = npt.NDArray[np.uint8]


class DerivedTensor(StoredTensor):
    """A tensor whose `data` is made of `sources` each time that it is asked for, never kept.

    `make` takes the sources with their data, which is let go afterwards.
    """

    __slots__ = ("_make", "_sources")
    _make: Callable[..., _Bytes]
    _sources: tuple[StoredTensor, ...]

    def __init__(
        self,
        dtype: DType,
        shape: tuple[int, ...],
        make: Callable[..., _Bytes],
        *sources: StoredTensor,
    ) -> None:
        values = {"dtype": dtype, "shape": shape, "_make": make, "_sources": sources}
        for name, value in values.items():
            object.__setattr__(self, name, value)  # frozen, as every stored tensor

    @property
    def sources(self) -> tuple[StoredTensor, ...]:
        """What it is made of."""
        return self._sources

    @property
    def data(self) -> _Bytes:
        """The bytes, made now."""
        held = [StoredTensor(s.dtype, s.shape, s.data) for s in self._sources]
        made = self._make(*held)
        for source in held:
            drop_pages(source.data)
        return made


def drop_pages(data: npt.NDArray[np.generic]) -> None:
    """Lets the pages of a mapped file behind `data` go; used again, they are read again.

    The system drops them by itself only when memory is short, and until then they count as
    the process's own. Does nothing for memory that is no map.
    """
    base = map_under(data)
    if base is None or not data.size or not hasattr(base, "madvise"):
        return
    before = mapped_before(data)
    start = before // mmap.PAGESIZE * mmap.PAGESIZE
    base.madvise(mmap.MADV_DONTNEED, start, before + data.nbytes - start)


def mapped_before(data: npt.NDArray[np.generic]) -> int:
    """Returns how many bytes of the map that `data` is a view of lie before it, 0 without one."""
    base = map_under(data)
    if base is None:
        return 0
    return data.ctypes.data - np.frombuffer(base, dtype=np.uint8).ctypes.data


def map_under(data: npt.NDArray[np.generic]) -> mmap.mmap | None:
    """Returns the memory map that an array is a view of, None if it is of none."""
    base: Any = data
    while isinstance(base, np.ndarray | memoryview):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    return base if isinstance(base, mmap.mmap) else None
