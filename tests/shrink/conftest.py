"""A tiny trained teacher with its text, and a search over it that takes seconds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from miudo.compress.prune.sparse import SparseMethod, SparsePruning
from miudo.config import ModelConfig
from miudo.data.pack import PackSettings
from miudo.data.pipeline import PrepareSettings, prepare
from miudo.data.sample import write_sample
from miudo.decoder.sparsity import Masks
from miudo.evaluate.bench import Bench, BenchSettings, Speed
from miudo.formats.gguf import write_gguf
from miudo.formats.zeros import sparse_settings
from miudo.shrink.budget import Budget
from miudo.shrink.jobs import ShrinkJob, ShrinkSettings
from miudo.shrink.stored import model_file
from miudo.train.artefact import open_decoder
from miudo.train.pretrain import TrainJob, train
from miudo.train.settings import Compile, FitSettings, Precision

SETTINGS = ShrinkSettings(
    steps=6,
    batch_size=4,
    length=32,
    trunks=4,
    measured=3,
    calibration_tokens=256,
    selection_tokens=512,
    measured_bytes=1500,
    threads=1,
    repeats=1,
    methods=("depth", "width", "nearest"),
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "sample.jsonl"
    write_sample(path, seed=3, size_bytes=60_000)
    return path


@pytest.fixture(scope="session")
def data(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "packed"
    prepare([text], folder, settings=PrepareSettings(vocab_size=320, pack=PackSettings(0.15)))
    return folder


@pytest.fixture(scope="session")
def teacher(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = ModelConfig.uniform(
        n_layers=4, d_model=64, n_heads=2, d_ff=128, vocab_size=320, max_positions=32
    )
    fit = FitSettings(
        steps=80, batch_size=8, length=32, compile=Compile.OFF, precision=Precision.F32
    )
    out = tmp_path_factory.mktemp("teacher")
    return train(TrainJob((str(data),), out / "run", fit, shape)).folder


@pytest.fixture(scope="session")
def pruned_teacher(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher, half of its weights zero, with a record that names them."""
    opened = open_decoder(teacher, "teacher")
    method = SparsePruning(method=SparseMethod.MAGNITUDE)
    ids = torch.arange(32).reshape(2, 16)
    decoder, _ = method.apply(opened.decoder, method.calibrate(opened.decoder, [ids]))
    record = opened.file.record
    assert record is not None
    record = dataclasses.replace(record, settings=sparse_settings(Masks.of(decoder).zeros()))
    path = tmp_path_factory.mktemp("pruned") / "pruned.gguf"
    write_gguf(path, model_file(opened, decoder.config, decoder.to_weights(), record))
    return path


@pytest.fixture
def fast_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speed by a fixed rule of the file's size: a process for each model takes seconds."""
    monkeypatch.setattr("miudo.evaluate.compare.bench_path", bench_by_size)


def bench_by_size(path: Path, settings: BenchSettings, **_: Any) -> Bench:
    size = sum(f.stat().st_size for f in ([path] if path.is_file() else path.iterdir()))
    speed = Speed(1e9 / size, 1e8 / size, 16, 16, 1, 1e-3, "assumed by the test", True)
    return Bench(speed, 0.1, 1e6, "assumed by the test", "native", 1)


@pytest.fixture
def job(teacher: Path, data: Path, tmp_path: Path) -> Callable[..., ShrinkJob]:
    """Makes a job; keywords that are settings' go there."""

    def make(out: str = "out", budget: Budget | None = None, **changes: Any) -> ShrinkJob:
        settings = dataclasses.replace(SETTINGS, **changes)
        budget = budget or Budget(max_size_bytes=250_000)
        return ShrinkJob(teacher, (str(data),), tmp_path / out, budget, settings)

    return make
