"""Counter-based random numbers (Philox 4x64-10, Salmon et al. 2011), as NumPy ships them.

For: numbers that depend on (seed, request, position) alone, equal here and in the native core.
Not for: cryptography.
Read next: `miudo.sampling`; `native/util/philox.h` is the same function in C++.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import numpy.typing as npt

__all__ = ["Orders", "permutation", "uniform"]


def uniform(seed: int, request: int, position: int) -> float:
    """Returns a double in [0, 1) keyed by the three numbers (each below 2**64).

    The top 53 bits of the first word of block `position + 1`: NumPy's generator
    advances its counter before it makes a block.
    """
    bits = np.random.Philox(counter=position, key=seed | request << 64).random_raw()
    return float(int(bits) >> 11) * 2.0**-53


class Orders:
    """The order of epochs, kept for the two that a batch may lie across."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, int, int], npt.NDArray[np.int64]] = OrderedDict()

    def of(self, seed: int, epoch: int, n: int) -> npt.NDArray[np.int64]:
        """Returns `permutation(seed, epoch, n)`."""
        key = (seed, epoch, n)
        if key not in self._kept:
            self._kept[key] = permutation(seed, epoch, n)
            if len(self._kept) > 2:
                self._kept.popitem(last=False)
        return self._kept[key]


def permutation(seed: int, epoch: int, n: int) -> npt.NDArray[np.int64]:
    """Returns the order of `n` items in `epoch`: a pure function of its arguments.

    Sorts raw words, whose stream NumPy guarantees across versions (that of
    `Generator.permutation` it does not).
    """
    words = np.random.Philox(counter=0, key=seed | epoch << 64).random_raw(n)
    return np.argsort(words, kind="stable")
