"""Other ways of asking a teacher, from file to file."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from miudo.compress.distill.cross import CrossSettings
from miudo.compress.distill.divergence import Divergence
from miudo.compress.distill.lesson import distill
from miudo.compress.distill.onpolicy import OnPolicySettings
from miudo.compress.distill.terms import DistillSettings, TextTerm
from miudo.compress.distill.ways import Cached, Way
from miudo.compress.jobs import DistillJob
from miudo.compress.verbs import run_distill
from miudo.config import ModelConfig
from miudo.data.pack import PackSettings
from miudo.data.packed import DataSet
from miudo.data.pipeline import PrepareSettings, prepare
from miudo.decoder.decoder import Decoder
from miudo.errors import ConfigError, UsageError
from miudo.train.loop import FitResult
from miudo.train.metrics import read_metrics
from miudo.train.pretrain import TrainJob, train
from miudo.train.settings import FitSettings

SHAPE = ModelConfig.uniform(
    n_layers=2, d_model=64, n_heads=2, d_ff=96, vocab_size=64, max_positions=32
)
FIT = FitSettings(
    steps=4, batch_size=2, length=16, eval_tokens=64, seed=4, save_every=2, log_every=1
)


def pack(vocab: int) -> PrepareSettings:
    return PrepareSettings(vocab_size=vocab, dedupe=None, pack=PackSettings(held_out=0.2))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher with its data, and a model of another tokenizer with the same text."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("ways")
    draw = np.random.default_rng(1)
    words = [f"{a}{b}{c}" for a in "bdklm" for b in "aeiou" for c in "nrst"]
    texts = (" ".join(draw.choice(words, 60)) + "." for _ in range(30))
    (folder / "text.txt").write_text("\n\n\n".join(texts), encoding="utf-8")
    for name, vocab in (("teacher", 320), ("other", 280)):
        data = prepare([folder / "text.txt"], folder / f"{name}-data", settings=pack(vocab))
        train(TrainJob((str(data.folder),), folder / f"{name}-run", FIT, SHAPE))
        (folder / f"{name}-run" / "model").rename(folder / name)
    return folder


def job(work: Path, out: Path, way: Way, **rest: Any) -> DistillJob:
    data = "other-data" if isinstance(way, CrossSettings) else "teacher-data"
    made = DistillJob(work / "teacher", (str(work / data),), out, FIT, student=0.5, way=way)
    if isinstance(way, CrossSettings):
        made = replace(made, start=work / "other")
    return replace(made, **rest)


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.parametrize(("k", "draws"), [(8, 0), (0, 20), (4, 6)])
def test_a_cache_is_made_once_and_learned_from_again(
    work: Path, tmp_path: Path, k: int, draws: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[str] = []

    def watched(teachers: Sequence[Decoder], *rest: Any, **more: Any) -> FitResult:
        places.extend(teacher.embed.weight.device.type for teacher in teachers)
        return distill(teachers, *rest, **more)

    monkeypatch.setattr("miudo.compress.verbs.distill", watched)
    way = Cached(tmp_path / "cache", k=k, draws=draws, shard_blocks=10)
    first = run_distill(job(work, tmp_path / "a", way))
    shards = sorted((tmp_path / "cache").glob("shard-*"))
    before = [path.stat().st_mtime_ns for path in shards]
    second = run_distill(job(work, tmp_path / "b", way))
    assert [path.stat().st_mtime_ns for path in shards] == before
    for name, value in weights(tmp_path / "a").items():
        assert np.array_equal(value, weights(tmp_path / "b")[name]), name
    assert places == ["meta", "meta"]  # no memory for who has said all
    assert first.record.settings["way"]["kind"] == "Cached"
    assert str(tmp_path) not in str(second.record.to_json()["settings"])
    names = {measurement.name for measurement in first.record.measurements}
    assert {"held_out_loss", "teacher_held_out_loss"} <= names
    rows = read_metrics(tmp_path / "a" / "metrics.jsonl")
    assert ("drawn" if draws else "kl") in rows[-1]


def test_a_cache_of_another_temperature_is_refused(work: Path, tmp_path: Path) -> None:
    way = Cached(tmp_path / "cache", k=8)
    run_distill(job(work, tmp_path / "a", way))
    hotter = DistillSettings.of(temperature=4.0)
    with pytest.raises(ConfigError, match="codes is"):
        run_distill(job(work, tmp_path / "b", way, loss=hotter))


@pytest.mark.parametrize(
    "loss",
    [
        DistillSettings.of(Divergence.REVERSE_KL),
        DistillSettings.of(alpha=0.5, features=None).terms[1],
        "normalised",
    ],
)
def test_what_a_cache_cannot_give_is_refused(work: Path, tmp_path: Path, loss: object) -> None:
    if isinstance(loss, TextTerm):
        loss = DistillSettings((loss,))
    if loss == "normalised":
        first, second = DistillSettings.of().terms
        loss = DistillSettings((replace(first, normalise=True), second))
    with pytest.raises(ConfigError, match="a cache gives"):
        run_distill(job(work, tmp_path / "a", Cached(tmp_path / "cache", k=8), loss=loss))


def test_on_policy_runs_and_resumes_to_the_same_weights(work: Path, tmp_path: Path) -> None:
    way = OnPolicySettings(share=0.6, seed=1)
    loss = DistillSettings.of(Divergence.JENSEN_SHANNON, alpha=0.8)
    run_distill(job(work, tmp_path / "a", way, loss=loss))
    rows = read_metrics(tmp_path / "a" / "metrics.jsonl")
    assert {row["sampled"] for row in rows} == {0.0, 1.0}
    shutil.rmtree(tmp_path / "a" / "checkpoints" / "step-00000004")
    whole = weights(tmp_path / "a")
    shutil.rmtree(tmp_path / "a" / "model")
    run_distill(job(work, tmp_path / "a", way, loss=loss), resume=True)
    for name, value in weights(tmp_path / "a").items():
        assert np.array_equal(value, whole[name]), name


def test_across_tokenizers_the_student_keeps_its_own(work: Path, tmp_path: Path) -> None:
    made = run_distill(job(work, tmp_path / "a", CrossSettings()))
    mine = DataSet.open(work / "other-data").tokenizer()
    assert made.config.vocab_size == mine.padded_size(64)
    assert (made.path / "tokenizer.json").read_bytes() == (
        work / "other" / "tokenizer.json"
    ).read_bytes()
    rows = read_metrics(tmp_path / "a" / "metrics.jsonl")
    assert rows[-1]["compared"] > 0.5
    assert rows[-1]["shared"] > 0.0
    assert {part.role for part in made.record.inputs} == {"teacher", "start", "data"}
    names = {measurement.name for measurement in made.record.measurements}
    assert "teacher_held_out_loss" not in names


def test_tokenizers_that_differ_are_refused_unless_crossing_is_asked_for(
    work: Path, tmp_path: Path
) -> None:
    plain = replace(job(work, tmp_path / "a", CrossSettings()), way=None)
    with pytest.raises(ConfigError, match="another tokenizer"):
        run_distill(plain)
    alone = replace(job(work, tmp_path / "b", CrossSettings()), start=None)
    with pytest.raises(UsageError, match="--start"):
        run_distill(alone)
    same = replace(
        job(work, tmp_path / "c", CrossSettings()),
        start=work / "teacher",
        inputs=(str(work / "teacher-data"),),
    )
    with pytest.raises(ConfigError, match="one tokenizer"):
        run_distill(same)
