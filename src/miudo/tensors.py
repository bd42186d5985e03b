"""Every tensor of a model, derived from its config, and tensors as they lie in files.

For: one table that initialisation, import, compression, writers and the engine's loader read.
Not for: reading or writing files (`miudo.formats`) or arithmetic (`miudo.decoder`).
Read next: `miudo.decoder.decoder`, whose parameters carry these names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import prod

import numpy as np
import numpy.typing as npt

from miudo.config import Block, LayerConfig, Mlp, ModelConfig, Norm, Parallel, Position, QkNorm
from miudo.errors import ModelFileError

__all__ = [
    "DType",
    "Role",
    "StoredTensor",
    "TensorSpec",
    "Weights",
    "check_weights",
    "parameter_count",
    "tensor_table",
]


class DType(StrEnum):
    """How numbers lie in a file: single numbers, or blocks of a row with scales of their own.

    The names are GGUF's (bits: `miudo.formats.blocks`), but for the last: Q4_0 and Q8_0 without
    zeros (`miudo.formats.sparse`), of data's own size. Ordered as `miudo_dtype` in miudo.h.
    """

    F32 = "F32"
    F16 = "F16"
    BF16 = "BF16"
    Q8_0 = "Q8_0"
    Q4_0 = "Q4_0"
    Q4_1 = "Q4_1"
    Q5_0 = "Q5_0"
    Q5_1 = "Q5_1"
    Q2_K = "Q2_K"
    Q3_K = "Q3_K"
    Q4_K = "Q4_K"
    Q5_K = "Q5_K"
    Q6_K = "Q6_K"
    IQ4_NL = "IQ4_NL"
    IQ4_XS = "IQ4_XS"
    MXFP4 = "MXFP4"
    TQ1_0 = "TQ1_0"
    TQ2_0 = "TQ2_0"
    SPARSE4 = "SPARSE4"
    SPARSE8 = "SPARSE8"

    @property
    def block(self) -> int:
        """Values in one block; a row's length must be a multiple of it."""
        return _BLOCKS[self.dense][0]

    @property
    def block_bytes(self) -> int:
        """Bytes of one block; sparse types have no such number."""
        return _BLOCKS[self][1]

    def size_bytes(self, shape: tuple[int, ...]) -> int:
        """Returns the bytes of a tensor of `shape`, its last axis being the row.

        Raises KeyError for a sparse type: `StoredTensor.size_bytes` knows.
        """
        return prod(shape) // self.block * self.block_bytes

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether rows of `shape` are whole blocks."""
        return bool(shape) and shape[-1] % self.block == 0

    @property
    def dense(self) -> DType:
        """The type that has the same values, zeros and all; of all but sparse ones, itself."""
        return _DENSE.get(self, self)

    @property
    def sparse(self) -> bool:
        """Whether zeros are left out."""
        return self in _DENSE


_BLOCKS = {
    DType.F32: (1, 4), DType.F16: (1, 2), DType.BF16: (1, 2), DType.Q8_0: (32, 34),
    DType.Q4_0: (32, 18), DType.Q4_1: (32, 20), DType.Q5_0: (32, 22), DType.Q5_1: (32, 24),
    DType.Q2_K: (256, 84), DType.Q3_K: (256, 110), DType.Q4_K: (256, 144),
    DType.Q5_K: (256, 176), DType.Q6_K: (256, 210), DType.IQ4_NL: (32, 18),
    DType.IQ4_XS: (256, 136), DType.MXFP4: (32, 17), DType.TQ1_0: (256, 54),
    DType.TQ2_0: (256, 66),
}  # fmt: skip
_DENSE = {DType.SPARSE4: DType.Q4_0, DType.SPARSE8: DType.Q8_0}


class Role(StrEnum):
    """What a tensor is for; compression and writers decide by role, never by name."""

    EMBED = "embed"
    POSITION = "position"
    NORM = "norm"
    BIAS = "bias"
    ATTENTION = "attention"
    MLP = "mlp"
    HEAD = "head"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor: matrices are `[out, in]`. `layer` is None outside the blocks.

    `lowest` is the lowest precision the tensor tolerates: F32 (norms and biases), F16, or Q8_0,
    which stands for every type of blocks.
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    layer: int | None
    lowest: DType


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as it lies in a file: `data` is a flat uint8 array (often a memory map)."""

    dtype: DType
    shape: tuple[int, ...]
    data: npt.NDArray[np.uint8]

    @property
    def size_bytes(self) -> int:
        """Bytes of `data`, which need not be made for it where the type says them."""
        return self.data.size if self.dtype.sparse else self.dtype.size_bytes(self.shape)

    @classmethod
    def from_f32(cls, array: npt.NDArray[np.float32]) -> StoredTensor:
        """Returns `array` as an F32 tensor, sharing memory where it is contiguous."""
        flat = np.ascontiguousarray(array, dtype="<f4")
        return cls(DType.F32, array.shape, flat.reshape(-1).view(np.uint8))


Weights = Mapping[str, StoredTensor]
"""Canonical name to tensor: separate q, k, v, gate, up, down in `[out, in]` order."""


def tensor_table(config: ModelConfig) -> tuple[TensorSpec, ...]:
    """Returns every tensor of `config` in execution order; a tied head has none of its own."""
    return tuple(_tensors(config))


def parameter_count(config: ModelConfig, *, embeddings: bool = True) -> int:
    """Returns the number of parameters; `embeddings=False` leaves out token table and head."""
    return sum(
        prod(spec.shape)
        for spec in tensor_table(config)
        if embeddings or spec.role not in (Role.EMBED, Role.HEAD, Role.POSITION)
    )


