"""GGUF files that others write: their package's names, their converter's keys and order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("gguf")

import gguf
from safetensors.numpy import load_file
from zoo import measure
from zoo.case import ids, noised
from zoo.registry import CASES

from miudo.formats import open_model

pytestmark = pytest.mark.parity

Note = Callable[[str, str, float | str], None]


def common(w: Any, c: Any) -> None:
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_block_count(c.num_hidden_layers)
    w.add_feed_forward_length(c.intermediate_size)
    w.add_head_count(c.num_attention_heads)
    w.add_head_count_kv(c.num_key_value_heads)
    w.add_layer_norm_rms_eps(c.rms_norm_eps)
    w.add_file_type(gguf.LlamaFileType.ALL_F32)
    if getattr(c, "head_dim", None):
        w.add_key_length(c.head_dim)
        w.add_value_length(c.head_dim)


def llama(w: Any, c: Any) -> None:
    common(w, c)
    w.add_vocab_size(c.vocab_size)
    w.add_rope_freq_base(c.rope_parameters["rope_theta"])
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    w.add_rope_dimension_count(head_dim)


def qwen(w: Any, c: Any) -> None:
    common(w, c)
    rope = c.rope_parameters
    w.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "yarn":
        w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        w.add_rope_scaling_factor(rope["factor"])
        w.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def phi(w: Any, c: Any) -> None:
    common(w, c)
    rope = c.rope_parameters
    share = rope.get("partial_rotary_factor", 1.0)
    original = rope["original_max_position_embeddings"]
    w.add_rope_freq_base(rope["rope_theta"])
    w.add_rope_dimension_count(int(share * c.hidden_size) // c.num_attention_heads)
    w.add_rope_scaling_orig_ctx_len(original)
    w.add_sliding_window(262144)
    stretch = c.max_position_embeddings / original
    w.add_rope_scaling_attn_factors(float(np.sqrt(1 + np.log(stretch) / np.log(original))))
    factors(w, rope)


def factors(w: Any, rope: dict[str, Any]) -> None:
    for name in ("long", "short"):
        values = np.array(rope[f"{name}_factor"], dtype=np.float32)
        w.add_tensor(f"rope_factors_{name}.weight", values)


def granite(w: Any, c: Any) -> None:
    llama(w, c)
    w.add_attention_scale(c.attention_multiplier)
    w.add_embedding_scale(c.embedding_multiplier)
    w.add_residual_scale(c.residual_multiplier)
    w.add_logit_scale(c.logits_scaling)


def minicpm(w: Any, c: Any) -> None:
    common(w, c)
    w.add_embedding_scale(c.embedding_multiplier)
    w.add_residual_scale(c.residual_multiplier)
    w.add_logit_scale(c.logits_scaling)


def minicpm3(w: Any, c: Any) -> None:
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_block_count(c.num_hidden_layers)
    w.add_feed_forward_length(c.intermediate_size)
    w.add_head_count(c.num_attention_heads)
    w.add_head_count_kv(c.num_key_value_heads)
    w.add_layer_norm_rms_eps(c.rms_norm_eps)
    w.add_vocab_size(c.vocab_size)
    w.add_q_lora_rank(c.q_lora_rank)
    w.add_kv_lora_rank(c.kv_lora_rank)
    w.add_key_length(c.qk_nope_head_dim + c.qk_rope_head_dim)
    w.add_rope_dimension_count(c.qk_rope_head_dim)
    # Their converter leaves these two out: its readers take their defaults, which are not the
    # case's. Published models have them so.
    w.add_rope_freq_base(c.rope_parameters["rope_theta"])
    original = c.rope_parameters["original_max_position_embeddings"]
    w.add_rope_scaling_orig_ctx_len(original)
    stretch = c.max_position_embeddings / original
    w.add_rope_scaling_attn_factors(float(np.sqrt(1 + np.log(stretch) / np.log(original))))
    factors(w, c.rope_parameters)


Writer = Callable[[Any, Any], None]
# Case, architecture, keys, and whether their converter pairs the rows of queries and keys.
FILES: dict[str, tuple[gguf.MODEL_ARCH, Writer, bool]] = {
    "llama": (gguf.MODEL_ARCH.LLAMA, llama, True),
    "llama-tied": (gguf.MODEL_ARCH.LLAMA, llama, True),
    "llama-biases": (gguf.MODEL_ARCH.LLAMA, llama, True),
    "mistral-nemo": (gguf.MODEL_ARCH.LLAMA, llama, True),
    "qwen2": (gguf.MODEL_ARCH.QWEN2, qwen, False),
    "qwen2-tied-yarn": (gguf.MODEL_ARCH.QWEN2, qwen, False),
    "qwen3": (gguf.MODEL_ARCH.QWEN3, qwen, False),
    "phi-3.5": (gguf.MODEL_ARCH.PHI3, phi, False),
    "phi-4-mini": (gguf.MODEL_ARCH.PHI3, phi, False),
    "granite": (gguf.MODEL_ARCH.GRANITE, granite, True),
    "granite-untied": (gguf.MODEL_ARCH.GRANITE, granite, True),
    "smollm3": (gguf.MODEL_ARCH.SMOLLM3, llama, True),
    "olmo2": (gguf.MODEL_ARCH.OLMO2, qwen, False),
    "minicpm": (gguf.MODEL_ARCH.MINICPM, minicpm, True),
    "minicpm3": (gguf.MODEL_ARCH.MINICPM3, minicpm3, False),
}


def converted(model: Any, folder: Path, name: str, path: Path) -> None:
    """Writes the folder's tensors as their converter would."""
    arch, keys, pairs = FILES[name]
    c = model.config
    w = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    keys(w, c)
    names = gguf.get_tensor_name_map(arch, c.num_hidden_layers)
    for theirs, data in load_file(folder / "model.safetensors").items():
        values = data.astype(np.float32)
        if pairs and theirs.rsplit(".", 1)[0].endswith(("q_proj", "k_proj")):
            query = "q_proj" in theirs
            heads = c.num_attention_heads if query else c.num_key_value_heads
            shape = (heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
            values = values.reshape(shape).swapaxes(1, 2).reshape(values.shape)
        w.add_tensor(names.get_name(theirs, try_suffixes=(".weight", ".bias")), values)
    w.add_tokenizer_model("none")
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


@pytest.mark.parametrize("name", FILES)
def test_we_compute_what_their_file_means(name: str, tmp_path: Path, note: Note) -> None:
    torch.set_num_threads(1)
    model = noised(CASES[name].make())
    model.save_pretrained(tmp_path / "theirs")
    converted(model, tmp_path / "theirs", name, tmp_path / "m.gguf")
    ours = open_model(tmp_path / "m.gguf")
    for length in CASES[name].lengths:
        expected = measure.reference(model, ids(length))
        found = measure.logits(measure.decoder(ours, length), ids(length))["prefill"]
        note(name, "read from GGUF", measure.check_close(found, expected))
