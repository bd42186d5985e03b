"""What the keys of a GGUF file say about a model, turned into a `ModelConfig`.

For: files of every family, and miudo's own, whose config is one key.
Not for: what a family's keys are called (`miudo.families`), or tensors (`miudo.formats.gguf`).
Read next: `miudo.formats.gguf`.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from miudo.config import ModelConfig, Position
from miudo.errors import ConfigError, ModelFileError
from miudo.families.family import Family, plain_float
from miudo.families.gguf_rope import ROPE_NAMES, ROPE_TENSORS
from miudo.formats.blocks import to_f32
from miudo.formats.gguf_reader import INT32, NUMBERS, ArrayAt, Container
from miudo.limits import LIMITS
from miudo.strict_json import parse_object

__all__ = ["family_config", "own_config"]

# Keys of an architecture that change nothing that its other keys do not say.
_KNOWN_KEYS = frozenset({
    "context_length", "embedding_length", "block_count", "feed_forward_length", "vocab_size",
    "attention.head_count", "attention.head_count_kv", "attention.key_length",
    "attention.value_length", "attention.layer_norm_rms_epsilon",
    "attention.layer_norm_epsilon", "rope.freq_base", "rope.dimension_count",
})  # fmt: skip


def own_config(container: Container) -> ModelConfig:
    """Returns the config that miudo wrote whole. Raises ModelFileError for what is none."""
    text = container.text("miudo.config")
    if text is None:
        raise ModelFileError("is missing", where="miudo.config")
    try:
        return ModelConfig.from_json(parse_object(text.encode(), "miudo.config"))
    except ConfigError as error:
        raise ModelFileError(error.what, where="miudo.config") from error


def family_config(container: Container, family: Family) -> ModelConfig:
    """Returns the config that the keys of `family` describe.

    Raises ModelFileError for keys that are missing, that describe no model, or that may change
    what it computes and are unknown.
    """
    keys, prefix = container.keys, family.gguf_architecture + "."
    odd = [
        f"{k} = {v!r:.40}"
        for k, v in keys.items()
        if k.startswith(prefix) and v not in (0, "none", "")
        if k.removeprefix(prefix) not in _KNOWN_KEYS | family.gguf_keys
    ]
    if odd:
        raise ModelFileError(
            f"says what this miudo does not compute: {', '.join(odd[:8])}",
            remedy="This variant is not supported",
        )
    lists = {
        k: container.numbers(k, {v.kind}).tolist()
        for k, v in keys.items()
        if k.startswith(prefix) and isinstance(v, ArrayAt)
        if v.kind in NUMBERS and v.count <= LIMITS.n_layers  # one number a layer
    }
    given = {**keys, **lists, **_common(container)}
    try:
        config = family.config_from_gguf(given, frozenset(container.tensors))
    except KeyError as error:
        raise ModelFileError(f"key {error} is missing") from error
    except (ConfigError, TypeError, ValueError, ArithmeticError) as error:
        raise ModelFileError(f"keys describe no model ({error})") from error
    _check_agreement(config, keys, prefix)
    return config


def _check_agreement(config: ModelConfig, keys: Mapping[str, Any], prefix: str) -> None:
    """Raises ModelFileError for sizes that a family takes from other keys and the file denies."""
    layers = config.layers
    rotated = {x.rotated for x in layers if x.rotary} if config.position is Position.ROPE else set()
    for key, sizes in (
        ("block_count", {config.n_layers}),
        ("attention.key_length", {x.head_dim for x in layers}),
        ("attention.value_length", {x.v_head_dim for x in layers}),
        ("rope.dimension_count", rotated),
    ):
        said = keys.get(prefix + key)
        if said is not None and sizes and sizes != {said}:
            meant = ", ".join(map(str, sorted(sizes)))
            raise ModelFileError(
                f"is {said!r:.40}, the other keys mean {meant}",
                where=prefix + key,
                remedy="The file is damaged, or of a variant that is not supported",
            )


def _common(container: Container) -> dict[str, Any]:
    """What all families need and other programs write in several ways."""
    keys, ids = container.keys, "tokenizer.ggml."
    embed = container.tensors.get("token_embd.weight")
    ends = [keys.get(f"{ids}{name}_token_id") for name in ("eos", "eot", "eom")]
    if "miudo.eos_ids" in keys:
        ends = container.numbers("miudo.eos_ids", {INT32}).tolist()
    begins = keys.get(ids + "add_bos_token") is not False
    return {
        ROPE_TENSORS: {
            name: tuple(plain_float(float(x)) for x in to_f32(tensor).reshape(-1))
            for name, tensor in container.tensors.items()
            if name in ROPE_NAMES and prod(tensor.shape) <= LIMITS.head_dim
        },
        "vocab_size": 0 if embed is None else embed.shape[0],
        "bos_id": keys.get(ids + "bos_token_id") if begins else None,
        "eos_ids": tuple(dict.fromkeys(i for i in ends if i is not None)),
        "pad_id": keys.get(ids + "padding_token_id"),
    }
