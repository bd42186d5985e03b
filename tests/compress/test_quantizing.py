"""`miudo quantize` from file to file: calibration text, rotation, sizes, and what is recorded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from miudo.cli.main import cli
from miudo.compress.jobs import PruneJob, QuantizeJob
from miudo.compress.method import Quantizer
from miudo.compress.prune.sparse import SparsePruning
from miudo.compress.quantize.gptq import GPTQ, Rounding
from miudo.compress.quantize.mixed import MixedTypes
from miudo.compress.quantize.nearest import NearestRounding
from miudo.compress.quantizing import run_quantize
from miudo.compress.verbs import run_prune
from miudo.config import ModelConfig
from miudo.data.pack import PackSettings
from miudo.data.pipeline import PrepareSettings, prepare
from miudo.decoder.decoder import Decoder
from miudo.errors import CheckFailedError, ConfigError, DataError
from miudo.files import sha256_file
from miudo.formats import open_model
from miudo.formats.blocks import to_f32
from miudo.tensors import DType
from miudo.train.pretrain import TrainJob, train
from miudo.train.settings import FitSettings

SHAPE = ModelConfig.uniform(
    n_layers=2, d_model=64, n_heads=2, d_ff=96, vocab_size=64, max_positions=32,
    tie_embeddings=False,
)  # fmt: skip
TYPES = ("Q8_0", "Q5_0", "Q4_0")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text, the same packed, and a model of two steps."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("quantizing")
    draw = np.random.default_rng(1)
    words = [f"{a}{b}{c}" for a in "bdklm" for b in "aeiou" for c in "nrst"]
    texts = (" ".join(draw.choice(words, 60)) + "." for _ in range(40))
    text = folder / "text.txt"
    text.write_text("\n\n\n".join(texts), encoding="utf-8")
    settings = PrepareSettings(vocab_size=300, dedupe=None, pack=PackSettings(held_out=0.2))
    data = prepare([text], folder / "data", settings=settings)
    fit = FitSettings(steps=2, batch_size=2, length=16, eval_tokens=64, seed=4)
    train(TrainJob((str(data.folder),), folder / "run", fit, SHAPE))
    (folder / "run" / "model").rename(folder / "model")
    return folder


def job(work: Path, out: Path, method: Quantizer, **rest: object) -> QuantizeJob:
    values: dict[str, object] = {"inputs": (str(work / "data"),), "calibration_length": 16}
    return QuantizeJob(work / "model", out, method, **(values | rest))  # type: ignore[arg-type]


def test_the_text_is_recorded_and_the_file_holds_what_the_method_stored(
    work: Path, tmp_path: Path
) -> None:
    made = run_quantize(job(work, tmp_path / "a.gguf", GPTQ(), calibration_tokens=320))
    record = open_model(made.path).record
    assert record is not None
    assert record.settings["method"] == "gptq"
    assert record.settings["settings"]["dtype"] == "Q4_0"
    assert record.settings["calibration_tokens"] == 320
    assert [part.role for part in record.inputs] == ["model", "data"]
    assert record.inputs[1].sha256 == sha256_file(work / "data" / "manifest.json")
    assert [parent.verb for parent in record.parents] == ["train", "prepare"]
    assert any("squared error" in note for note in record.notes)
    again = run_quantize(job(work, tmp_path / "a.gguf", GPTQ(), calibration_tokens=320))
    other = run_quantize(job(work, tmp_path / "b.gguf", NearestRounding(DType.Q4_0), inputs=()))
    name = "layers.1.mlp.up.weight"
    files = [open_model(m.path).weights[name] for m in (again, other)]
    assert files[0].dtype is files[1].dtype is DType.Q4_0
    assert (files[0].data != files[1].data).any()


def test_text_is_packed_where_it_is_no_data_folder(work: Path, tmp_path: Path) -> None:
    text = (str(work / "text.txt"),)
    made = run_quantize(job(work, tmp_path / "a.gguf", GPTQ(), inputs=text))
    assert made.record.settings["calibration_tokens"] > 300
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf"]


def test_text_is_asked_for_where_it_is_needed_and_refused_where_not(
    work: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"gptq needs text.*--data"):
        run_quantize(job(work, tmp_path / "a.gguf", GPTQ(), inputs=()))
    with pytest.raises(ConfigError, match="nearest reads no text"):
        run_quantize(job(work, tmp_path / "a.gguf", NearestRounding()))
    short = tmp_path / "short.txt"
    short.write_text("ban")
    with pytest.raises(DataError, match="no block of 16"):
        run_quantize(job(work, tmp_path / "a.gguf", GPTQ(), inputs=(str(short),)))
    assert not (tmp_path / "a.gguf").exists()


def test_a_rotated_model_says_the_same(work: Path, tmp_path: Path) -> None:
    plain, turned = (
        run_quantize(
            job(work, tmp_path / f"{seed}.gguf", NearestRounding(), inputs=(), rotation_seed=seed)
        )
        for seed in (None, 3)
    )
    assert "rotated: heads' values and the residual stream" in turned.record.notes[0]
    assert turned.record.seed == 3
    ids = torch.arange(16)[None] % 64
    outs = []
    for made in (plain, turned):
        file = open_model(made.path)
        decoder = Decoder.from_weights(file.config, file.weights)
        with torch.no_grad():
            outs.append(decoder.logits(decoder(ids)))
    torch.testing.assert_close(outs[0], outs[1], rtol=0, atol=0.05)
    name = "layers.0.mlp.up.weight"
    values = [to_f32(open_model(m.path).weights[name]) for m in (plain, turned)]
    assert np.abs(values[0] - values[1]).max() > 0.05


def test_a_size_is_kept_and_used_up(work: Path, tmp_path: Path) -> None:
    method = MixedTypes(types=TYPES, rounding=Rounding.IMPORTANCE)
    large = run_quantize(job(work, tmp_path / "large.gguf", method)).path.stat().st_size
    made = run_quantize(job(work, tmp_path / "a.gguf", method, max_bytes=large - 20_000))
    size = made.path.stat().st_size
    assert large - 40_000 < size <= large - 20_000
    kinds = {tensor.dtype for tensor in open_model(made.path).weights.values()}
    assert len(kinds - {DType.F32}) > 1


def test_a_size_that_nothing_fits_is_refused(work: Path, tmp_path: Path) -> None:
    method = MixedTypes(types=TYPES, rounding=Rounding.IMPORTANCE)
    with pytest.raises(ConfigError, match="do not hold the tokenizer"):
        run_quantize(job(work, tmp_path / "a.gguf", method, max_bytes=10))
    with pytest.raises(ConfigError, match="has one type"):
        run_quantize(job(work, tmp_path / "a.gguf", GPTQ(), max_bytes=10**6))


def test_a_file_larger_than_allowed_is_an_error(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("miudo.compress.quantizing._description_bytes", lambda *_: 0)
    method = MixedTypes(types=TYPES, rounding=Rounding.IMPORTANCE)
    with pytest.raises(CheckFailedError, match=r"bytes, \d+ are allowed"):
        run_quantize(job(work, tmp_path / "a.gguf", method, max_bytes=75_000))


def test_the_verb_takes_method_type_and_settings(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.gguf"
    command = [
        "quantize", str(work / "model"), "--out", str(out), "--dtype", "Q5_0", "--method", "gptq",
        "--data", str(work / "data"), "--set", "damping=0.1", "--set", "calibration_tokens=64",
        "--set", "calibration_length=16", "--set", "tables=Q8_0", "--set", "propagation=0.25",
        "--rotate", "1", "--json",
    ]  # fmt: skip
    done = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert done.exit_code == 0
    value = json.loads(done.stdout)
    own = {"dtype": "Q5_0", "damping": 0.1, "act_order": True, "tables": "Q8_0"}
    assert value["settings"] == own | {"propagation": 0.25}
    stored = open_model(out).weights
    assert stored["embed.weight"].dtype is stored["head.weight"].dtype is DType.Q8_0
    assert stored["layers.1.mlp.down.weight"].dtype is DType.Q5_0
    assert value["notes"][0].startswith("rotated")
    assert 5.5 <= value["bits_per_weight"] < 8.5


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--method", "gptq", "--set", "dampin=1"], "dampin"),
        (["--max-size", "4MB", "--dtype", "Q4_0"], "--max-size and --dtype"),
        (["--max-size", "4MB", "--method", "awq"], "--max-size and --method awq"),
        (["--max-size", "many"], "no size"),
    ],
)
def test_flags_that_make_no_sense_are_refused(work: Path, flags: list[str], said: str) -> None:
    command = ["quantize", str(work / "model"), "--out", "x.gguf", *flags]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code != 0
    assert said in (done.output + str(done.exception))


def test_a_pruned_model_is_not_rotated(work: Path, tmp_path: Path) -> None:
    fresh = PruneJob(
        work / "model", (str(work / "data"),), tmp_path / "run", (SparsePruning("0.5"),),
        calibration_tokens=320, calibration_length=16,
    )  # fmt: skip
    pruned = run_prune(fresh).path
    out = tmp_path / "a.gguf"
    with pytest.raises(ConfigError, match=r"rotate.*sparse.*Leave out"):
        run_quantize(QuantizeJob(pruned, out, rotation_seed=1))
    assert not out.exists()
