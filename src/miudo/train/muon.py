"""Muon (Jordan et al. 2024): momentum, made orthogonal, for the matrices inside the blocks.

For: steps of `torch.optim.Muon`'s arithmetic, matrices of one shape together, in float32 where
the processor has no bf16: PyTorch's own always iterates in bf16, which such processors multiply
ten times slower than the whole rest of a step.
Not for: tables, norms, biases (AdamW, `miudo.train.optimizer`).
Read next: `miudo.train.optimizer`.

Shapes: N matrices of one shape, R rows, C columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from miudo.train.plan import native_bf16

__all__ = ["Muon", "orthogonal"]

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5
_EPS = 1e-7
_MOMENTUM = 0.95


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; steps scaled to the size of AdamW's (Liu et al. 2025).

    A step is `lr` * 0.2 * sqrt(max(R, C)) times an orthogonal matrix; decay is `lr` *
    `weight_decay`, as AdamW's.
    """

    def __init__(self, params: Iterable[Tensor], *, lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Applies the gradients; parameters without one stay as they are."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault(parameter.shape, []).append(parameter)
            for parameters in alike.values():
                self._move(parameters, group)

    def _move(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        moments = [self._moment(p) for p in parameters]
        torch._foreach_lerp_(moments, gradients, 1 - _MOMENTUM)
        ahead = torch._foreach_lerp(gradients, moments, _MOMENTUM)
        updates = orthogonal(torch.stack(tuple(ahead)))  # N R C
        size = 0.2 * max(parameters[0].shape) ** 0.5
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, list(updates), alpha=-group["lr"] * size)

    def _moment(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        moment: Tensor = state["momentum_buffer"]
        return moment


def orthogonal(matrices: Tensor) -> Tensor:
    """Returns [N, R, C] in float32, the singular values of each matrix near 1.

    Five Newton-Schulz iterations of fifth order, whose coefficients trade exactness for
    speed: singular values end between about 0.7 and 1.2 (Jordan et al. 2024).
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x.to(torch.bfloat16 if native_bf16(x.device.type) else torch.float32)
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=_EPS)
    a, b, c = _COEFFICIENTS
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).float()
