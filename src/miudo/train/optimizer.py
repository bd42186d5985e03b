"""Muon for hidden matrices, AdamW for the rest, and their state as plain named tensors.

For: one step of both at the scheduled learning rate; saving and restoring their moments.
Not for: the schedule (`miudo.train.plan.lr_scale`) or gradients (`miudo.train.stepper`).
Read next: `miudo.train.checkpoint`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from miudo.decoder.decoder import Decoder
from miudo.errors import CheckpointError
from miudo.tensors import Role, tensor_table
from miudo.train.muon import Muon
from miudo.train.settings import FitSettings, Optimizer

__all__ = ["Optimizers"]

_MOMENTS = {"muon": ("momentum_buffer",), "adamw": ("exp_avg", "exp_avg_sq", "step")}


class Optimizers:
    """The optimisers of one decoder; every parameter that takes a gradient belongs to one.

    Muon (Jordan et al. 2024) takes the matrices inside the blocks, a side path's factors among
    them, its steps scaled to the size of AdamW's (Liu et al. 2025); AdamW (Loshchilov and Hutter
    2019) takes tables, head, norms and biases, and what is trained `beside` the decoder by
    names of its own, decaying matrices alone.
    """

    def __init__(
        self,
        decoder: Decoder,
        settings: FitSettings,
        beside: Mapping[str, nn.Parameter] | None = None,
    ) -> None:
        extra = beside or {}
        own = {n: p for n, p in decoder.named_parameters() if p.requires_grad}
        self.named = {**own, **extra}
        self.parameters = list(self.named.values())
        self._names: dict[str, list[tuple[str, nn.Parameter]]] = {"muon": [], "adamw": []}
        roles = {spec.name: spec.role for spec in tensor_table(decoder.config)}
        for name, parameter in self.named.items():
            # What the table does not name is a factor of a matrix inside a block.
            hidden = roles.get(name, Role.ATTENTION) in (Role.ATTENTION, Role.MLP)
            muon = hidden and name not in extra and settings.optimizer is Optimizer.MUON
            kind = "muon" if muon else "adamw"
            self._names[kind].append((name, parameter))
        self._lr = {"muon": settings.muon_lr, "adamw": settings.lr}
        self._optimizers = _build(self._names, settings)

    def step(self, scale: float) -> None:
        """Applies the gradients at `scale` of the full learning rates, then forgets them."""
        for kind, optimizer in self._optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self._lr[kind] * scale
            optimizer.step()
        self.forget_gradients()

    def forget_gradients(self) -> None:
        """Sets every gradient to None."""
        for parameter in self.parameters:
            parameter.grad = None

    def moment_count(self) -> int:
        """Returns how many numbers the moments will be, steps not counted."""
        each = {kind: sum(m != "step" for m in moments) for kind, moments in _MOMENTS.items()}
        return sum(each[kind] * p.numel() for kind, named in self._names.items() for _, p in named)

    def tensors(self) -> dict[str, Tensor]:
        """Returns all moments by `optimiser/parameter/moment`; empty before the first step."""
        found = {}
        for kind, optimizer in self._optimizers.items():
            for name, parameter in self._names[kind]:
                for moment, value in optimizer.state.get(parameter, {}).items():
                    found[f"{kind}/{name}/{moment}"] = value
        return found

    def restore(self, tensors: Mapping[str, Tensor], *, where: object = None) -> None:
        """Sets all moments to copies of what `tensors` gave.

        A parameter that had no gradient yet has no moments. Raises CheckpointError for some of
        a parameter's moments missing, and for moments that are unknown or misshapen.
        """
        shapes = {
            f"{kind}/{name}/{moment}": () if moment == "step" else tuple(parameter.shape)
            for kind, named in self._names.items()
            for name, parameter in named
            for moment in _MOMENTS[kind]
        }
        given = {name: tuple(value.shape) for name, value in tensors.items()}
        begun = {name.rpartition("/")[0] for name in given}
        shapes = {n: shape for n, shape in shapes.items() if n.rpartition("/")[0] in begun}
        if given != shapes:
            wrong = sorted(set(given.items()) ^ set(shapes.items()))[0][0]
            raise CheckpointError(
                f"{wrong} does not fit this model and optimiser",
                where=where,
                remedy="Resume with the settings that the run was started with",
            )
        for kind, optimizer in self._optimizers.items():
            optimizer.state.clear()
            for name, parameter in self._names[kind]:
                if f"{kind}/{name}" not in begun:
                    continue
                optimizer.state[parameter] = {
                    m: tensors[f"{kind}/{name}/{m}"].to(parameter.device, copy=True)
                    for m in _MOMENTS[kind]
                }


def _build(
    names: Mapping[str, list[tuple[str, nn.Parameter]]], settings: FitSettings
) -> dict[str, torch.optim.Optimizer]:
    built: dict[str, torch.optim.Optimizer] = {}
    if matrices := [p for _, p in names["muon"]]:
        built["muon"] = Muon(matrices, lr=settings.muon_lr, weight_decay=settings.weight_decay)
    rest = [p for _, p in names["adamw"]]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    if rest:
        built["adamw"] = torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.95), fused=True)
    return built
