"""Sparse matrices on the engine: the bits of the dense model, however stepped, on every path."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from miudo.config import ModelConfig
from miudo.decoder.decoder import Decoder
from miudo.decoder.torch_engine import TorchEngine
from miudo.engine.native import NativeEngine
from miudo.errors import ModelFileError
from miudo.formats import ModelFile, open_model
from miudo.formats.blocks import encode
from miudo.formats.gguf import write_gguf
from miudo.formats.sparse import sparse_weights, to_sparse
from miudo.protocol import SeqWork, Want
from miudo.tensors import DType, Role, StoredTensor, Weights, tensor_table

CONFIG = ModelConfig.uniform(
    n_layers=2, d_model=96, n_heads=3, n_kv_heads=1, d_ff=224, vocab_size=131, max_positions=64
)
PATHS = [None, "avx512", "avx2", "neon", "portable"]
IDS = np.random.default_rng(5).integers(0, CONFIG.vocab_size, 23).tolist()


class Tensors(NamedTuple):
    config: ModelConfig
    weights: Weights


def pruned(values: np.ndarray, pattern: str) -> np.ndarray:
    """Without half of the numbers of each row, or two of each four: the least ones."""
    if pattern == "2:4":
        four = values.reshape(-1, 4)
        least = np.argsort(np.abs(four), axis=1)[:, :2]
        out = four.copy()
        np.put_along_axis(out, least, 0, axis=1)
        return out.reshape(values.shape)
    return np.where(np.abs(values) < np.median(np.abs(values)), np.float32(0), values)


def models(dtype: DType, pattern: str) -> tuple[Tensors, Tensors]:
    """One model's tensors, dense and sparse."""
    draw = np.random.default_rng(3)
    dense: dict[str, StoredTensor] = {}
    for spec in tensor_table(CONFIG):
        values = draw.standard_normal(spec.shape).astype(np.float32) * np.float32(0.1)
        if spec.role in (Role.ATTENTION, Role.MLP):
            values = pruned(values, pattern)
        kind = DType.F32 if spec.lowest is DType.F32 else dtype
        dense[spec.name] = encode(values + (kind is DType.F32), kind)
    return Tensors(CONFIG, dense), Tensors(CONFIG, sparse_weights(CONFIG, dense))


def logits(engine: NativeEngine, cuts: tuple[int, ...]) -> np.ndarray:
    k = engine.open()
    rows, start = [], 0
    for end in (*cuts, len(IDS)):
        (out,) = engine.step([SeqWork(k, IDS[start:end], Want.ALL_LOGITS)])
        assert out.logits is not None
        rows.append(out.logits)
        start = end
    return np.concatenate(rows)


@pytest.mark.parametrize("isa", PATHS)
@pytest.mark.parametrize("pattern", ["2:4", "half"])
@pytest.mark.parametrize("dtype", [DType.Q4_0, DType.Q8_0])
def test_the_bits_are_those_of_the_dense_model(
    force_isa: Callable[[str | None], None], dtype: DType, pattern: str, isa: str | None
) -> None:
    force_isa(isa)
    dense, sparse = models(dtype, pattern)
    assert sparse.weights["layers.1.mlp.down.weight"].dtype.dense is dtype
    assert sparse.weights["layers.1.mlp.down.weight"].dtype is not dtype
    wanted = logits(NativeEngine(dense, threads=1), ())
    # A prompt, tokens one by one, and two at a time.
    for cuts in ((), tuple(range(1, len(IDS))), (1, 3, 5, 12, 13, 15)):
        for threads in (1, 3):
            got = logits(NativeEngine(sparse, threads=threads), cuts)
            assert got.tobytes() == wanted.tobytes(), (cuts, threads)
    both = [NativeEngine(m, threads=1, activations="float") for m in (dense, sparse)]
    assert logits(both[0], (7,)).tobytes() == logits(both[1], (7,)).tobytes()


def test_it_equals_the_decoder() -> None:
    _, sparse = models(DType.Q4_0, "2:4")
    engine = TorchEngine(Decoder.from_weights(CONFIG, sparse.weights))
    (wanted,) = engine.step([SeqWork(engine.open(), IDS, Want.ALL_LOGITS)])
    got = logits(NativeEngine(sparse, activations="float"), (4, 5))
    assert wanted.logits is not None
    assert np.abs(got - wanted.logits).max() <= 1e-4


def test_two_of_four_takes_less_memory() -> None:
    for dtype, share in ((DType.Q4_0, 7 / 9), (DType.Q8_0, 11 / 17)):
        dense, sparse = models(dtype, "2:4")
        held = [NativeEngine(m, threads=1).weight_bytes for m in (dense, sparse)]
        inside = sum(
            t.size_bytes for n, t in dense.weights.items()
            if sparse.weights[n].dtype is not t.dtype
        )  # fmt: skip
        # Odd groups leave half a line free in both forms.
        assert held[0] - held[1] == pytest.approx((1 - share) * inside, rel=0.1)


def test_other_patterns_take_less_where_bytes_are_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, half = models(DType.Q8_0, "half")
    held = [NativeEngine(m, threads=1).weight_bytes for m in (dense, half)]
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    best = os.environ.get("MIUDO_ISA", "avx512") == "avx512"
    spreads = {"avx512_vbmi2", "avx512_vnni"} <= set(flags) and best
    assert (held[1] < 0.85 * held[0]) is spreads
    floats = NativeEngine(half, threads=1, activations="float")
    assert floats.weight_bytes == held[0]  # to spread them for every token would take longer
    monkeypatch.setenv("MIUDO_ISA", "portable")
    assert NativeEngine(half, threads=1).weight_bytes == held[0]


def test_a_file_of_it_runs(tmp_path: Path) -> None:
    dense, sparse = models(DType.Q4_0, "2:4")
    path = tmp_path / "small.gguf"
    write_gguf(path, ModelFile(CONFIG, sparse.weights, None, None, None, "x", None))
    found = open_model(path)
    assert logits(NativeEngine(found), (3,)).tobytes() == logits(NativeEngine(dense), ()).tobytes()


def test_what_no_block_s_matrix_is_cannot_be_sparse() -> None:
    dense, _ = models(DType.Q4_0, "half")
    table = encode(pruned(np.ones((131, 96), np.float32), "half"), DType.Q4_0)
    weights = {**dense.weights, "embed.weight": to_sparse(table)}
    with pytest.raises(ModelFileError, match="only blocks' matrices"):
        NativeEngine(Tensors(CONFIG, weights))


def test_bytes_that_masks_do_not_account_for_are_refused() -> None:
    _, sparse = models(DType.Q8_0, "half")
    name = "layers.0.attn.o.weight"
    held = sparse.weights[name]
    claims = held.data.copy()
    claims[:8] = 255
    for data in (held.data[:-1], held.data[:10], claims, np.append(held.data, np.uint8(0))):
        weights = {**sparse.weights, name: StoredTensor(held.dtype, held.shape, data)}
        with pytest.raises(ModelFileError, match=name):
            NativeEngine(Tensors(CONFIG, weights))
