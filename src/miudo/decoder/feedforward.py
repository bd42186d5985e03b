"""The feed-forward half of a block.

For: gated (Shazeer 2020) and plain feed-forward layers.
Not for: residual or norm, which the decoder's forward shows.
Read next: `miudo.decoder.decoder`.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from miudo.config import Activation, LayerConfig, Mlp, ModelConfig

__all__ = ["FeedForward"]

_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    Activation.SILU: F.silu,
    Activation.GELU: F.gelu,
    Activation.GELU_TANH: lambda x: F.gelu(x, approximate="tanh"),
    Activation.RELU: F.relu,
}


class FeedForward(nn.Module):
    """`down(act(gate(x)) * up(x))`, or `down(act(up(x)))`; x and result are [B, T, D]."""

    def __init__(self, config: ModelConfig, layer: LayerConfig) -> None:
        super().__init__()
        d, ff, bias = config.d_model, layer.d_ff, config.mlp_bias
        self.gate = nn.Linear(d, ff, bias=bias) if config.mlp is Mlp.GATED else None
        self.up = nn.Linear(d, ff, bias=bias)
        self.down = nn.Linear(ff, d, bias=bias)
        self.activation = _ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        """Returns the sublayer's output, before the residual is added."""
        if self.gate is None:
            inner = self.activation(self.up(x))  # B T F
        else:
            inner = self.activation(self.gate(x)) * self.up(x)  # B T F
        out: Tensor = self.down(inner)  # B T D
        return out
