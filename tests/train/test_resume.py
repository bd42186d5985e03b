"""A resumed run equals the unbroken one to the bit, wherever it was broken."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from miudo.errors import CheckpointError, DataError, UsageError
from miudo.train.loop import fit
from miudo.train.metrics import read_metrics
from miudo.train.settings import Optimizer

TIMES = ("tokens_per_s", "elapsed_s")


def rows(out: Path) -> list[dict[str, Any]]:
    """The log, without what hangs on the clock."""
    log = read_metrics(out / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in TIMES} for row in log]


# 8 steps of 2 rows over 11 blocks, 2 of warm-up: 0 before the first step, 1 in the warm-up,
# 2 at its end, 3 in an epoch, 5 inside the batch that two epochs share, 6 after it, 7 before
# the last step, 8 after it.
@pytest.mark.parametrize("broken", [0, 1, 2, 3, 5, 6, 7, 8])
def test_resuming_anywhere_gives_the_same_bits(
    small: Any, unbroken: Path, tmp_path: Path, broken: int
) -> None:
    out = tmp_path / "run"
    shutil.copytree(unbroken, out)
    small.forget_after(out, broken)
    result = small.go_on(out, save_every=1)
    assert result.steps == 8
    assert small.hashes(out, 8) == small.hashes(unbroken, 8)
    assert len(small.hashes(out, 8)) == 3
    assert rows(out) == rows(unbroken)


@pytest.mark.parametrize("changes", [{"accumulate": 3}, {"optimizer": Optimizer.ADAMW}])
def test_resuming_with_accumulation_and_with_adamw(
    small: Any, tmp_path: Path, changes: dict[str, Any]
) -> None:
    small.begin(tmp_path / "a", **changes)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    small.forget_after(tmp_path / "b", 4)
    small.go_on(tmp_path / "b", **changes)
    assert small.hashes(tmp_path / "b", 8) == small.hashes(tmp_path / "a", 8)


def test_the_log_is_equal_when_broken_between_its_lines(small: Any, tmp_path: Path) -> None:
    changes = {"log_every": 3, "save_every": 1}
    small.begin(tmp_path / "a", **changes)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    small.forget_after(tmp_path / "b", 4)
    with (tmp_path / "b" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "los')  # torn by the crash
    small.go_on(tmp_path / "b", **changes)
    assert rows(tmp_path / "b") == rows(tmp_path / "a")
    assert [row["step"] for row in rows(tmp_path / "a")] == [3, 6, 8]


def test_a_loss_that_draws_random_numbers_resumes_too(small: Any, tmp_path: Path) -> None:
    def noisy(decoder: Any, ids: Any) -> Any:
        hidden = decoder(ids[:, :-1])
        return (hidden * torch.rand_like(hidden)).mean(), {}

    fit(small.decoder(), small.tokens(), small.settings(), tmp_path / "a", loss=noisy)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    small.forget_after(tmp_path / "b", 4)
    torch.rand(7)
    small.go_on(tmp_path / "b", loss=noisy)
    assert small.hashes(tmp_path / "b", 8) == small.hashes(tmp_path / "a", 8)


def test_seed_and_settings_make_the_same_bits_and_another_seed_does_not(
    small: Any, unbroken: Path, tmp_path: Path
) -> None:
    small.begin(tmp_path / "same", save_every=1)
    small.begin(tmp_path / "other", save_every=1, seed=1)
    assert small.hashes(tmp_path / "same", 8) == small.hashes(unbroken, 8)
    assert small.hashes(tmp_path / "other", 8) != small.hashes(unbroken, 8)


def test_evaluation_and_samples_change_no_weight(
    small: Any, unbroken: Path, tmp_path: Path
) -> None:
    said = []
    result = fit(
        small.decoder(),
        small.tokens(),
        small.settings(eval_every=3),
        tmp_path / "run",
        held_out=small.tokens(41),
        sampler=lambda decoder: said.append(decoder.training) or "text",
    )
    log = rows(tmp_path / "run")
    assert [r["step"] for r in log if "held_out_loss" in r] == [3, 6, 8]
    assert said == [False] * 3
    assert log[-1]["sample"] == "text"
    assert result.held_out_loss == log[-1]["held_out_loss"]
    assert small.hashes(tmp_path / "run", 8) == small.hashes(unbroken, 8)


def test_training_learns(small: Any, tmp_path: Path) -> None:
    result = small.begin(tmp_path / "run", steps=60, save_every=0)
    assert result.loss < 0.8 * rows(tmp_path / "run")[0]["loss"]
    assert small.steps(tmp_path / "run") == [0, 60]


def test_the_settings_that_matter_may_not_change(small: Any, unbroken: Path) -> None:
    for changes, named in (
        ({"lr": 0.5}, "lr is 0.5, the run was started with 0.003"),
        ({"steps": 9}, "steps is 9"),
        ({"seed": 4}, "seed is 4"),
    ):
        with pytest.raises(UsageError, match=named):
            small.go_on(unbroken, **changes)


def test_changed_data_stops_the_resume(small: Any, unbroken: Path) -> None:
    data = small.tokens()
    ids = data.ids.copy()
    ids[7] = (ids[7] + 1) % 64
    with pytest.raises(DataError, match="packed text changed"):
        small.go_on(unbroken, data=replace(data, ids=ids))


def test_a_run_is_neither_overwritten_nor_made_up(
    small: Any, unbroken: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="holds a run, saved at step 8"):
        small.begin(unbroken)
    with pytest.raises(UsageError, match="no checkpoint of step 99"):
        small.go_on(unbroken, save_every=1, from_step=99)
    result = small.go_on(tmp_path / "fresh")  # nothing was saved yet: it begins
    assert result.steps == 8


def test_another_shape_is_refused(small: Any, unbroken: Path) -> None:
    from miudo.config import ModelConfig
    from miudo.decoder.decoder import Decoder

    config = ModelConfig.uniform(
        vocab_size=64, d_model=32, n_layers=1, n_heads=2, d_ff=32, max_positions=16
    )
    with pytest.raises(UsageError, match="another shape"):
        fit(
            Decoder(config),
            small.tokens(),
            small.settings(save_every=1),
            unbroken,
            resume=True,
        )


def test_threads_are_those_of_the_run(small: Any, unbroken: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(unbroken, out)
    small.forget_after(out, 4)
    torch.set_num_threads(2)
    assert small.go_on(out, save_every=1).plan.threads == 1
    assert torch.get_num_threads() == 2
    assert small.hashes(out, 8) == small.hashes(unbroken, 8)


def test_an_older_step_is_taken_only_when_named(small: Any, unbroken: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(unbroken, out)
    small.forget_after(out, 6)
    weights = out / "checkpoints" / "step-00000006" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"weights.safetensors: is damaged.*--from-step 5"):
        small.go_on(out, save_every=1)
    small.go_on(out, save_every=1, from_step=5)
    assert small.hashes(out, 8) == small.hashes(unbroken, 8)


def test_data_too_small_or_too_long(small: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="11 blocks of 8 tokens are fewer than one batch of 12"):
        small.begin(tmp_path / "a", batch_size=12)
    with pytest.raises(UsageError, match="length is 17, the model has 16 positions"):
        small.begin(tmp_path / "b", length=17)
    assert not (tmp_path / "a").exists()
    data = small.tokens()
    with pytest.raises(DataError, match="id 64 is outside the vocabulary of 64"):
        fit(
            small.decoder(),
            replace(data, ids=np.full_like(data.ids, 64)),
            small.settings(),
            tmp_path / "c",
        )


def test_metrics_are_one_json_object_a_line(unbroken: Path) -> None:
    lines = (unbroken / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 9))
    assert (unbroken / "loss.png").read_bytes()[:4] == b"\x89PNG"
