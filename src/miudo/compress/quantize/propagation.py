"""What earlier rounding did to a matrix's inputs, made up for before it is rounded itself.

For: methods that go block by block: without it each matrix keeps its own outputs on inputs that
are off already, and errors add up from layer to layer.
Not for: the error of the matrix's own rounding (`miudo.compress.quantize.gptq`).
Read next: `miudo.compress.quantize.plan`, which walks both models at once.

With x what the whole model gives a matrix W and z what the rounded one does, W (x - z) is missing.
Of that a z-linear part can be had back: W + s W (C - H) H^-1 with C = sum x z^T, H = sum z z^T
(Arai and Ichikawa 2025, Quantization Error Propagation). The strength s is below 1 since both
sums are those of the calibration's text.

Shapes: B batch, T positions, O outputs and I inputs of a matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from miudo.compress.hessian import DAMPING, invert
from miudo.compress.walk import Gram, Station, check_saw

__all__ = ["STRENGTH", "corrected", "moments"]

STRENGTH = 0.5
"""The paper's, and the best of 0, 0.5 and 1 here (docs/log.md)."""
_PRUNED = 0.01
"""Share of zeros from which a matrix counts as pruned: its zeros are to stay."""


@torch.no_grad()
def moments(rounded: Station, whole: Station, name: str) -> tuple[Gram, Tensor]:
    """Returns sum z z^T, and sum x z^T [I, I] in float64, for the matrix `name` and its like.

    Both stations are the same stop of two walks. Raises CheckFailedError as `Station.grams` does.
    """
    size = rounded.weights[name].shape[1]
    gram = Gram(torch.zeros(size, size, dtype=torch.float64))
    cross = torch.zeros_like(gram.outer)
    for i in range(len(rounded.inputs)):
        given, meant = (s.given(name, i).flatten(0, -2).float() for s in (rounded, whole))
        gram.add(given)
        cross += (meant.T @ given).double()
    check_saw(name, gram, rounded.tokens)
    return gram, cross


def corrected(name: str, weight: Tensor, gram: Gram, cross: Tensor, strength: float) -> Tensor:
    """Returns weight [O, I] changed to make up for its inputs' error; a pruned one as it is.

    Raises CheckFailedError, naming the matrix, as `hessian.invert` does.
    """
    if float((weight == 0).float().mean()) > _PRUNED:
        return weight
    factor = invert(gram.outer, damping=DAMPING, where=name).factor
    missing = weight.double() @ (cross - gram.outer)
    return (weight + strength * (missing @ factor.T @ factor)).to(weight.dtype)
