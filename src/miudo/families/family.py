"""What a family is: how one kind of model is named in Hugging Face folders and in GGUF.

For: the dataclass that each family file fills with data, and the readers they share.
Not for: reading files (`miudo.formats`) or arithmetic.
Read next: `miudo.families.llama`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from miudo.config import Activation, ModelConfig
from miudo.errors import ModelFileError
from miudo.families.places import PLAIN, Layout

__all__ = [
    "Family",
    "Values",
    "activation_name",
    "gguf_common",
    "hf_activation",
    "hf_flag",
    "hf_number",
    "hf_token_ids",
    "hf_token_keys",
    "plain_float",
    "refuse",
    "refuse_unknown",
    "single",
]

Values = Mapping[str, Any]

_ACTIVATIONS: Mapping[str, Activation] = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu": Activation.GELU,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "gelu_new": Activation.GELU_TANH,
    "relu": Activation.RELU,
}

# Keys of every config.json, old or new, that change nothing in the forward pass: ids, training
# and generation settings, and keys that name code, which are never followed.
_HARMLESS = frozenset({
    "architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "auto_map",
    "trust_remote_code", "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id",
    "unk_token_id", "decoder_start_token_id", "tokenizer_class", "use_cache",
    "initializer_range", "id2label", "label2id", "num_labels", "problem_type",
    "finetuning_task", "task_specific_params", "prefix", "return_dict", "output_attentions",
    "output_hidden_states", "output_scores", "torchscript", "use_bfloat16",
    "chunk_size_feed_forward", "is_decoder", "max_length", "min_length", "do_sample",
    "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty", "temperature",
    "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty",
    "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "num_return_sequences",
    "return_dict_in_generate", "bad_words_ids", "remove_invalid_values", "suppress_tokens",
    "begin_suppress_tokens", "tf_legacy_loss", "tie_encoder_decoder", "tie_word_embeddings",
    "attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop",
    "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels",
    "summary_first_dropout", "n_ctx", "n_special", "predict_special_tokens", "pretraining_tp",
    "reorder_and_upcast_attn", "gradient_checkpointing", "is_llama_config", "unsloth_fixed",
    "unsloth_version", "name_or_path",
})  # fmt: skip

_LARGEST = float(np.finfo(np.float32).max)


def _no_gguf(*_: object) -> Any:
    raise ModelFileError("GGUF knows no such architecture")


def _nothing(_: ModelConfig) -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class Family:
    """Both maps of one family.

    `hf_names` and `gguf_names` map canonical names, `{i}` being the layer, to names in files;
    canonical names that share one are stacked in that tensor, as `hf_layout` says for folders.
    `hf_prefix` may be absent in folders; `hf_ignored` are endings of tensors without meaning.
    `permuted` says that GGUF holds query and key rows as adjacent pairs. `gguf_keys` are read
    beside those that all architectures have. `hf_misfit` and `gguf_misfit` say why other
    programs could not take a config, None if they can; that it comes back as it went is
    checked for all (`miudo.families.fit`). `foreign` folders are read by their authors' code
    alone. `gguf_note` tells where other programs compute slightly otherwise what
    comes back as it went. A family without `gguf_architecture` has no GGUF.
    """

    name: str
    architectures: tuple[str, ...]
    model_types: tuple[str, ...]
    hf_names: Mapping[str, str]
    config_from_hf: Callable[[Values], ModelConfig]
    config_to_hf: Callable[[ModelConfig], dict[str, Any]]
    gguf_architecture: str = ""
    gguf_names: Mapping[str, str] = field(default_factory=dict)
    config_from_gguf: Callable[[Values, frozenset[str]], ModelConfig] = _no_gguf
    config_to_gguf: Callable[[ModelConfig], dict[str, Any]] = _no_gguf
    gguf_keys: frozenset[str] = frozenset()
    hf_misfit: Callable[[ModelConfig], str | None] = _nothing
    gguf_misfit: Callable[[ModelConfig], str | None] = _nothing
    gguf_note: Callable[[ModelConfig], str | None] = _nothing
    hf_prefix: str = "model."
    hf_layout: Layout = PLAIN
    hf_ignored: tuple[str, ...] = ()
    foreign: bool = False
    permuted: bool = False


def gguf_common(keys: Values) -> dict[str, Any]:
    """Returns the fields of a config that no architecture has keys of its own for."""
    return {key: keys[key] for key in ("vocab_size", "bos_id", "eos_ids", "pad_id")}


def refuse(values: Values, wanted: Mapping[str, tuple[object, ...]]) -> None:
    """Raises ModelFileError for a key whose value is none of those this family computes."""
    for key, allowed in wanted.items():
        if key in values and values[key] not in allowed:
            raise ModelFileError(
                f"{key} is {values[key]!r:.100}, miudo computes {allowed[0]!r} only",
                where="config.json",
                remedy="This variant is not supported",
            )


def refuse_unknown(values: Values, read: frozenset[str]) -> None:
    """Raises ModelFileError for keys that may change what the model computes, unknown to us.

    A key that is null, false, zero or empty switches nothing on.
    """
    odd = [k for k, v in values.items() if v and k not in read and k not in _HARMLESS]
    odd = sorted(k for k in odd if not k.startswith("_"))
    if odd:
        shown = ", ".join(f"{k} = {values[k]!r:.60}" for k in odd[:8])
        raise ModelFileError(
            f"unknown keys that may change what the model computes: {shown}",
            where="config.json",
            remedy="Delete them if you know that they do not",
        )


def hf_number(values: Values, key: str, default: float | None = None) -> Any:
    """Returns a number of config.json.

    Raises ModelFileError if it is absent, of another kind, or beyond what float32 holds.
    """
    value = values.get(key)
    if value is None:
        value = default
    if value is None:
        raise ModelFileError(f"{key} is missing", where="config.json")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not abs(value) <= _LARGEST:
        raise ModelFileError(f"{key} is {value!r:.100}, not a number", where="config.json")
    return value


def hf_flag(values: Values, key: str, *, default: bool = False) -> bool:
    """Returns a switch of config.json. Raises ModelFileError if it is neither true nor false."""
    value = values.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ModelFileError(f"{key} is {value!r:.100}, not true or false", where="config.json")
    return value


def hf_activation(values: Values, key: str, default: str) -> Activation:
    """Returns the activation that config.json names. Raises ModelFileError if it is unknown."""
    name = values.get(key, default)
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise ModelFileError(
            f"{key} is {name!r:.100}",
            where="config.json",
            remedy=f"Known are {', '.join(_ACTIVATIONS)}",
        )
    return _ACTIVATIONS[name]


def activation_name(activation: Activation) -> str:
    """Returns config.json's name of an activation."""
    return next(name for name, known in _ACTIVATIONS.items() if known is activation)


