"""Which type a file holds a tensor in, and what that type cannot hold.

For: every writer, so that one rule says what becomes of rows that fit no blocks.
Not for: the bits (`miudo.formats.blocks`), or which type a model should have.
Read next: `miudo.formats.gguf`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from miudo.config import ModelConfig
from miudo.errors import ModelFileError
from miudo.formats.blocks import check_writable, is_finite, largest, recode
from miudo.formats.derived import DerivedTensor, drop_pages
from miudo.tensors import DType, StoredTensor, TensorSpec, Weights, tensor_table

__all__ = ["SHORTER_BLOCKS", "converted", "held_as", "stored_dtype", "type_notes"]

_LARGEST_F16 = 65504.0
_LAYER = re.compile(r"layers\.(\d+)\.")
SHORTER_BLOCKS = {
    DType.Q2_K: DType.IQ4_NL, DType.Q3_K: DType.IQ4_NL, DType.Q4_K: DType.Q5_0,
    DType.Q5_K: DType.Q5_1, DType.Q6_K: DType.Q8_0, DType.IQ4_XS: DType.IQ4_NL,
    DType.TQ1_0: DType.Q4_0, DType.TQ2_0: DType.Q4_0,
}  # fmt: skip
"""Where rows are no whole blocks of 256: a larger type of 32, as llama.cpp chooses."""


def stored_dtype(spec: TensorSpec, tensor: StoredTensor, wanted: DType) -> tuple[DType, str]:
    """Returns the type in which a file holds a tensor, and why it is not the wanted one.

    The one rule for every writer: norms and biases are F32; rows that are no whole blocks of
    256 become a larger type of 32 (Q5_0 for Q4_K, Q8_0 for Q6_K, IQ4_NL for Q2_K, ...); what
    fits no blocks of 32 either, or tolerates no blocks, F16; and values beyond float16's range F32.
    """
    if spec.lowest is DType.F32:
        return DType.F32, ""  # norms and biases: few bytes, much harm
    dtype, why = wanted, ""
    if wanted.block > 1 and spec.lowest.block == 1:
        dtype, why = DType.F16, f"a {spec.role} table does not tolerate {wanted}"
    elif not wanted.fits(spec.shape):
        shorter = SHORTER_BLOCKS.get(wanted, DType.F16)
        dtype = shorter if shorter.fits(spec.shape) else DType.F16
        why = f"rows of {spec.shape[-1]} are no whole blocks of {wanted.block}"
    # An F16 tensor would become infinite, and one such value leaves nothing of the rest of its
    # block. What lies so already is kept: its values are what they are.
    safe = (tensor.dtype, DType.F32, DType.BF16)
    if dtype not in safe and largest(tensor) > _LARGEST_F16:
        return DType.F32, "it holds values beyond float16's range"
    return dtype, why


def held_as(config: ModelConfig, weights: Weights, dtype: DType | None) -> Weights:
    """Returns `weights` with every tensor as `stored_dtype` says, made when it is asked for.

    Without `dtype` each keeps its type. Raises ModelFileError for values that a type cannot
    hold, ConfigError for a type that is only read.
    """
    if dtype is not None:
        check_writable(dtype)
    held = {}
    for spec in tensor_table(config):
        tensor = weights[spec.name]
        kind, _ = stored_dtype(spec, tensor, dtype or tensor.dtype)
        held[spec.name] = converted(spec.name, tensor, kind)
    return held


def type_notes(held: Iterable[tuple[str, DType, str]]) -> tuple[str, ...]:
    """Returns a note on tensors of another type than the wanted one: name, type, why.

    Those that differ in the number of their layer alone are one: `layers.0-3,5.mlp.up.weight`.
    """
    layers: dict[tuple[str, DType, str], list[int]] = {}
    for name, dtype, why in held:
        number = _LAYER.match(name)
        several = layers.setdefault((_LAYER.sub("layers.{}.", name), dtype, why), [])
        several += [int(number[1])] if number else []
    return tuple(
        f"{name.format(_runs(numbers))} is {dtype}: {why}"
        for (name, dtype, why), numbers in layers.items()
    )


def _runs(numbers: list[int]) -> str:
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    runs = zip(starts, ends, strict=True)
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def converted(name: str, tensor: StoredTensor, dtype: DType) -> StoredTensor:
    """Returns `tensor` as `dtype`, made when it is asked for.

    Raises ModelFileError for values that it cannot hold.
    """
    held = StoredTensor(tensor.dtype, tensor.shape, tensor.data)
    _check(name, held, dtype)
    drop_pages(held.data)  # read again when its turn comes: the model may exceed the memory
    if tensor.dtype is dtype:
        return tensor
    return DerivedTensor(dtype, tensor.shape, lambda part: recode(part, dtype).data, tensor)


def _check(name: str, tensor: StoredTensor, dtype: DType) -> None:
    if not is_finite(tensor):
        raise ModelFileError(
            "is not finite", where=f"tensor {name}", remedy="Repair the model: nothing was written"
        )
    if dtype is not DType.F16 or tensor.dtype is dtype:
        return
    if (found := largest(tensor)) > _LARGEST_F16:
        raise ModelFileError(
            f"holds {found}, the largest {dtype} is {_LARGEST_F16}",
            where=f"tensor {name}",
            remedy="Write the model as F32 or BF16",
        )
