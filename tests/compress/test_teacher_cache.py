"""A cache of a teacher's answers: made, broken off, refused, learned from."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from miudo.compress.distill.cached import CachePlan, TeacherCache, make_cache, write_shard
from miudo.compress.distill.cached_loss import CachedLoss, CachedSettings, FixedBlocks
from miudo.compress.distill.codes import DrawCodes, TopCodes
from miudo.compress.distill.method import HeldText
from miudo.decoder.decoder import Decoder
from miudo.errors import CheckFailedError, ConfigError, DataError, MissingError, ResourceError
from miudo.train.loop import fit
from miudo.train.loss import Loss, Marks
from miudo.train.settings import FitSettings

VOCAB, LENGTH, BLOCKS = 96, 16, 11


def text(seed: int = 0) -> HeldText:
    rows = np.random.default_rng(seed).integers(0, VOCAB, (BLOCKS, LENGTH + 1))
    return HeldText(rows.astype(np.int32))


def plan_of(data: HeldText, codes: TopCodes | DrawCodes | None = None) -> CachePlan:
    return CachePlan(
        "t" * 64, "k" * 64, data.sha256, VOCAB, LENGTH, BLOCKS, codes or TopCodes(), shard_blocks=4
    )


class Dense:
    """The loss with the teacher in memory, in whole tensors, by PyTorch's own functions."""

    def __init__(self, teacher: Decoder, settings: CachedSettings) -> None:
        self.teacher, self.t, self.alpha = teacher, settings.temperature, settings.alpha

    def __call__(
        self, student: Decoder, ids: Tensor, marks: Marks | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        with torch.no_grad():
            wanted = self.teacher.logits(self.teacher(ids[:, :-1])).flatten(0, 1)
        z = student.logits(student(ids[:, :-1])).flatten(0, 1)
        far = F.kl_div(
            (z / self.t).log_softmax(-1), (wanted / self.t).softmax(-1), reduction="none"
        )
        kl = self.t**2 * far.sum(-1).mean()
        plain = F.cross_entropy(z, ids[:, 1:].flatten().long())
        parts = {"kl": kl.item(), "cross_entropy": plain.item()}
        return self.alpha * kl + (1 - self.alpha) * plain, parts


@pytest.fixture
def teacher(tiny: Callable[[str], Decoder]) -> Decoder:
    made = tiny("llama")
    with torch.no_grad():  # sharper than a fresh model: there is a top and a tail
        made.embed.weight.mul_(30.0)
    return made


@pytest.mark.parametrize("scaled", [False, True])
def test_the_loss_is_nearly_that_of_the_teacher_itself(
    tmp_path: Path, tiny: Callable[[str], Decoder], teacher: Decoder, scaled: bool
) -> None:
    data, student = text(), tiny("qwen")
    if scaled:  # what is learned are the logits that the model gives, not the bare products
        student = Decoder(replace(student.config, logit_scale=3.0, logit_softcap=5.0))
        student.initialise(3)
    plan = plan_of(data, TopCodes(k=VOCAB - 1))
    cache = make_cache(tmp_path / "cache", plan, teacher, data)
    ids = torch.from_numpy(data.rows[[7, 0, 3]])  # any order
    for settings in (CachedSettings(), CachedSettings(1.0, 0.7)):
        dense, parts = Dense(teacher, settings)(student, ids)
        (of_dense,) = torch.autograd.grad(dense, [student.embed.weight])
        stored, found = CachedLoss(cache, settings)(student, ids)
        (of_stored,) = torch.autograd.grad(stored, [student.embed.weight])
        assert found["cross_entropy"] == pytest.approx(parts["cross_entropy"], rel=1e-5)
        assert found["kl"] == pytest.approx(parts["kl"], rel=0.01)
        assert float((of_stored - of_dense).norm() / of_dense.norm()) < 0.01


def test_sizes_of_files_are_those_of_the_plan(tmp_path: Path, teacher: Decoder) -> None:
    data = text()
    plan = plan_of(data)
    assert plan.bytes_per_token == 50
    make_cache(tmp_path, plan, teacher, data)
    shards = sorted(tmp_path.glob("shard-*.bin"))
    assert [shard.name for shard in shards] == [f"shard-0000{i}.bin" for i in range(3)]
    assert sum(shard.stat().st_size for shard in shards) == plan.size_bytes


def test_a_broken_run_goes_on_and_keeps_what_there_is(tmp_path: Path, teacher: Decoder) -> None:
    data = text()
    whole = make_cache(tmp_path / "whole", plan_of(data), teacher, data)
    said: list[str] = []

    def stop(line: str) -> None:
        said.append(line)
        if len(said) == 2:
            raise KeyboardInterrupt

    broken = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        make_cache(broken, plan_of(data), teacher, data, stop)
    with pytest.raises(MissingError, match="shard-00002"):
        TeacherCache.open(broken, plan_of(data))
    (broken / ".shard-00002.bin.0123abcd.tmp").write_bytes(b"half")
    before = (broken / "shard-00001.bin").stat().st_mtime_ns
    cache = make_cache(broken, plan_of(data), teacher, data)
    assert (broken / "shard-00001.bin").stat().st_mtime_ns == before
    assert not list(broken.glob(".*"))
    assert np.array_equal(cache.codes(data.rows), whole.codes(data.rows))


def test_kill_9_leaves_whole_shards_only(tmp_path: Path, teacher: Decoder) -> None:
    data = text()
    np.save(tmp_path / "rows.npy", data.rows)
    torch.save(teacher.state_dict(), tmp_path / "teacher.pt")
    (tmp_path / "config.json").write_text(json.dumps(teacher.config.to_json()))
    # One line a shard is waited for; the process never gets beyond its first.
    program = f"""
import json, time
from pathlib import Path
import numpy as np, torch
from miudo.compress.distill.cached import CachePlan, make_cache
from miudo.compress.distill.method import HeldText
from miudo.config import ModelConfig
from miudo.decoder.decoder import Decoder
torch.set_num_threads(1)
at = Path({str(tmp_path)!r})
data = HeldText(np.load(at / "rows.npy"))
teacher = Decoder(ModelConfig.from_json(json.loads((at / "config.json").read_text())))
teacher.load_state_dict(torch.load(at / "teacher.pt"))
plan = CachePlan("t" * 64, "k" * 64, data.sha256, {VOCAB}, {LENGTH}, {BLOCKS}, shard_blocks=4)
note = lambda line: (print(line, flush=True), time.sleep(60))
make_cache(at / "cache", plan, teacher, data, note)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "shard 1 of 3" in process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert [path.name for path in (tmp_path / "cache").glob("shard-*")] == ["shard-00000.bin"]
    cache = make_cache(tmp_path / "cache", plan_of(data), teacher, data)
    whole = make_cache(tmp_path / "whole", plan_of(data), teacher, data)
    assert np.array_equal(cache.codes(data.rows), whole.codes(data.rows))


def test_another_teacher_tokenizer_or_text_is_refused_by_name(
    tmp_path: Path, teacher: Decoder
) -> None:
    data, other = text(), text(1)
    plan = plan_of(data)
    make_cache(tmp_path, plan, teacher, data)
    wrong: dict[str, Any] = {
        "teacher": "x",
        "tokenizer": "x",
        "data": other.sha256,
        "codes": TopCodes(k=8),
    }
    for name, value in wrong.items():
        with pytest.raises(ConfigError, match=f"{name} is"):
            make_cache(tmp_path, replace(plan, **{name: value}), teacher, data)
        with pytest.raises(ConfigError, match=f"{name} is"):
            TeacherCache.open(tmp_path, replace(plan, **{name: value}))
    with pytest.raises(ConfigError, match="text is not that of the plan"):
        write_shard(tmp_path, plan, teacher, other, 0)
    with pytest.raises(DataError, match="not in the cache"):
        TeacherCache.open(tmp_path, plan).codes(other.rows[:1])


@pytest.mark.parametrize("damage", ["flip", "cut", "swap"])
def test_a_damaged_shard_is_refused_and_made_again(
    tmp_path: Path, teacher: Decoder, damage: str
) -> None:
    data, plan = text(), plan_of(text())
    make_cache(tmp_path, plan, teacher, data)
    path = tmp_path / "shard-00001.bin"
    good = path.read_bytes()
    if damage == "flip":
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    elif damage == "cut":
        path.write_bytes(good[:-1])
    else:
        shutil.copy(tmp_path / "shard-00000.bin", path)
    with pytest.raises(DataError, match=r"shard-00001\.bin"):
        TeacherCache.open(tmp_path, plan)
    make_cache(tmp_path, plan, teacher, data)
    assert path.read_bytes() == good


def test_a_full_disk_is_said_before_and_in_between(
    tmp_path: Path, teacher: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, plan = text(), plan_of(text())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ResourceError, match="free, the cache needs"):
        make_cache(tmp_path / "a", plan, teacher, data)
    monkeypatch.undo()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "b").mkdir()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="No space"):
        write_shard(tmp_path / "b", plan, teacher, data, 0)
    assert not list((tmp_path / "b").iterdir())


def test_codes_that_do_not_hold_what_was_said_are_noticed(
    tmp_path: Path, teacher: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = TopCodes.encode

    def wrong(self: TopCodes, logits: torch.Tensor, block: int) -> np.ndarray:
        return right(self, -logits, block)

    monkeypatch.setattr(TopCodes, "encode", wrong)
    with pytest.raises(CheckFailedError, match="coding lost"):
        make_cache(tmp_path, plan_of(text()), teacher, text())


def test_a_student_learns_as_from_the_teacher_itself(
    tmp_path: Path, tiny: Callable[[str], Decoder], teacher: Decoder
) -> None:
    data, ids = text(), torch.from_numpy(text().rows)
    settings = FitSettings(steps=25, batch_size=3, length=LENGTH, save_every=0, lr=3e-3)
    near = CachedSettings(2.0, 1.0)
    losses: dict[str, Loss] = {"teacher": Dense(teacher, near)}
    kinds: dict[str, TopCodes | DrawCodes] = {"top": TopCodes(12, temperature=2.0)}
    kinds["draws"] = DrawCodes(40, temperature=2.0)
    kinds["filled"] = TopCodes(8, temperature=2.0, draws=12)
    for name, codes in kinds.items():
        cache = make_cache(tmp_path / name, plan_of(data, codes), teacher, data)
        losses[name] = CachedLoss(cache, near)
    before = losses["teacher"](tiny("llama-untied"), ids)[1]["kl"]
    left = {}
    for name, loss in losses.items():
        student = tiny("llama-untied")
        fit(student, FixedBlocks(data), settings, tmp_path / f"run-{name}", loss=loss)
        left[name] = losses["teacher"](student, ids)[1]["kl"]
    assert left["teacher"] < 0.85 * before
    assert left["top"] == pytest.approx(left["teacher"], rel=0.01)
    assert left["draws"] == pytest.approx(left["teacher"], rel=0.03)
    assert left["filled"] == pytest.approx(left["teacher"], rel=0.02)


def test_every_epoch_shows_every_block_in_another_order() -> None:
    data = text()
    blocks = FixedBlocks(data)
    epochs = [
        [
            row.tobytes()
            for step in range(BLOCKS)
            for row in blocks.batch(5, e * BLOCKS + step, 1, LENGTH)
        ]
        for e in range(2)
    ]
    assert epochs[0] != epochs[1]
    for epoch in epochs:
        assert sorted(epoch) == sorted(row.tobytes() for row in data.rows)


def test_what_was_not_asked_is_refused(
    tmp_path: Path, tiny: Callable[[str], Decoder], teacher: Decoder
) -> None:
    data = text()
    cache = make_cache(tmp_path, plan_of(data), teacher, data)
    shifted = np.roll(data.rows, 1, axis=1)
    with pytest.raises(DataError, match="not in the cache"):
        CachedLoss(cache, CachedSettings())(tiny("qwen"), torch.from_numpy(shifted))
    nothing = torch.zeros((1, LENGTH), dtype=torch.bool)
    with pytest.raises(DataError, match="running text alone"):
        CachedLoss(cache, CachedSettings())(
            tiny("qwen"), torch.from_numpy(data.rows[:1]), Marks(nothing, nothing.int())
        )
    with pytest.raises(ConfigError, match="temperature is 3"):
        CachedLoss(cache, CachedSettings(temperature=3.0))