def check_weights(config: ModelConfig, weights: Weights, *, where: object = "tensors") -> None:
    """Raises ModelFileError listing all tensors that are missing, unknown or misshapen."""
    wanted = {spec.name: spec.shape for spec in tensor_table(config)}
    wrong = [f"{name} is missing" for name in wanted if name not in weights]
    wrong += [f"{name} is unknown" for name in weights if name not in wanted]
    wrong += [
        f"{name} is {list(weights[name].shape)}, the config wants {list(shape)}"
        for name, shape in wanted.items()
        if name in weights and weights[name].shape != shape
    ]
    if wrong:
        raise ModelFileError(
            "; ".join(wrong), where=where, remedy="Config and weights must be of one model"
        )


def _tensors(config: ModelConfig) -> Iterator[TensorSpec]:
    d = config.d_model
    yield TensorSpec("embed.weight", (config.vocab_size, d), Role.EMBED, None, DType.Q8_0)
    if config.embed_norm:
        yield from _norm(config, "embed_norm", d, None)
    if config.position is Position.LEARNED:
        shape = (config.max_positions, d)
        yield TensorSpec("position.weight", shape, Role.POSITION, None, DType.F16)
    for i, layer in enumerate(config.layers):
        yield from _layer_tensors(config, layer, i)
    yield from _norm(config, "norm", d, None)
    if not config.tie_embeddings:
        yield TensorSpec("head.weight", (config.vocab_size, d), Role.HEAD, None, DType.Q8_0)


def _layer_tensors(config: ModelConfig, layer: LayerConfig, i: int) -> Iterator[TensorSpec]:
    at, d, ff = f"layers.{i}.", config.d_model, layer.d_ff
    before, after = config.block is not Block.POST, config.block is not Block.PRE
    if before:
        yield from _norm(config, at + "attn_norm", d, i)
    made = _queries_keys_values if config.latent is None else _latent
    yield from made(config, layer, i)
    o = layer.n_heads * layer.v_head_dim
    yield from _linear(at + "attn.o", (d, o), Role.ATTENTION, i, bias=config.o_bias)
    if after:
        yield from _norm(config, at + "attn_post_norm", d, i)
    if before and config.parallel is not Parallel.ONE_NORM:
        yield from _norm(config, at + "mlp_norm", d, i)
    if config.mlp is Mlp.GATED:
        yield from _linear(at + "mlp.gate", (ff, d), Role.MLP, i, bias=config.mlp_bias)
    yield from _linear(at + "mlp.up", (ff, d), Role.MLP, i, bias=config.mlp_bias)
    yield from _linear(at + "mlp.down", (d, ff), Role.MLP, i, bias=config.mlp_bias)
    if after:
        yield from _norm(config, at + "mlp_post_norm", d, i)


def _queries_keys_values(config: ModelConfig, layer: LayerConfig, i: int) -> Iterator[TensorSpec]:
    at, d = f"layers.{i}.attn.", config.d_model
    q, k = layer.n_heads * layer.head_dim, layer.n_kv_heads * layer.head_dim
    v = layer.n_kv_heads * layer.v_head_dim
    yield from _linear(at + "q", (q, d), Role.ATTENTION, i, bias=config.qkv_bias)
    yield from _linear(at + "k", (k, d), Role.ATTENTION, i, bias=config.qkv_bias)
    yield from _linear(at + "v", (v, d), Role.ATTENTION, i, bias=config.qkv_bias)
    if config.qk_norm is not QkNorm.NONE:
        whole = config.qk_norm is QkNorm.FULL
        for name, width in (("q_norm", q), ("k_norm", k)):
            shape = (width if whole else layer.head_dim,)
            yield TensorSpec(f"{at}{name}.weight", shape, Role.NORM, i, DType.F32)


def _latent(config: ModelConfig, layer: LayerConfig, i: int) -> Iterator[TensorSpec]:
    latent = config.latent
    assert latent is not None  # noqa: S101 - who calls has looked
    at, d, q = f"layers.{i}.attn.", config.d_model, layer.n_heads * layer.head_dim
    if latent.q_rank is None:
        yield from _linear(at + "q", (q, d), Role.ATTENTION, i, bias=False)
    else:
        yield from _linear(at + "q_a", (latent.q_rank, d), Role.ATTENTION, i, bias=False)
        yield TensorSpec(at + "q_a_norm.weight", (latent.q_rank,), Role.NORM, i, DType.F32)
        yield from _linear(at + "q_b", (q, latent.q_rank), Role.ATTENTION, i, bias=False)
    narrow = latent.kv_rank + latent.rope_dim
    yield from _linear(at + "kv_a", (narrow, d), Role.ATTENTION, i, bias=False)
    yield TensorSpec(at + "kv_a_norm.weight", (latent.kv_rank,), Role.NORM, i, DType.F32)
    wide = layer.n_heads * (layer.head_dim - latent.rope_dim + layer.v_head_dim)
    yield from _linear(at + "kv_b", (wide, latent.kv_rank), Role.ATTENTION, i, bias=False)


def _linear(
    name: str, shape: tuple[int, int], role: Role, layer: int | None, *, bias: bool
) -> Iterator[TensorSpec]:
    yield TensorSpec(name + ".weight", shape, role, layer, DType.Q8_0)
    if bias:
        yield TensorSpec(name + ".bias", shape[:1], Role.BIAS, layer, DType.F32)


def _norm(config: ModelConfig, name: str, width: int, layer: int | None) -> Iterator[TensorSpec]:
    if config.norm_weight:
        yield TensorSpec(name + ".weight", (width,), Role.NORM, layer, DType.F32)
    if config.norm is Norm.LAYER and config.norm_bias:
        yield TensorSpec(name + ".bias", (width,), Role.NORM, layer, DType.F32)
