"""The native core on 64-bit ARM: cross-compiled, run under qemu, held against this machine's."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from replay_dump import write_dump

from miudo.config import ModelConfig
from miudo.decoder.decoder import Decoder
from miudo.decoder.torch_engine import TorchEngine
from miudo.engine.native import CACHE_TYPES, CacheType, NativeEngine
from miudo.tensors import DType

pytestmark = [pytest.mark.parity, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
NEEDED = {"aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu", "qemu-aarch64": "qemu-user"}
PI_5, PI_4 = "cortex-a76", "cortex-a72"  # the second has no dot product
LENGTH, SHORT = 60, 12  # the first is past a tile of 32 positions and every window
BLOCKS = [t for t in DType if t.block > 1 and not t.sparse]
THREE = ("llama", "gpt2", "gemma2")


@pytest.fixture(scope="session")
def built() -> Path:
    """The folder of programs for 64-bit ARM."""
    missing = [package for program, package in NEEDED.items() if not shutil.which(program)]
    if missing:
        pytest.skip(f"needs Debian's {' and '.join(missing)}")
    subprocess.run(["sh", ROOT / "scripts" / "build_aarch64.sh"], check=True, timeout=850)
    return ROOT / "build" / "aarch64"


@pytest.fixture
def run(built: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Runs a program on a processor; its exit status, and what it printed."""

    def call(cpu: str, *command: str | Path, isa: str = "") -> tuple[int, str]:
        monkeypatch.setenv("MIUDO_ISA", isa)
        monkeypatch.setenv("MIUDO_THREADS", "2")
        name, *arguments = command
        done = subprocess.run(
            ["qemu-aarch64", "-cpu", cpu, built / name, *arguments],
            capture_output=True, text=True, errors="replace", check=False,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    return call


def ids_for(config: ModelConfig, length: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(3).integers(0, config.vocab_size, length)]


def dumped(path: Path, model: Any, length: int = LENGTH) -> Path:
    """Dumps what the decoder computes."""
    torch.set_num_threads(1)
    truth = TorchEngine(Decoder.from_weights(model.config, model.weights))
    write_dump(path, model, truth, ids_for(model.config, length))
    return path


@pytest.mark.parametrize(("cpu", "isa"), [(PI_5, "neon"), (PI_4, "portable")])
def test_native_tests_pass(run: Callable[..., tuple[int, str]], cpu: str, isa: str) -> None:
    status, printed = run(cpu, "miudo_tests")
    assert status == 0, printed
    status, printed = run(cpu, "miudo_tests", isa="neon")
    assert (status == 0) == (isa == "neon"), printed


def test_every_family_gives_the_decoder_s_logits(
    family: ModelConfig, make_model: Callable[..., Any], run: Callable[..., tuple[int, str]],
    tmp_path: Path,
) -> None:  # fmt: skip
    status, printed = run(PI_5, "miudo_replay", dumped(tmp_path / "dump", make_model(family)))
    assert status == 0, printed
    assert printed.startswith("neon, 2 threads, 60 ids, float activations\n")


@pytest.mark.parametrize(
    ("name", "dtype", "isa"),
    [("llama", dtype, "neon") for dtype in BLOCKS if dtype is not DType.Q8_0]
    + [(name, DType.Q4_K, "neon") for name in THREE[1:]]
    + [(name, DType.Q8_0, isa) for name in THREE for isa in ("neon", "portable")],
)
def test_every_type_of_blocks_gives_the_decoder_s_logits(
    name: str, dtype: DType, isa: str, every_config: dict[str, ModelConfig],
    block_model: Callable[..., Any], run: Callable[..., tuple[int, str]], tmp_path: Path,
) -> None:  # fmt: skip
    model = block_model(dtype, widened(every_config[name]))
    status, printed = run(PI_5, "miudo_replay", dumped(tmp_path / "dump", model, SHORT), isa=isa)
    assert status == 0, printed
    assert printed.startswith(f"{isa}, 2 threads, 12 ids, float activations\n")


@pytest.mark.parametrize(
    ("name", "dtype", "cache"),
    [("llama", dtype, "f16") for dtype in BLOCKS if dtype is not DType.Q8_0]
    + [(name, DType.Q8_0, "f16") for name in THREE]
    + [("llama", DType.Q8_0, cache) for cache in CACHE_TYPES if cache != "f16"],
)
def test_rounded_activations_give_this_machine_s_logits(
    name: str, dtype: DType, cache: CacheType, every_config: dict[str, ModelConfig],
    block_model: Callable[..., Any], run: Callable[..., tuple[int, str]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """That these are right is for tests/engine. Eight lanes sum in one order everywhere; a sum that
    differed in its last bit would now and then be rounded another way, far beyond the bound."""
    monkeypatch.setenv("MIUDO_ISA", "portable")
    model = block_model(dtype, widened(every_config[name]))
    truth = NativeEngine(model, threads=1, activations="int8", cache=cache)
    write_dump(
        tmp_path / "dump", model, truth, ids_for(model.config, SHORT), int8=True, cache=cache
    )
    status, printed = run(PI_5, "miudo_replay", tmp_path / "dump")
    assert status == 0, printed
    assert printed.startswith("neon, 2 threads, 12 ids, int8 activations\n")


def widened(config: ModelConfig) -> ModelConfig:
    """The same kind of model, in sizes that all blocks fit."""
    sizes = {"head_dim": 128, "v_head_dim": 128, "d_ff": 512}
    layers = tuple(replace(layer, **sizes) for layer in config.layers)
    return replace(config, d_model=256, layers=layers)


def test_another_model_s_logits_are_found_out(
    plain: ModelConfig, make_model: Callable[..., Any], run: Callable[..., tuple[int, str]],
    tmp_path: Path,
) -> None:  # fmt: skip
    model, moved = make_model(plain), make_model(plain, seed=2)
    moved.weights.update({k: v for k, v in model.weights.items() if k != "norm.weight"})
    truth = TorchEngine(Decoder.from_weights(plain, moved.weights))
    write_dump(tmp_path / "dump", model, truth, ids_for(plain, SHORT))
    status, printed = run(PI_5, "miudo_replay", tmp_path / "dump")
    assert status == 1
    assert printed.count("FAILED") == 3


def test_a_damaged_dump_is_refused(
    plain: ModelConfig, make_model: Callable[..., Any], run: Callable[..., tuple[int, str]],
    tmp_path: Path,
) -> None:  # fmt: skip
    whole = dumped(tmp_path / "dump", make_model(plain), SHORT).read_bytes()
    rng, broken = np.random.default_rng(0), tmp_path / "broken"
    for size in (0, 100, *rng.integers(0, len(whole) - 64, 3)):
        broken.write_bytes(whole[:size])
        status, printed = run(PI_5, "miudo_replay", broken)
        assert (status, printed.startswith(f"{broken}: ")) == (2, True)
    for at in rng.integers(0, 1500, 8):  # in the keys
        broken.write_bytes(whole[:at] + b"\xff" * 8 + whole[at + 8 :])
        status, printed = run(PI_5, "miudo_replay", broken)
        assert status in (0, 1, 2), printed
