"""What `native/bind/module.cc` offers. Use `miudo.engine.native`."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

_Sampling = tuple[float, int, float, float, float, Sequence[int], Sequence[float], int, int]
_Layer = tuple[int, int, int, int, int, int, Sequence[float], Sequence[float]]
_Floats = npt.NDArray[np.float32]
_Ids = npt.NDArray[np.int32]
_Mask = npt.NDArray[np.bool_]
# name, type, shape, bytes, bytes of a map of a file before them
_Tensor = tuple[str, int, Sequence[int], npt.NDArray[np.uint8], int]
_LowRank = tuple[str, _Floats, _Floats, float]

class NativeError(RuntimeError):
    args: tuple[int, str]

class Work:
    def __init__(
        self,
        conversation: int,
        ids: _Ids,
        want: int,
        sampling: _Sampling,
        mask: _Mask | None,
        logits: _Floats | None,
        hidden: _Floats | None,
        attention: Sequence[_Floats],
        adapter: str | None,
        n_drafted: int = 0,
    ) -> None: ...

class Engine:
    page_positions: int

    def __init__(
        self,
        config: Mapping[str, int | float],
        layers: Sequence[_Layer],
        threads: int,
        int8: bool,
        cache_type: int,
        cache_bytes: int,
    ) -> None: ...
    def set_tensors(self, tensors: Sequence[_Tensor], /) -> None: ...
    def finalize(self) -> None: ...
    def open(self) -> int: ...
    def fork(self, conversation: int, length: int, /) -> int: ...
    def close(self, conversation: int, /) -> None: ...
    def length(self, conversation: int, /) -> int: ...
    def truncate(self, conversation: int, length: int, /) -> None: ...
    def add_adapter(self, name: str, parts: Sequence[_LowRank], /) -> None: ...
    def remove_adapter(self, name: str, /) -> None: ...
    def step(self, works: Sequence[Work], /) -> list[tuple[list[int], list[float]]]: ...
    def score(
        self,
        ids: _Ids,
        logprobs: _Floats,
        argmax: _Ids,
        logsumexp: _Floats,
        top_k: int,
        top_ids: _Ids,
        top_logprobs: _Floats,
        adapter: str | None,
    ) -> None: ...
    def unembed(self, hidden: _Floats, logits: _Floats) -> None: ...
    def time_phases(self, wanted: bool, /) -> None: ...
    def phase_seconds(self) -> list[float]: ...
    @property
    def isa(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...
    @property
    def cache_bytes_used(self) -> int: ...
    @property
    def page_bytes(self) -> int: ...

def sample(
    logits: _Floats, sampling: _Sampling, position: int, seen: _Ids, mask: _Mask | None
) -> int: ...
def uniform(seed: int, request: int, position: int, /) -> float: ...
def linear(
    type: int,
    rows: int,
    cols: int,
    data: npt.NDArray[np.uint8],
    x: _Floats,
    int8: bool,
    out: _Floats,
    /,
) -> None: ...
def probe(
    kind: int, isa: str | None, threads: int, size_bytes: int, seconds: float, repeats: int
) -> list[float]: ...
def probe_isas() -> list[str]: ...
