"""Rounding of activations to int8, as the native engine's int8 path does it.

For: the decoder that the int8 path must equal, and training that knows of the rounding.
Not for: weights (`miudo.compress.quantize`).
Read next: `native/kernels/vector_inl.h`, the same rule in C++.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from miudo.decoder.decoder import Decoder

__all__ = ["GROUP", "round_activations", "round_to_int8"]

GROUP = 32


def round_to_int8(x: Tensor) -> Tensor:
    """Returns x [..., D] rounded in groups of 32: scale amax / 127 in float32, half to even.

    D must be a multiple of 32, as in every matrix that has 8-bit blocks.
    """
    groups = x.float().reshape(*x.shape[:-1], -1, GROUP)  # ... D/32 32
    scale = groups.abs().amax(-1, keepdim=True) / 127.0
    # Divided, not multiplied by the inverse: on exact halves the two differ.
    steps = torch.round(groups / torch.where(scale > 0, scale, torch.ones_like(scale)))
    return (steps.clamp(-127, 127) * scale).flatten(-2)


def round_activations(
    decoder: Decoder,
    quantised: Collection[str],
    rule: Callable[[Tensor], Tensor] = round_to_int8,
) -> Decoder:
    """Makes `decoder` round what goes into each matrix named in `quantised`; returns it.

    Names are canonical ("layers.0.attn.q.weight"); the tied head is "embed.weight". A `rule`
    other than the engine's is for comparing rules.
    """
    for name, module in decoder.named_modules():
        if isinstance(module, nn.Linear) and f"{name}.weight" in quantised:
            module.register_forward_pre_hook(lambda _, args: (rule(args[0]),))
    if decoder.head is None and "embed.weight" in quantised:
        decoder.head_input = rule
    return decoder
