"""What a training run is told: `FitSettings`.

For: every choice that changes the weights that come out, checked once, at the door.
Not for: which text or model (`miudo.train.pretrain`), or what the run found out about itself
(`miudo.train.plan`).
Read next: `miudo.train.plan`, which turns settings into a number of steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from miudo.errors import ConfigError

__all__ = [
    "LOWER_RATE",
    "Compile",
    "Decay",
    "Device",
    "FitSettings",
    "Optimizer",
    "Precision",
]

LOWER_RATE = "Start a new run with a lower lr and muon_lr: this one would meet the same again"
"""What to do where a run diverged; resumed with the same settings it would take the same steps."""


class Optimizer(StrEnum):
    """Muon (Jordan et al. 2024) for hidden matrices and AdamW for the rest, or AdamW alone."""

    MUON = "muon"
    ADAMW = "adamw"


class Decay(StrEnum):
    """How the learning rate falls after the warm-up.

    `wsd` stays level and falls linearly over the last fifth (Hu et al. 2024). `none` stays
    level to the end: a run that another goes on from (`init`).
    """

    LINEAR = "linear"
    COSINE = "cosine"
    WSD = "wsd"
    NONE = "none"


class Precision(StrEnum):
    """Type of the matrix products; weights, sums, norms and moments are float32 always.

    `auto` is bf16 where the processor multiplies it natively.
    """

    AUTO = "auto"
    BF16 = "bf16"
    F32 = "f32"


class Device(StrEnum):
    """Where it is trained; `auto` is a GPU where PyTorch sees one."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Compile(StrEnum):
    """Whether blocks go through torch.compile; `auto` decides by the planned tokens."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class FitSettings:
    """One of `tokens`, `steps`, `minutes` says how long. Raises ConfigError naming the field.

    A step takes `accumulate` batches of `batch_size` rows of `length` tokens. `warmup` and
    `final_lr` are shares of the steps and of the learning rate. `clip` bounds the gradient's
    norm. `checkpoint_activations` keeps a block's input alone and computes the rest
    again in the backward pass: a third more work for a fraction of the memory (Chen et al. 2016).
    `eval_every` and `save_every` count steps; 0 means at the end only. `keep` newest
    checkpoints stay. `max_bad_steps` not-finite steps in a row stop the run.
    """

    tokens: int | None = None
    steps: int | None = None
    minutes: float | None = None
    batch_size: int = 16
    length: int = 256
    accumulate: int = 1
    optimizer: Optimizer = Optimizer.MUON
    lr: float = 3e-3
    muon_lr: float = 5e-3
    warmup: float = 0.03
    decay: Decay = Decay.LINEAR
    final_lr: float = 0.05
    weight_decay: float = 0.1
    clip: float = 1.0
    precision: Precision = Precision.AUTO
    compile: Compile = Compile.AUTO
    device: Device = Device.AUTO
    checkpoint_activations: bool = False
    seed: int = 0
    eval_every: int = 0
    eval_tokens: int = 32_768
    save_every: int = 200
    keep: int = 3
    log_every: int = 10
    max_bad_steps: int = 10

    def __post_init__(self) -> None:
        given = [name for name in _LENGTHS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ConfigError(
                f"the run's length is given {len(given)} times",
                where=", ".join(_LENGTHS),
                remedy="Give exactly one of --tokens, --steps and --minutes",
            )
        for name, enum in _ENUMS.items():
            value = getattr(self, name)
            if value not in set(enum):
                raise _wrong(name, value, "one of " + ", ".join(enum))
            object.__setattr__(self, name, enum(value))
        wanted: object = self.checkpoint_activations
        if type(wanted) is not bool:
            name = "checkpoint_activations"
            raise _wrong(name, wanted, "true or false")
        for ranges, kinds in ((_WHOLE, (int,)), (_REAL, (int, float))):
            for name, (low, high) in ranges.items():
                value = getattr(self, name)
                absent = value is None and name in _LENGTHS
                # bool is an int in Python; `true` in a file must not become 1.
                if not absent and (type(value) not in kinds or not low <= value <= high):
                    kind = "a number" if float in kinds else "a whole number"
                    raise _wrong(name, value, f"{kind} from {low} to {high}")

    @property
    def step_tokens(self) -> int:
        """Tokens that one step learns from."""
        return self.batch_size * self.length * self.accumulate

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values; `from_json` gives back equal settings."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Returns the settings in `values`. Raises ConfigError for unknown or wrong ones."""
        known = [f.name for f in dataclasses.fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise ConfigError(
                f"unknown setting {', '.join(unknown)}", remedy=f"Known are {', '.join(known)}"
            )
        return cls(**values)


_LENGTHS = ("tokens", "steps", "minutes")
_BIG = 1 << 48
_ENUMS: dict[str, type[StrEnum]] = {
    "optimizer": Optimizer,
    "decay": Decay,
    "precision": Precision,
    "compile": Compile,
    "device": Device,
}
_WHOLE: dict[str, tuple[float, float]] = {
    "tokens": (1, _BIG),
    "steps": (1, 1 << 32),
    "batch_size": (1, 1 << 20),
    "length": (1, 1 << 20),
    "accumulate": (1, 1 << 20),
    "seed": (0, (1 << 64) - 1),
    "eval_every": (0, 1 << 32),
    "eval_tokens": (1, _BIG),
    "save_every": (0, 1 << 32),
    "keep": (1, 1 << 20),
    "log_every": (1, 1 << 32),
    "max_bad_steps": (1, 1 << 20),
}
_REAL: dict[str, tuple[float, float]] = {
    "minutes": (1e-3, 1e6),
    "lr": (0.0, 10.0),
    "muon_lr": (0.0, 10.0),
    "warmup": (0.0, 1.0),
    "final_lr": (0.0, 1.0),
    "weight_decay": (0.0, 10.0),
    "clip": (1e-6, 1e6),
}


def _wrong(name: str, value: object, allowed: str) -> ConfigError:
    return ConfigError(f"{name} is {value!r}", where="training settings", remedy=f"Give {allowed}")
