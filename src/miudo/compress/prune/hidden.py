"""Hidden-width pruning: channels of the residual stream go, in every tensor that touches it.

For: a smaller d_model, which makes table, head, norms and every matrix smaller at once.
Not for: heads (`miudo.compress.prune.heads`) or neurons (`miudo.compress.prune.width`).
Read next: `miudo.compress.prune.repair`, without which much is lost.

Shapes: B batch, T positions, D d_model.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from miudo.compress.method import Report, check_finite, check_seen, describe, in_range
from miudo.compress.prune.repair import Origin
from miudo.compress.prune.slices import Places, best, multiple_of, pick, scaled
from miudo.config import ModelConfig
from miudo.decoder.decoder import Decoder
from miudo.errors import CheckFailedError, DataError
from miudo.tensors import Role, StoredTensor, TensorSpec, tensor_table

__all__ = ["HiddenPruning", "HiddenStatistics"]

_WRITES = (".attn.o.", ".mlp.down.")
_INNER_NORMS = (".q_norm.", ".k_norm.", ".q_a_norm.", ".kv_a_norm.")
_INNER = (".attn.q_b.", ".attn.kv_b.")


@dataclass(frozen=True, slots=True)
class HiddenStatistics:
    """By norm the mean square of each channel [D] after norming, before gain and bias."""

    energy: Mapping[str, npt.NDArray[np.float64]]
    tokens: int


@dataclass(frozen=True, slots=True)
class HiddenPruning:
    """Keeps a share `keep` of the residual stream's channels, as a multiple of `multiple`.

    A channel's worth is the root mean square of what the norms give it, summed over all norms
    (after Minitron, Muralidharan et al. 2024). Norms are over fewer channels then: each gain is
    scaled so that what is kept has the root mean square that it had. Raises ConfigError for a
    value out of range.
    """

    name: ClassVar[str] = "hidden"
    needs_calibration: ClassVar[bool] = True

    keep: float = 0.5
    multiple: int = 32

    def __post_init__(self) -> None:
        in_range("keep", self.keep, 1e-3, 1.0)
        in_range("multiple", self.multiple, 1, 4096, whole=True)

    def calibrate(self, decoder: Decoder, batches: Iterable[Tensor]) -> HiddenStatistics:
        """Returns how strong each channel is on ids [B, T].

        Raises DataError if no token was seen, CheckFailedError if a norm saw nothing.
        """
        check_finite(decoder)
        meters = {name: _Meter(norm) for name, norm in _norms(decoder)}
        tokens = 0
        try:
            with torch.no_grad():
                for ids in batches:
                    decoder(ids)
                    tokens += ids.numel()
        finally:
            for meter in meters.values():
                meter.remove()
        check_seen(self.name, tokens)
        for name, meter in meters.items():
            if meter.tokens != tokens or not float(meter.energy.sum()) > 0.0:
                raise CheckFailedError(
                    f"calibration measured {meter.tokens} of {tokens} tokens and an energy of "
                    f"{float(meter.energy.sum())}",
                    where=name,
                    remedy="Check that the model is trained and the text is its kind of text",
                )
        energy = {name: (m.energy / m.tokens).numpy() for name, m in meters.items()}
        return HiddenStatistics(energy, tokens)

    def apply(
        self, decoder: Decoder, statistics: HiddenStatistics | None = None
    ) -> tuple[Decoder, Report]:
        """Returns the decoder with a narrower residual stream, and the report."""
        if statistics is None:
            raise DataError("needs calibration", where=self.name, remedy="Call calibrate first")
        check_seen(self.name, statistics.tokens)
        check_finite(decoder)
        old, kept = decoder.config, self._kept(decoder, statistics)
        config = dataclasses.replace(old, d_model=len(kept))
        weights = {
            spec.name: _cut(spec, decoder_weight, kept, statistics)
            for spec, decoder_weight in zip(
                tensor_table(old), decoder.to_weights().values(), strict=True
            )
        }
        notes = [f"d_model {old.d_model} became {len(kept)}, over {statistics.tokens} tokens"]
        if math.isclose(old.embed_scale, old.d_model**0.5, rel_tol=1e-6):
            config = _rescaled(config, old, weights)
        if not old.norm_weight:
            notes.append("its norms have no gains that could make up for fewer channels")
        report = describe(
            self, old, config, reasons={"": "its channels were weakest"}, notes=tuple(notes)
        )
        return Decoder.from_weights(config, weights), report

    def origin(self, decoder: Decoder, statistics: HiddenStatistics) -> Origin:
        """Returns where layers and channels come from."""
        return Origin(channels=tuple(self._kept(decoder, statistics).tolist()))

    def _kept(self, decoder: Decoder, statistics: HiddenStatistics) -> Places:
        scores = np.zeros(decoder.config.d_model)
        parameters = dict(decoder.named_parameters())
        for name, energy in statistics.energy.items():
            gain = parameters.get(f"{name}.weight")
            size = 1.0 if gain is None else np.abs(gain.detach().double().cpu().numpy())
            scores += np.sqrt(energy) * size
        return best(scores, multiple_of(self.multiple, self.keep, decoder.config.d_model))


class _Meter:
    """Sums the squares of a norm's input, each token divided by its own root mean square."""

    def __init__(self, norm: nn.Module) -> None:
        self.norm = norm
        self.energy = torch.zeros(1, dtype=torch.float64)
        self.tokens = 0
        self._handle = norm.register_forward_pre_hook(self._see)

    def _see(self, _: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        x = arguments[0].detach().double().flatten(0, -2)  # N D
        if isinstance(self.norm, nn.LayerNorm):
            x = x - x.mean(dim=1, keepdim=True)
        square = x.square()
        self.energy = self.energy + (square / square.mean(1, keepdim=True).clamp(min=1e-30)).sum(0)
        self.tokens += len(x)

    def remove(self) -> None:
        """Takes the hook off: the decoder is left as it was."""
        self._handle.remove()


def _norms(decoder: Decoder) -> Iterable[tuple[str, nn.Module]]:
    """The norms over the residual stream or what is added to it."""
    for name, module in decoder.named_modules():
        if isinstance(module, nn.RMSNorm | nn.LayerNorm) and not f".{name}.".endswith(_INNER_NORMS):
            yield name, module


def _cut(
    spec: TensorSpec, tensor: StoredTensor, kept: Places, statistics: HiddenStatistics
) -> StoredTensor:
    name = spec.name
    if spec.role is Role.NORM or (name.removesuffix(".bias") in statistics.energy):
        if any(inner in name for inner in _INNER_NORMS):
            return tensor
        cut = pick(tensor, kept, axis=0)
        if name.endswith(".bias"):
            return cut
        # The root mean square of what is kept, of all channels' own: 1 where all count alike.
        energy = statistics.energy[name.removesuffix(".weight")]
        return scaled(cut, float(np.sqrt(energy[kept].mean())))
    if any(writes in name for writes in _WRITES):
        return pick(tensor, kept, axis=0)
    if spec.role is Role.BIAS or any(inner in name for inner in _INNER):
        return tensor
    return pick(tensor, kept, axis=1)


def _rescaled(
    config: ModelConfig, old: ModelConfig, weights: dict[str, StoredTensor]
) -> ModelConfig:
    """Gemma's rule, by which embed_scale is the root of d_model: the table takes the difference.

    A tied head is that table too; the last norm's gain undoes it there.
    """
    config = dataclasses.replace(config, embed_scale=config.d_model**0.5)
    factor = old.embed_scale / config.embed_scale
    weights["embed.weight"] = scaled(weights["embed.weight"], factor)
    if not config.tie_embeddings:
        return config
    if "norm.weight" not in weights:
        return dataclasses.replace(config, logit_scale=config.logit_scale / factor)
    for name in ("norm.weight", "norm.bias"):
        if name in weights:
            weights[name] = scaled(weights[name], 1.0 / factor)
    return config
