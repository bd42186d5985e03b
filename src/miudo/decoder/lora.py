"""LoRA: frozen matrices with a trainable low-rank side path (Hu et al. 2022).

For: putting a side path on chosen matrices, taking it out as an `Adapter`, or merging it.
Not for: adapter files (`miudo.formats.peft`), or the engine, which never merges.
Read next: `miudo.adapter`, then `miudo.train.finetune`.

Shapes: N positions, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from miudo.adapter import Adapter, LowRank, check_adapter
from miudo.decoder.decoder import Decoder
from miudo.errors import ConfigError
from miudo.limits import LIMITS

__all__ = [
    "TARGETS",
    "LoraSettings",
    "LowRankLinear",
    "add_lora",
    "apply_adapter",
    "merge",
    "to_adapter",
]

TARGETS = ("q", "k", "v", "o", "q_a", "q_b", "kv_a", "kv_b", "gate", "up", "down")
"""The matrices of a block by their canonical names. Latent attention has q_a, q_b, kv_a and kv_b
for q, k and v; a plain feed-forward has no gate."""


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """A side path is scale * up @ down, scale being alpha / rank.

    `targets` are some of TARGETS; none named means all that the model has. `dropout` is on what
    goes into the side path. `rank_stabilised` takes alpha / sqrt(rank) as scale (Kalajdzievski
    2023), under which large ranks learn as fast as small ones. Raises ConfigError.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    rank_stabilised: bool = False

    def __post_init__(self) -> None:
        most = LIMITS.adapter_rank  # more would be trained, and then not written
        if type(self.rank) is not int or not 1 <= self.rank <= most:
            raise ConfigError(f"rank is {self.rank!r}, allowed a whole number from 1 to {most}")
        if not 0.0 < self.alpha <= 1e6:
            raise ConfigError(f"alpha is {self.alpha!r}, allowed above 0 up to 1e6")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout is {self.dropout!r}, allowed 0 up to below 1")
        if unknown := sorted(set(self.targets) - set(TARGETS)):
            raise ConfigError(
                f"targets names {', '.join(unknown)}", remedy=f"Choose among {', '.join(TARGETS)}"
            )

    @property
    def scale(self) -> float:
        """What the side path is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)


class LowRankLinear(nn.Linear):
    """`base`'s own parameters, frozen, and a side path beside them.

    The weight keeps its canonical name; the factors are `lora_down` and `lora_up` beside it.
    """

    def __init__(
        self, base: nn.Linear, down: Tensor, up: Tensor, scale: float, dropout: float = 0.0
    ) -> None:
        nn.Module.__init__(self)  # nn.Linear's would make a second weight
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.lora_down = nn.Parameter(down)  # r in
        self.lora_up = nn.Parameter(up)  # out r
        self.scale, self.dropout = scale, dropout

    def forward(self, x: Tensor) -> Tensor:
        """Returns x W^T + bias + scale * (x down^T) up^T."""
        whole = F.linear(x, self.weight, self.bias)  # ... out
        low = F.linear(F.dropout(x, self.dropout, self.training), self.lora_down)  # ... r
        # One product that adds, instead of two passes over `whole`. Copied to [r, out], because a
        # processor is up to ten times slower at the thin products of its gradient in [out, r].
        up = self.lora_up.t().contiguous()  # r out
        added = torch.addmm(whole.flatten(0, -2), low.flatten(0, -2), up, alpha=self.scale)
        return added.view(whole.shape)


def add_lora(decoder: Decoder, settings: LoraSettings, seed: int) -> Decoder:
    """Freezes `decoder` and puts a fresh side path on its targets, in place; returns it.

    `up` is zero, so that nothing changes yet; `down` is uniform within 1 / sqrt(in), from `seed`
    in the matrices' order. Raises ConfigError for a target that the model has not, or a rank
    above a matrix's own.
    """
    matrices = dict(_matrices(decoder))
    has = {name.split(".")[-2] for name in matrices}
    if absent := sorted(set(settings.targets) - has):
        raise ConfigError(
            f"targets names {', '.join(absent)}, this model has {', '.join(sorted(has))}",
            remedy="Leave it out",
        )
    generator = torch.Generator().manual_seed(seed)
    parts: dict[str, tuple[Tensor, Tensor, float]] = {}
    for name, linear in matrices.items():
        if settings.targets and name.split(".")[-2] not in settings.targets:
            continue
        rows, columns = linear.out_features, linear.in_features
        if settings.rank > min(rows, columns):
            raise ConfigError(
                f"rank is {settings.rank}, {name} is {rows} x {columns}",
                remedy=f"Give --rank {min(rows, columns)} or less",
            )
        bound = columns**-0.5
        down = torch.empty(settings.rank, columns).uniform_(-bound, bound, generator=generator)
        parts[name] = (down, torch.zeros(rows, settings.rank), settings.scale)
    return _install(decoder, parts, settings.dropout)


def apply_adapter(decoder: Decoder, adapter: Adapter, *, where: object = "adapter") -> Decoder:
    """Freezes `decoder` and puts `adapter` beside its matrices, in place; returns it.

    Raises ModelFileError if its matrices are not this model's.
    """
    check_adapter(decoder.config, adapter, where=where)
    parts = {
        name: (torch.tensor(part.down), torch.tensor(part.up), part.scale)
        for name, part in adapter.parts.items()
    }
    return _install(decoder, parts, 0.0)


def to_adapter(
    decoder: Decoder, *, base: str | None = None, tokenizer: str | None = None
) -> Adapter:
    """Returns copies of the side paths of `decoder`, with the fingerprints of what they fit."""
    parts = {
        f"{name}.weight": LowRank(
            down=module.lora_down.detach().float().cpu().numpy().copy(),
            up=module.lora_up.detach().float().cpu().numpy().copy(),
            scale=module.scale,
        )
        for name, module in decoder.named_modules()
        if isinstance(module, LowRankLinear)
    }
    return Adapter(parts, base, tokenizer)


def merge(decoder: Decoder, *, keep_zeros: bool = False) -> Decoder:
    """Adds every side path into its matrix and takes it out, in place; returns the decoder.

    The sum is made in float64 and rounded once. `keep_zeros` leaves what is exactly zero in the
    matrix at zero: a pruning mask survives, and what the adapter learned there is lost. Token
    table and head have no side path: ties stay.
    """
    for name, module in list(decoder.named_modules()):
        if not isinstance(module, LowRankLinear):
            continue
        with torch.no_grad():
            weight = module.weight.double()
            whole = weight + module.scale * (module.lora_up.double() @ module.lora_down.double())
            if keep_zeros:
                whole = torch.where(weight == 0, weight, whole)
            plain = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
            plain.weight = nn.Parameter(whole.to(module.weight.dtype))
        plain.bias = module.bias
        decoder.set_submodule(name, plain)
    return decoder.requires_grad_(True)


def _matrices(decoder: Decoder) -> Iterator[tuple[str, nn.Linear]]:
    """Yields the blocks' matrices by canonical name, in the tensor table's order."""
    for name, module in decoder.layers.named_modules(prefix="layers"):
        if isinstance(module, nn.Linear):
            yield f"{name}.weight", module


def _install(
    decoder: Decoder, parts: dict[str, tuple[Tensor, Tensor, float]], dropout: float
) -> Decoder:
    matrices = dict(_matrices(decoder))
    decoder.requires_grad_(False)
    for name, (down, up, scale) in parts.items():
        base = matrices[name]
        if isinstance(base, LowRankLinear):
            raise ConfigError(f"{name} has a side path already", remedy="Merge it first")
        device = base.weight.device
        side = LowRankLinear(base, down.float().to(device), up.float().to(device), scale, dropout)
        decoder.set_submodule(name.removesuffix(".weight"), side.train(base.training))
    return decoder
