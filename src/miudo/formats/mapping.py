"""Files as arrays of bytes: memory-mapped, and watched for having been cut short.

For: every reader of weights, so that opening copies nothing.
Not for: what the bytes mean (`miudo.formats.safetensors` and its neighbours).
Read next: `miudo.formats.opening`.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from typing import IO

import numpy as np
import numpy.typing as npt

from miudo.errors import ModelFileError
from miudo.formats.derived import DerivedTensor, map_under
from miudo.tensors import StoredTensor, Weights

__all__ = ["WatchedWeights", "map_file"]


def map_file(file: IO[bytes]) -> npt.NDArray[np.uint8]:
    """Returns the bytes of an open file as a read-only array over a memory map."""
    if file.seek(0, 2) == 0:
        return np.empty(0, dtype=np.uint8)  # nothing can be mapped of nothing
    return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)


class WatchedWeights(Mapping[str, StoredTensor]):
    """`weights`, each of whose files is measured again whenever a tensor is taken.

    A page that a shortened file no longer has would end the process with SIGBUS; here it is a
    ModelFileError. What a reader already holds is not protected.
    """

    def __init__(self, weights: Weights, where: object) -> None:
        self._weights, self._where = weights, where

    def __getitem__(self, name: str) -> StoredTensor:
        """Returns the tensor; raises ModelFileError if its file has become shorter."""
        tensor = self._weights[name]
        for view in _maps_under(tensor):
            if view.size() < len(view):
                raise ModelFileError(
                    f"was cut from {len(view)} to {view.size()} bytes while it was open",
                    where=f"{self._where}: tensor {name}",
                    remedy="Fetch the model again, and replace files by renaming",
                )
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def _maps_under(tensor: StoredTensor) -> Iterator[mmap.mmap]:
    """The maps that a tensor lies in; one that is made when asked for is not made here."""
    if isinstance(tensor, DerivedTensor):
        for source in tensor.sources:
            yield from _maps_under(source)
    elif (view := map_under(tensor.data)) is not None:
        yield view
