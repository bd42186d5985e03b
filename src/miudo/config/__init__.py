"""A decoder described by plain values: `ModelConfig` and its parts.

For: one frozen, hashable description that every room reads. Behaviour follows from these
values alone, never from a model's name.
Not for: files (see `miudo.families`, `miudo.formats`) or PyTorch (see `miudo.decoder`).
Read next: `miudo.config.model`.
"""

from miudo.config.model import ModelConfig, check_config
from miudo.config.parts import (
    Activation,
    Block,
    LatentAttention,
    LayerConfig,
    Mlp,
    Norm,
    Parallel,
    Position,
    QkNorm,
    RopeKind,
    RopeScaling,
)

__all__ = [
    "Activation",
    "Block",
    "LatentAttention",
    "LayerConfig",
    "Mlp",
    "ModelConfig",
    "Norm",
    "Parallel",
    "Position",
    "QkNorm",
    "RopeKind",
    "RopeScaling",
    "check_config",
]
