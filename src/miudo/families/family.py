"""What a family is: how one kind of model is named in Hugging Face folders and in GGUF.

For: the dataclass that each family file fills with data, and the readers they share.
Not for: reading files (`miudo.formats`) or arithmetic.
Read next: `miudo.families.llama`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from miudo.config import Activation, ModelConfig
from miudo.errors import ModelFileError
from miudo.tensors import tensor_table

__all__ = ["Family", "Source", "hf_number", "hf_token_ids", "refuse", "sources"]

Values = Mapping[str, Any]

ACTIVATIONS: Mapping[str, Activation] = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "relu": Activation.RELU,
}


@dataclass(frozen=True, slots=True)
class Source:
    """One tensor in a file: `targets` stacked on the out axis, `[in, out]` if transposed."""

    name: str
    targets: tuple[str, ...]
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class Family:
    """Both maps of one family.

    `hf_names` and `gguf_names` map canonical names, `{i}` being the layer, to names in files;
    canonical names that share one are stacked in that tensor. `hf_transposed` lists the
    matrices that a folder holds as `[in, out]`. `hf_prefix` may be absent in folders;
    `hf_ignored` are endings of tensors without meaning. `permuted` says that GGUF holds
    query and key rows as adjacent pairs.
    """

    name: str
    architectures: tuple[str, ...]
    model_types: tuple[str, ...]
    gguf_architecture: str
    hf_names: Mapping[str, str]
    gguf_names: Mapping[str, str]
    expresses: Callable[[ModelConfig], bool]
    config_from_hf: Callable[[Values], ModelConfig]
    config_to_hf: Callable[[ModelConfig], dict[str, Any]]
    config_from_gguf: Callable[[Values, frozenset[str]], ModelConfig]
    config_to_gguf: Callable[[ModelConfig], dict[str, Any]]
    hf_prefix: str = "model."
    hf_transposed: tuple[str, ...] = ()
    hf_ignored: tuple[str, ...] = ()
    permuted: bool = False


def sources(
    config: ModelConfig, names: Mapping[str, str], transposed: tuple[str, ...] = ()
) -> tuple[Source, ...]:
    """Returns every tensor that a file of `config` holds, in the tensor table's order.

    Raises ModelFileError for a tensor that `names` has no place for.
    """
    stacked: dict[str, list[str]] = {}
    turned: set[str] = set()
    for spec in tensor_table(config):
        at = "" if spec.layer is None else f"layers.{spec.layer}."
        key = spec.name.removeprefix(at)
        if key not in names:
            raise ModelFileError(f"this family has no place for {spec.name}")
        name = names[key].replace("{i}", str(spec.layer))
        stacked.setdefault(name, []).append(spec.name)
        if key in transposed:
            turned.add(name)
    return tuple(Source(n, tuple(t), n in turned) for n, t in stacked.items())


def refuse(values: Values, wanted: Mapping[str, tuple[object, ...]]) -> None:
    """Raises ModelFileError for a key whose value is none of those this family computes."""
    for key, allowed in wanted.items():
        if key in values and values[key] not in allowed:
            raise ModelFileError(
                f"{key} is {values[key]!r}, miudo computes {allowed[0]!r} only",
                where="config.json",
                remedy="This variant is not supported",
            )


def hf_number(values: Values, key: str, default: float | None = None) -> Any:
    """Returns a number of config.json. Raises ModelFileError if it is absent or of another kind."""
    value = values.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ModelFileError(f"{key} is {value!r}, not a number", where="config.json")
    return value


def hf_token_ids(values: Values) -> dict[str, Any]:
    """Returns bos_id, eos_ids and pad_id; ids may be absent, eos one id or a list."""
    eos = values.get("eos_token_id")
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    return {
        "bos_id": values.get("bos_token_id"),
        "eos_ids": tuple(ids),
        "pad_id": values.get("pad_token_id"),
    }
