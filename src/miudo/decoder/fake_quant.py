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
_GREATEST_SCALE = 65504.0  # of float16


def round_to_int8(x: Tensor) -> Tensor:
    """Returns x [..., D] rounded in groups of 32 as ggml's `quantize_row_q8_0` does on x86.

    scale = amax / 127 rounded to float16, quant = x * (127 / amax), both half to even. A group
    whose scale is 0 in float16 (amax up to 127 * 2^-25) becomes zeros; from 65504 on the scale
    stays there. D must be a multiple of 32, as in every matrix that has 8-bit blocks.
    """
    groups = x.float().reshape(*x.shape[:-1], -1, GROUP)  # ... D/32 32
    most = groups.abs().amax(-1, keepdim=True)
    scale = (most / 127.0).half().float().clamp(max=_GREATEST_SCALE)
    # Multiplied by the inverse, not divided: close to halves the two differ.
    inverse = torch.where(scale > 0, 127.0 / most, torch.zeros_like(most))
    steps = torch.round(groups * inverse).clamp(-127, 127)
    # A group that holds an infinity or NaN is NaN, whole, as in the engine.
    return (steps * (scale + most * 0)).flatten(-2)


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
