"""What a run decided once, at its start: steps, precision, compilation, threads.

For: the decisions that hang on this machine and hour, stored in the checkpoint, so that a
resumed run repeats none of them; and the learning rate, a pure function of plan and step.
Not for: what the user chose (`miudo.train.settings`).
Read next: `miudo.train.loop`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from miudo.errors import ConfigError
from miudo.train.settings import Compile, Decay, Device, FitSettings, Precision

__all__ = [
    "COMPILE_TOKENS",
    "GPU_COMPILE_TOKENS",
    "Plan",
    "device_of",
    "lr_scale",
    "make_plan",
    "native_bf16",
    "wants_compile",
]

COMPILE_TOKENS = 800_000
"""From this many planned tokens on blocks are compiled.

Measured on two cores: compiling costs 30 CPU seconds whatever the size, and saves 49 µs of
CPU a token at 6.9M parameters (2,736 to 3,164 tokens a CPU second), 28 µs at 1M (10,500 to
14,944): even after 0.6M and 1.1M tokens.
"""

GPU_COMPILE_TOKENS = 25_000_000
"""The same on a GPU, where compiling takes 14 s and a step of 6.0M parameters 14 ms for 27.

Even after 5M tokens; more are asked for, since a step that is not compiled costs the same for
twice the batch.
"""

_WSD_DECAY = 0.2


@dataclass(frozen=True, slots=True)
class Plan:
    """`steps` in the whole run; `precision` is bf16 or f32; `threads` that PyTorch used."""

    steps: int
    precision: Precision
    compiled: bool
    threads: int
    torch: str


def make_plan(settings: FitSettings, *, steps: int, compiled: bool, device: str = "cpu") -> Plan:
    """Returns the plan for `steps` on this machine's `device` ("cpu", "cuda")."""
    return Plan(
        steps=steps,
        precision=_precision(settings.precision, device),
        compiled=compiled,
        threads=torch.get_num_threads(),
        torch=str(torch.__version__),
    )


def wants_compile(choice: Compile, planned_tokens: float, device: str = "cpu") -> bool:
    """Returns whether to compile: as chosen, or from so many tokens on that it pays."""
    if choice is Compile.AUTO:
        return planned_tokens >= (COMPILE_TOKENS if device == "cpu" else GPU_COMPILE_TOKENS)
    return choice is Compile.ON


def lr_scale(settings: FitSettings, steps: int, step: int) -> float:
    """Returns the share of the full learning rate for `step` (from 0) of `steps`."""
    warmup = min(math.ceil(settings.warmup * steps), steps)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    if settings.decay is Decay.COSINE:
        fallen = 0.5 - 0.5 * math.cos(math.pi * done)
    elif settings.decay is Decay.WSD:
        fallen = max(0.0, 1.0 - (1.0 - done) / _WSD_DECAY)
    elif settings.decay is Decay.NONE:
        fallen = 0.0
    else:
        fallen = done
    return 1.0 - (1.0 - settings.final_lr) * fallen


def device_of(settings: FitSettings) -> str:
    """Returns "cpu" or "cuda". Raises ConfigError for a GPU that PyTorch does not see."""
    seen = torch.cuda.is_available()
    if settings.device is Device.CUDA and not seen:
        raise ConfigError(
            "PyTorch sees no GPU", where="device", remedy="Give device = cpu, or leave it out"
        )
    return "cuda" if seen and settings.device is not Device.CPU else "cpu"


def native_bf16(device: str) -> bool:
    """Returns whether this device multiplies bf16 matrices without converting them."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    found = torch.cpu.get_capabilities()
    return any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _precision(choice: Precision, device: str) -> Precision:
    if choice is Precision.AUTO:
        return Precision.BF16 if native_bf16(device) else Precision.F32
    return choice
