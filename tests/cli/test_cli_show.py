"""`miudo show --verify`: bytes that the record does not know, weights that are no numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from miudo.cli.main import cli
from miudo.config import ModelConfig
from miudo.formats.gguf_writer import write_container
from miudo.formats.hf import write_folder
from miudo.formats.model_file import ModelFile
from miudo.formats.opening import open_model
from miudo.records import Record
from miudo.tensors import StoredTensor, tensor_table


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = ModelConfig.uniform(
        vocab_size=8, d_model=4, n_layers=1, n_heads=1, d_ff=8, max_positions=8
    )
    weights = {
        spec.name: StoredTensor.from_f32(np.ones(spec.shape, dtype="<f4"))
        for spec in tensor_table(config)
    }
    record = Record(verb="train", name="tiny")
    write_folder(tmp_path / "m", ModelFile(config, weights, None, None, record, "llama", None))
    return tmp_path / "m"


def shown(*arguments: str) -> str:
    result = CliRunner().invoke(cli, ["show", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def refusal(*arguments: str) -> str:
    result = CliRunner().invoke(cli, ["show", *arguments])
    assert result.exit_code == 3
    return result.stderr


def test_a_whole_folder_passes(folder: Path) -> None:
    assert shown("--verify", str(folder)) == shown(str(folder))


def test_a_changed_file_is_found_only_when_asked(folder: Path) -> None:
    config = folder / "config.json"
    config.write_bytes(config.read_bytes() + b"\n")
    shown(str(folder))
    said = refusal("--verify", str(folder))
    assert "config.json" in said
    assert "another hash" in said


def test_weights_that_are_not_finite_are_refused(folder: Path) -> None:
    config = open_model(folder).config
    values = {
        "general.architecture": "miudo",
        "miudo.config": json.dumps(config.to_json()),
        "tokenizer.ggml.model": "none",
    }
    bad = dict(open_model(folder).weights)
    bad["norm.weight"] = StoredTensor.from_f32(np.array([1, np.nan, 1, 1], dtype="<f4"))
    path = folder.parent / "m.gguf"
    with path.open("wb") as file:
        write_container(file, values, list(bad.items()))
    with pytest.warns(UserWarning, match="not finite"):
        shown(str(path))
    assert "not finite: norm.weight" in refusal("--verify", str(path))
