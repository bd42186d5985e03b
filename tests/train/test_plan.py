"""Settings at the door, the learning rate's shape, steps from tokens and minutes."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import torch

from miudo.errors import ConfigError
from miudo.train.loss import cross_entropy
from miudo.train.plan import (
    COMPILE_TOKENS,
    GPU_COMPILE_TOKENS,
    device_of,
    lr_scale,
    make_plan,
    wants_compile,
)
from miudo.train.settings import Compile, Decay, FitSettings, Precision
from miudo.train.stepper import Stepper
from miudo.train.timing import decide


def test_settings_survive_json() -> None:
    settings = FitSettings(tokens=10, decay=Decay.WSD, lr=1)
    assert FitSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({}, "0 times"),
        ({"steps": 1, "tokens": 1}, "2 times"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": True}, "steps is True"),
        ({"minutes": float("nan")}, "minutes is nan"),
        ({"steps": 1, "batch_size": 0}, "batch_size is 0"),
        ({"steps": 1, "length": 1.5}, "length is 1.5"),
        ({"steps": 1, "lr": float("nan")}, "lr is nan"),
        ({"steps": 1, "lr": None}, "lr is None"),
        ({"steps": 1, "clip": 0.0}, "clip is 0.0"),
        ({"steps": 1, "keep": 0}, "keep is 0"),
        ({"steps": 1, "seed": -1}, "seed is -1"),
        ({"steps": 1, "optimizer": "sgd"}, "optimizer is 'sgd'"),
        ({"steps": 1, "precision": "fp8"}, "precision is 'fp8'"),
        ({"steps": 1, "warmup": 1.5}, "warmup is 1.5"),
        ({"steps": 1, "bacth_size": 2}, "unknown setting bacth_size"),
    ],
)
def test_wrong_settings_are_refused_by_name(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        FitSettings.from_json(values)


def test_the_rate_rises_then_falls_to_its_share() -> None:
    settings = FitSettings(steps=100, warmup=0.1, final_lr=0.2)
    scales = [lr_scale(settings, 100, step) for step in range(101)]
    assert scales[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert scales[10] == 1.0
    assert all(a > b for a, b in itertools.pairwise(scales[10:]))
    assert scales[100] == pytest.approx(0.2)
    assert scales[55] == pytest.approx(1.0 - 0.8 / 2)  # half way down a line


def test_cosine_and_level_decays() -> None:
    cosine = FitSettings(steps=100, warmup=0.0, final_lr=0.0, decay=Decay.COSINE)
    assert lr_scale(cosine, 100, 0) == 1.0
    assert lr_scale(cosine, 100, 25) == pytest.approx(0.5 + 0.5 * 0.5**0.5)  # cos(pi / 4)
    level = FitSettings(steps=100, warmup=0.0, final_lr=0.0, decay=Decay.WSD)
    assert [lr_scale(level, 100, s) for s in (0, 50, 80)] == pytest.approx([1.0, 1.0, 1.0])
    assert lr_scale(level, 100, 90) == pytest.approx(0.5)


def test_a_warm_up_as_long_as_the_run_never_divides_by_nothing() -> None:
    settings = FitSettings(steps=3, warmup=1.0)
    assert [lr_scale(settings, 3, s) for s in range(3)] == pytest.approx([1 / 3, 2 / 3, 1.0])


def test_compilation_is_decided_by_planned_tokens() -> None:
    assert not wants_compile(Compile.AUTO, COMPILE_TOKENS - 1)
    assert wants_compile(Compile.AUTO, COMPILE_TOKENS)
    assert not wants_compile(Compile.AUTO, GPU_COMPILE_TOKENS - 1, "cuda")
    assert wants_compile(Compile.AUTO, GPU_COMPILE_TOKENS, "cuda")
    assert wants_compile(Compile.ON, 1)
    assert not wants_compile(Compile.OFF, 10 * COMPILE_TOKENS)


def test_tokens_become_whole_steps(small: Any) -> None:
    settings = small.settings(steps=None, tokens=33)  # 16 a step
    assert decide(stepper(small, settings)).steps == 3


def test_minutes_become_steps_and_leave_no_trace(small: Any) -> None:
    run = stepper(small, small.settings(steps=None, minutes=0.01))
    before = [p.detach().clone() for p in run.optimizers.parameters]
    plan = decide(run)
    assert plan.steps >= 1
    assert not plan.compiled
    assert run.optimizers.tensors() == {}
    for parameter, was in zip(run.optimizers.parameters, before, strict=True):
        assert torch.equal(parameter, was)
        assert parameter.grad is None


def stepper(small: Any, settings: FitSettings) -> Stepper:
    return Stepper(small.decoder(), small.tokens(), settings, cross_entropy)


def test_a_run_on_the_processor_asks_nothing_of_a_graphics_card(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    settings = FitSettings(steps=1)
    assert make_plan(settings, steps=1, compiled=False).precision is Precision.F32
    on_card = make_plan(settings, steps=1, compiled=False, device="cuda")
    assert on_card.precision is Precision.BF16


def test_the_device_is_chosen_and_a_gpu_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of(FitSettings(steps=1)) == "cpu"
    with pytest.raises(ConfigError, match="no GPU"):
        device_of(FitSettings(steps=1, device="cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of(FitSettings(steps=1)) == "cuda"
    assert device_of(FitSettings(steps=1, device="cpu")) == "cpu"
