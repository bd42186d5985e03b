"""`quantize --sparse`: the same values, a smaller file, a report that a recount confirms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from miudo.cli.main import cli
from miudo.compress.jobs import QuantizeJob
from miudo.compress.quantize.nearest import NearestRounding
from miudo.compress.quantize.sparse import without_zeros
from miudo.compress.quantizing import run_quantize
from miudo.decoder.decoder import Decoder
from miudo.formats import open_model
from miudo.formats.blocks import to_f32
from miudo.formats.hf import write_folder
from miudo.formats.model_file import ModelFile
from miudo.registry.describe import describe
from miudo.tensors import DType

NAME = "layers.0.mlp.gate.weight"


@pytest.fixture
def pruned(tiny: Callable[[str], Decoder]) -> Decoder:
    """Two of each four numbers of the blocks' matrices are zero."""
    decoder = tiny("llama")
    with torch.no_grad():
        for name, weight in decoder.named_parameters():
            if name.startswith("layers.") and weight.dim() == 2:
                weight.view(-1, 4)[:, :2] = 0
    return decoder


@pytest.mark.parametrize("dtype", [DType.Q4_0, DType.Q8_0])
def test_the_report_is_what_a_recount_finds(pruned: Decoder, dtype: DType) -> None:
    stored, dense = NearestRounding(dtype).store(pruned)
    made, report = without_zeros(pruned.config, stored, dense)
    assert made[NAME].dtype.dense is dtype
    assert made[NAME].dtype is not dtype
    assert report.bytes_after == sum(len(t.data) for t in made.values()) < dense.bytes_after
    fewer = sum(change.bytes_before - change.bytes_after for change in report.changes)
    assert fewer == report.bytes_before - report.bytes_after
    assert report.stored_dtypes() == {
        name: t.dtype for name, t in made.items() if t.dtype is not DType.F32
    }
    for name, tensor in made.items():
        assert np.array_equal(to_f32(tensor), to_f32(stored[name]))
    assert any("stored sparse" in note for note in report.notes)


def test_a_model_without_zeros_stays_as_it_is(tiny: Callable[[str], Decoder]) -> None:
    decoder = tiny("qwen")
    stored, dense = NearestRounding(DType.Q8_0).store(decoder)
    made, report = without_zeros(decoder.config, stored, dense)
    assert made == stored
    assert report.bytes_after == dense.bytes_after
    assert report.notes[-1].endswith("none is stored sparse")


def test_from_file_to_file(pruned: Decoder, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    model = ModelFile(
        pruned.config, pruned.to_weights(), None, None, None, "LlamaForCausalLM", None
    )
    write_folder(folder, model)
    rounding = NearestRounding(DType.Q4_0)
    made = {
        sparse: run_quantize(
            QuantizeJob(folder, tmp_path / f"{sparse}.gguf", rounding, sparse=sparse)
        )
        for sparse in (False, True)
    }
    found = {sparse: open_model(shrunk.path) for sparse, shrunk in made.items()}
    assert made[True].record.settings["stored_sparse"] is True
    assert made[False].record.settings["stored_sparse"] is False
    assert found[True].architecture == "miudo"
    assert found[True].weights[NAME].dtype is DType.SPARSE4
    for name, tensor in found[False].weights.items():
        assert np.array_equal(to_f32(tensor), to_f32(found[True].weights[name]))
    (report,) = made[True].reports
    shown = describe(found[True])
    assert shown["weights_bytes"] == report.bytes_after
    assert shown["bits_per_weight"] == pytest.approx(report.bits_per_weight)
    assert made[True].path.stat().st_size < made[False].path.stat().st_size


def test_types_without_a_sparse_form_are_refused(tmp_path: Path) -> None:
    arguments = ["quantize", "m", "--out", str(tmp_path / "x.gguf"), "--dtype", "Q6_K", "--sparse"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2
    assert "has no sparse form" in result.output
