"""What ties an adapter to its base, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from miudo.adapter import Adapter, LowRank, base_fingerprint, check_adapter
from miudo.config import ModelConfig, QkNorm
from miudo.errors import ModelFileError
from miudo.formats import open_model
from miudo.formats.gguf import write_gguf
from miudo.formats.hf import write_folder
from miudo.formats.model_file import ModelFile
from miudo.tensors import DType, Role, StoredTensor, tensor_table

CONFIG = ModelConfig.uniform(
    vocab_size=64, d_model=64, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=96, max_positions=16,
    qk_norm=QkNorm.HEAD,
)  # fmt: skip


def random_model(seed: int, config: ModelConfig = CONFIG) -> ModelFile:
    """Every number random, norms too: values that bfloat16 has to round."""
    generator = np.random.Generator(np.random.Philox(seed))
    weights = {
        spec.name: StoredTensor.from_f32(generator.normal(1.0, 0.3, spec.shape).astype(np.float32))
        for spec in tensor_table(config)
    }
    return ModelFile(config, weights, None, None, None, "", None)


def fingerprint(path: Path) -> str:
    model = open_model(path)
    return base_fingerprint(model.config, model.weights)


@pytest.mark.parametrize("qk_norm", [QkNorm.NONE, QkNorm.HEAD])
def test_folders_and_quantised_files_of_one_model_share_it(tmp_path: Path, qk_norm: QkNorm) -> None:
    model = random_model(1, dataclasses.replace(CONFIG, qk_norm=qk_norm))
    write_folder(tmp_path / "f32", model)
    write_folder(tmp_path / "bf16", model, dtype=DType.BF16)
    for dtype in (DType.F32, DType.BF16, DType.Q8_0):
        write_gguf(tmp_path / f"{dtype}.gguf", model, dtype=dtype)
    names = ["f32", "bf16", "F32.gguf", "BF16.gguf", "Q8_0.gguf"]
    assert len({fingerprint(tmp_path / name) for name in names}) == 1
    assert fingerprint(tmp_path / "f32") == base_fingerprint(model.config, model.weights)


def test_other_norms_or_another_shape_do_not() -> None:
    model = random_model(1)
    own = base_fingerprint(model.config, model.weights)
    assert base_fingerprint(CONFIG, random_model(2).weights) != own
    norm = next(s for s in tensor_table(CONFIG) if s.role is Role.NORM)
    moved = dict(model.weights)
    value = moved[norm.name].data.view(np.float32).copy()
    value[3] *= 1.02  # more than half a step of bfloat16
    moved[norm.name] = StoredTensor.from_f32(value)
    assert base_fingerprint(CONFIG, moved) != own
    layer = dataclasses.replace(CONFIG.layers[0], rope_theta=5e5)
    other = dataclasses.replace(CONFIG, layers=(layer,) * 2)
    assert base_fingerprint(other, model.weights) != own


def part(rows: int, columns: int, rank: int = 2) -> LowRank:
    return LowRank(np.ones((rank, columns), np.float32), np.ones((rows, rank), np.float32), 1.0)


GOOD = part(64, 64)


def test_an_adapter_that_fits_passes() -> None:
    adapter = Adapter({"layers.0.attn.q.weight": GOOD}, base="a", tokenizer="t")
    check_adapter(CONFIG, adapter, base="a", tokenizer="t")
    check_adapter(CONFIG, adapter)  # neither side has to know
    check_adapter(CONFIG, dataclasses.replace(adapter, base=None), base="b")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "corrects no matrix"),
        ({"layers.7.attn.q.weight": GOOD}, "layers.7.attn.q.weight is no matrix"),
        ({"embed.weight": GOOD}, "embed.weight is no matrix of this model's blocks"),
        ({"layers.0.attn.q.weight": part(64, 32)}, r"corrects \[64, 32\] by rank 2, the matrix is"),
        ({"layers.0.attn.q.weight": part(64, 64, 0)}, "rank 0, allowed 1"),
        (
            {"layers.0.attn.q.weight": LowRank(GOOD.down, part(64, 64, 3).up, 1.0)},
            "share no rank",
        ),
        (
            {"layers.0.attn.q.weight": LowRank(GOOD.down, GOOD.up * np.float32("nan"), 1.0)},
            "holds NaN or infinity",
        ),
    ],
)  # fmt: skip
def test_an_adapter_that_does_not_fit_is_refused(parts: dict[str, LowRank], message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        check_adapter(CONFIG, Adapter(parts))


def test_an_adapter_of_another_model_or_tokenizer_is_refused() -> None:
    adapter = Adapter({"layers.0.attn.q.weight": GOOD}, base="one", tokenizer="t1")
    with pytest.raises(ModelFileError, match="was trained on the model one, this is two"):
        check_adapter(CONFIG, adapter, base="two")
    with pytest.raises(ModelFileError, match="was trained on the tokenizer t1, this is t2"):
        check_adapter(CONFIG, adapter, base="one", tokenizer="t2")