def hf_token_ids(values: Values) -> dict[str, Any]:
    """Returns bos_id, eos_ids and pad_id; ids may be absent, eos one id or a list.

    -1 means none, as some old writers put it.
    """
    eos = values.get("eos_token_id")
    ids = eos if isinstance(eos, list) else [eos]
    bos, pad = values.get("bos_token_id"), values.get("pad_token_id")
    return {
        "bos_id": None if bos == -1 else bos,
        "eos_ids": tuple(i for i in ids if i is not None and i != -1),
        "pad_id": None if pad == -1 else pad,
    }


def hf_token_keys(config: ModelConfig) -> dict[str, Any]:
    """Returns config.json's keys for the ids of `config`."""
    eos = list(config.eos_ids)
    return {
        "bos_token_id": config.bos_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "pad_token_id": config.pad_id,
    }


def plain_float(value: Any) -> float:
    """Returns a file's float32 as the decimal that was meant: 1e-5, not 9.99999974e-6.

    Raises TypeError for another kind of value.
    """
    if not isinstance(value, float | int) or isinstance(value, bool):
        raise TypeError(f"{value!r:.100} is not a number")
    given = float(value)
    with np.errstate(over="ignore"):
        single = np.float32(given)
    # numpy prints the fewest digits that read back as the same float32.
    return float(str(single)) if float(single) == given else given


def single(value: float) -> float:
    """Returns the decimal that reads back as the float32 nearest to `value`.

    What files of one kind hold as doubles and the other as float32, and what all programs
    compute with as float32, is read so: then both kinds give the same config.
    """
    with np.errstate(over="ignore"):
        return plain_float(float(np.float32(value)))
