"""`pytorch_model.bin`, whole and sharded, as PyTorch and the hub's library write it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from miudo.formats import open_model

transformers = pytest.importorskip("transformers")
hub = pytest.importorskip("huggingface_hub")
pytestmark = pytest.mark.parity

SHAPE: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", SHAPE),
    "llama-tied": ("LlamaForCausalLM", "LlamaConfig", SHAPE | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", SHAPE | {"head_dim": 16}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config",
             {"vocab_size": 97, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 64,
              "bos_token_id": 1, "eos_token_id": 2}),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_bits_are_those_of_safetensors(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(5)
    model_class, config_class, values = CONFIGS[name]
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**values))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model = model.to(dtype)
    model.save_pretrained(tmp_path / "plain")
    expected = open_model(tmp_path / "plain")
    writers = {
        "archive": lambda to: torch.save(model.state_dict(), to / "pytorch_model.bin"),
        "stream": lambda to: torch.save(
            model.state_dict(), to / "pytorch_model.bin", _use_new_zipfile_serialization=False
        ),
        "shards": lambda to: hub.save_torch_state_dict(
            model.state_dict(), to, safe_serialization=False, max_shard_size="20KB"
        ),
    }
    for form, write in writers.items():
        folder = tmp_path / form
        folder.mkdir()
        (folder / "config.json").write_bytes((tmp_path / "plain" / "config.json").read_bytes())
        generation = tmp_path / "plain" / "generation_config.json"
        (folder / generation.name).write_bytes(generation.read_bytes())
        write(folder)
        found = open_model(folder)
        assert found.config == expected.config
        assert list(found.weights) == list(expected.weights)
        for key, tensor in expected.weights.items():
            assert found.weights[key].dtype is tensor.dtype
            np.testing.assert_array_equal(found.weights[key].data, tensor.data, err_msg=key)
    index = json.loads((tmp_path / "shards" / "pytorch_model.bin.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
