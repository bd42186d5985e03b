"""The inputs of a block, a batch at a time: kept in a file, in memory while one is in use.

For: walks, whose stream of all calibration tokens is larger than the rest of a small model's work.
Not for: what is kept after a run; the file has no name, and goes with the stream.
Read next: `miudo.compress.walk`.

Shapes: B batch, T positions, D d_model.
"""

from __future__ import annotations

import math
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from miudo.files import translated_disk_errors

__all__ = ["Stream"]

_REMEDY = "Free some space, or let TMPDIR name a folder with more"


class Stream:
    """Tensors [B, T, D], as many as were given: read anew each time, replaced one by one.

    The file lies where the system has temporary ones (`TMPDIR` tells where). Raises
    ResourceError, naming that folder, where it has no room.
    """

    def __init__(self, batches: Iterable[Tensor]) -> None:
        self._folder = Path(tempfile.gettempdir())
        with translated_disk_errors(self._folder, _REMEDY):
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - lives as long
        weakref.finalize(self, self._file.close)
        self._kinds: list[tuple[int, torch.Size, torch.dtype, torch.device]] = []
        end = 0
        for x in batches:
            self._kinds.append((end, x.shape, x.dtype, x.device))
            self[len(self._kinds) - 1] = x
            end += x.numel() * x.element_size()

    def __len__(self) -> int:
        return len(self._kinds)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> Tensor:
        at, shape, dtype, device = self._kinds[index]
        x = torch.empty(shape, dtype=dtype)
        self._file.seek(at)
        self._file.readinto(_bytes(x))
        return x.to(device)

    def __setitem__(self, index: int, x: Tensor) -> None:
        at, shape, dtype, _ = self._kinds[index]
        if (x.shape, x.dtype) != (shape, dtype):
            raise ValueError(f"{x.dtype} {tuple(x.shape)} in the place of {dtype} {tuple(shape)}")
        with translated_disk_errors(self._folder, _REMEDY):
            self._file.seek(at)
            self._file.write(_bytes(x.detach().cpu().contiguous()))
            self._file.flush()

    @property
    def tokens(self) -> int:
        """How many positions all tensors have."""
        return sum(math.prod(shape[:-1]) for _, shape, _, _ in self._kinds)


def _bytes(x: Tensor) -> memoryview:
    return x.view(torch.uint8).numpy().data
