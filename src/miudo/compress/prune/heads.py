"""Head pruning: attention heads and groups of them that add least go.

For: fewer query heads in every key-value group, or fewer groups, whose keys and values go with
them: smaller tensors and a smaller cache.
Not for: cutting inside a head, which would part the pairs that rotate together.
Read next: `miudo.compress.prune.repair`.

Shapes: B batch, T positions, H query heads, K key-value heads (one a group), V v_head_dim,
D d_model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from miudo.compress.method import Report, check_finite, check_seen, describe, in_range
from miudo.compress.prune.repair import Origin
from miudo.compress.prune.slices import Places, best, pick, scaled, spread
from miudo.config import LayerConfig, ModelConfig, Position, QkNorm
from miudo.decoder.decoder import Block, Decoder
from miudo.errors import CheckFailedError, ConfigError, DataError
from miudo.tensors import StoredTensor

__all__ = ["HeadPruning", "HeadScore", "HeadStatistics"]


class HeadScore(StrEnum):
    """How a head's worth is measured at the input of `o`.

    `activation`: L2 over sequences of the mean norm over tokens (Minitron, Muralidharan et al.
    2024). `output`: the root mean square of what it adds to the residual stream.
    """

    ACTIVATION = "activation"
    OUTPUT = "output"


@dataclass(frozen=True, slots=True)
class HeadStatistics:
    """Per layer each head's score [H], and the mean squares of q and k [rows] where normed whole.

    The latter are empty but for models whose norm spans all heads (`QkNorm.FULL`).
    """

    scores: tuple[npt.NDArray[np.float64], ...]
    normed: tuple[dict[str, npt.NDArray[np.float64]], ...]
    tokens: int


@dataclass(frozen=True, slots=True)
class HeadPruning:
    """Keeps a share `groups` of the key-value groups, and `heads` of the heads in each of them.

    Every group keeps as many heads as the others, ranked within the group; at least one is left
    of each. Where every group is one head, both are shares of the same. Raises ConfigError for
    a share out of range.
    """

    name: ClassVar[str] = "heads"
    needs_calibration: ClassVar[bool] = True

    groups: float = 0.5
    heads: float = 1.0
    score: HeadScore = HeadScore.OUTPUT

    def __post_init__(self) -> None:
        in_range("groups", self.groups, 1e-3, 1.0)
        in_range("heads", self.heads, 1e-3, 1.0)

    def calibrate(self, decoder: Decoder, batches: Iterable[Tensor]) -> HeadStatistics:
        """Returns each head's score on ids [B, T].

        Raises DataError if no token was seen, CheckFailedError if a layer saw nothing.
        """
        check_finite(decoder)
        self.resolve(decoder.config)
        meters = [_Meter(cast("Block", block), self.score) for block in decoder.layers]
        tokens = 0
        try:
            with torch.no_grad():
                for ids in batches:
                    decoder(ids)
                    tokens += ids.numel()
        finally:
            for meter in meters:
                meter.remove()
        check_seen(self.name, tokens)
        for i, meter in enumerate(meters):
            if meter.tokens != tokens or not float(meter.energy.sum()) > 0.0:
                raise CheckFailedError(
                    f"calibration measured {meter.tokens} of {tokens} tokens and an energy of "
                    f"{float(meter.energy.sum())}",
                    where=f"layers.{i}.attn.o",
                    remedy="Check that the model is trained and the text is its kind of text",
                )
        scores = tuple(meter.energy.sqrt().numpy() for meter in meters)
        return HeadStatistics(scores, tuple(meter.normed() for meter in meters), tokens)

    def apply(
        self, decoder: Decoder, statistics: HeadStatistics | None = None
    ) -> tuple[Decoder, Report]:
        """Returns the decoder with fewer heads, and the report."""
        if statistics is None:
            raise DataError("needs calibration", where=self.name, remedy="Call calibrate first")
        check_seen(self.name, statistics.tokens)
        check_finite(decoder)
        old = decoder.config
        counts = self.resolve(old)
        weights, layers = decoder.to_weights(), []
        for i, (layer, (groups, heads)) in enumerate(zip(old.layers, counts, strict=True)):
            kept_groups, kept_heads = _kept(layer, statistics.scores[i], groups, heads)
            _cut(old, weights, i, kept_groups, kept_heads, statistics.normed[i])
            layers.append(dataclasses.replace(layer, n_heads=groups * heads, n_kv_heads=groups))
        config = dataclasses.replace(old, layers=tuple(layers))
        before, after = ([(c.n_heads, c.n_kv_heads) for c in o.layers] for o in (old, config))
        report = describe(
            self,
            old,
            config,
            reasons={"": "its heads added least"},
            notes=(
                f"heads and groups {before} became {after}, by {self.score} over "
                f"{statistics.tokens} tokens",
            ),
        )
        return Decoder.from_weights(config, weights), report

    def origin(self, decoder: Decoder, statistics: HeadStatistics) -> Origin:
        """Returns where layers and channels come from: all stay."""
        return Origin()

    def resolve(self, config: ModelConfig) -> list[tuple[int, int]]:
        """Returns each layer's number of groups, and of heads in each of them.

        Raises ConfigError where a model's heads cannot be counted down.
        """
        if config.position is Position.ALIBI:
            raise ConfigError(
                "the heads' slopes follow from their number (ALiBi)",
                remedy="Prune width, hidden width or depth instead",
            )
        counts = []
        for layer in config.layers:
            size = layer.n_heads // layer.n_kv_heads
            groups = self.groups * (self.heads if size == 1 else 1.0)
            counts.append(
                (max(1, round(layer.n_kv_heads * groups)), max(1, round(size * self.heads)))
            )
        return counts


class _Meter:
    """What each head of one block gives, summed over tokens or sequences."""

    def __init__(self, block: Block, score: HeadScore) -> None:
        self.layer, self.o, self.score = block.attn.layer, block.attn.o, score
        self.energy = torch.zeros(self.layer.n_heads, dtype=torch.float64)  # H
        self.tokens = 0
        self._sums: dict[str, Tensor] = {}
        self._handles = [self.o.register_forward_pre_hook(self._see)]
        if getattr(block.attn, "whole", False):
            for name in ("q_norm", "k_norm"):
                norm = cast("nn.Module", getattr(block.attn, name))
                self._handles.append(
                    norm.register_forward_pre_hook(lambda _, a, n=name: self._see_normed(n, a[0]))
                )

    def _see(self, _: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        mixed = arguments[0].detach()  # B T H*V
        shape = (self.layer.n_heads, self.layer.v_head_dim)
        heads = mixed.double().reshape(*mixed.shape[:-1], *shape)  # B T H V
        if self.score is HeadScore.ACTIVATION:
            self.energy += heads.norm(dim=-1).mean(dim=1).square().sum(dim=0)
        else:
            columns = self.o.weight.detach().double()  # D H*V
            columns = columns.reshape(len(columns), *shape)  # D H V
            added = torch.einsum("bthv,dhv->bthd", heads, columns)
            self.energy += added.square().sum(dim=(0, 1, 3))
        self.tokens += mixed.shape[0] * mixed.shape[1]

    def _see_normed(self, name: str, x: Tensor) -> None:
        squares = x.detach().double().square().flatten(0, -2).sum(dim=0)
        self._sums[name] = self._sums.get(name, torch.zeros_like(squares)) + squares

    def normed(self) -> dict[str, npt.NDArray[np.float64]]:
        """The mean squares of what the norms over all heads are given."""
        return {name: (sums / self.tokens).numpy() for name, sums in self._sums.items()}

    def remove(self) -> None:
        """Takes the hooks off: the decoder is left as it was."""
        for handle in self._handles:
            handle.remove()


def _kept(
    layer: LayerConfig, scores: npt.NDArray[np.float64], groups: int, heads: int
) -> tuple[Places, Places]:
    """The groups and the heads that stay, in their old order."""
    each = scores.reshape(layer.n_kv_heads, -1)  # K H/K
    kept_groups = best(np.sqrt((each**2).sum(axis=1)), groups)
    inside = [best(each[g], heads) + g * each.shape[1] for g in kept_groups]
    return kept_groups, np.concatenate(inside)


def _cut(
    config: ModelConfig,
    weights: dict[str, StoredTensor],
    index: int,
    groups: Places,
    heads: Places,
    normed: dict[str, npt.NDArray[np.float64]],
) -> None:
    layer, at = config.layers[index], f"layers.{index}.attn."
    rows = {"q": spread(heads, layer.head_dim), "o": spread(heads, layer.v_head_dim)}
    if config.latent is not None:
        rows["q_b"] = rows["q"]
        wide = layer.head_dim - config.latent.rope_dim + layer.v_head_dim
        rows["kv_b"] = spread(heads, wide)
    else:
        rows["k"] = spread(groups, layer.head_dim)
        rows["v"] = spread(groups, layer.v_head_dim)
    for part, places in rows.items():
        name = f"{at}{part}.weight"
        if name in weights:
            weights[name] = pick(weights[name], places, axis=1 if part == "o" else 0)
        if part != "o" and (bias := f"{at}{part}.bias") in weights:
            weights[bias] = pick(weights[bias], places, axis=0)
    if config.qk_norm is QkNorm.FULL:
        for part in ("q", "k"):
            name, squares = f"{at}{part}_norm.weight", normed[f"{part}_norm"]
            # A root mean square over fewer numbers: the gain makes up for the difference.
            factor = float(np.sqrt(squares[rows[part]].mean() / squares.mean()))
            weights[name] = scaled(pick(weights[name], rows[part], axis=0), factor)
