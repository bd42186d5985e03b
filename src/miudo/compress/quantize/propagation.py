"""What earlier rounding did to a matrix's inputs, made up for before it is rounded itself.

For: methods that go block by block: without it each matrix keeps its own outputs on inputs that
are off already, and errors add up from layer to layer.
Not for: the error of the matrix's own rounding (`miudo.compress.quantize.gptq`).
Read next: `miudo.compress.quantize.order`, which walks both models at once.

With x what the whole model gives a matrix W and z what the rounded one does, W (x - z) is missing.
Of that a z-linear part can be had back: W + s W M H^-1 with M = sum (x - z) z^T, H = sum z z^T
(Arai and Ichikawa 2025, Quantization Error Propagation). The strength s is below 1 since both
sums are those of the calibration's text; H is damped by `hessian.DAMPING`.

Shapes: B batch, T positions, O outputs and I inputs of a matrix.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from miudo.compress.hessian import DAMPING, invert
from miudo.compress.station import Gram, Station, check_saw
from miudo.errors import CheckFailedError

__all__ = ["STRENGTH", "corrected", "moments", "solver"]

STRENGTH = 0.5
"""The paper's, and the best of 0, 0.5 and 1 here (docs/log.md)."""
_LEAST = 2
"""Tokens an input: a fit to fewer is one to chance, and may do harm (docs/log.md)."""
_ROWS = 256
"""Rows done together: a head in float64 is larger than a layer."""


@torch.no_grad()
def moments(rounded: Station, whole: Station, name: str) -> tuple[Gram, Tensor]:
    """Returns sum z z^T, and sum (x - z) z^T [I, I] in float64, for `name` and its like.

    Both stations are the same stop of two walks. Raises CheckFailedError as `Station.grams` does.
    """
    size = rounded.weights[name].shape[1]
    gram = Gram(torch.zeros(size, size, dtype=torch.float64))
    missing = torch.zeros_like(gram.outer)
    for i in range(len(rounded.inputs)):
        given, meant = (s.given(name, i).flatten(0, -2).float() for s in (rounded, whole))
        gram.add(given)
        missing += (meant - given).T @ given
    check_saw(name, gram, rounded.tokens)
    if not math.isfinite(missing.sum()):
        raise CheckFailedError(
            "the whole model's inputs hold NaN or infinity",
            where=name,
            remedy="Check that the model is trained and the text is its kind of text",
        )
    return gram, missing


def solver(name: str, gram: Gram) -> Tensor | None:
    """Returns the factor U [I, I] of H^-1 = U^T U, the same for every matrix of one input.

    None where there are too few tokens to tell. Raises CheckFailedError, naming the matrix, as
    `hessian.invert` does.
    """
    if gram.tokens < _LEAST * len(gram.outer):
        return None
    return invert(gram.outer, damping=DAMPING, where=name).factor


@torch.no_grad()
def corrected(
    weight: Tensor, factor: Tensor, gram: Gram, missing: Tensor, strength: float
) -> Tensor:
    """Returns weight [O, I] changed by `strength` of W M H^-1, but for its exact zeros.

    `factor` is `solver`'s, `missing` is M of `moments`. Where zeros are held the rest of a row
    does not fit as it is: it goes by the same strength along what is left of the change, to
    where that is best for the row, or not at all.
    """
    parts = []
    for some in torch.split(weight, _ROWS):
        rows = some.double()
        pull = rows @ missing
        step = (strength * pull @ factor.T @ factor).masked_fill(rows == 0, 0.0)
        if bool((rows == 0).any()):
            wanted = (pull * step).sum(1)
            spent = ((step @ gram.outer) * step).sum(1).clamp_min(1e-300)
            step *= (strength * wanted / spent).clamp(0.0, 1.0)[:, None]
        parts.append((rows + step).to(weight.dtype))
    return torch.cat(parts)
