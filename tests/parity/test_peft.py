"""`peft` and miudo load each other's adapters onto the same folder and agree on logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_examples import EXAMPLES

from miudo.config import Activation, ModelConfig, Position, QkNorm
from miudo.decoder.decoder import Decoder
from miudo.decoder.lora import LoraSettings, add_lora, apply_adapter, to_adapter
from miudo.formats import open_model
from miudo.formats.hf import write_folder
from miudo.formats.model_file import ModelFile
from miudo.formats.peft import read_peft, write_peft
from miudo.records import Record

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

# The design's bound on absolute logit differences; logits here are of size 1.
LOGITS = 1e-4
SHAPE: dict[str, Any] = {
    "vocab_size": 97, "d_model": 48, "n_layers": 2, "n_heads": 4, "d_ff": 80, "max_positions": 32,
}  # fmt: skip
GPT2: dict[str, Any] = {
    "norm": "layer", "norm_bias": True, "position": Position.LEARNED, "mlp": "plain",
    "activation": Activation.GELU_TANH, "qkv_bias": True, "o_bias": True, "mlp_bias": True,
}  # fmt: skip
CONFIGS = {
    "llama": SHAPE | {"n_kv_heads": 2},
    "llama-untied": SHAPE | {"tie_embeddings": False},
    "qwen2": SHAPE | {"n_kv_heads": 2, "qkv_bias": True},
    "qwen3": SHAPE | {"n_kv_heads": 2, "qk_norm": QkNorm.HEAD, "head_dim": 16},
    "gpt2": SHAPE | GPT2,
    # One matrix for queries, keys and values, head by head; for llama's gate and up in turn.
    "neox": SHAPE | EXAMPLES["neox"],
    "bloom": SHAPE | EXAMPLES["bloom"] | {"d_ff": 4 * 48},
    "phi": SHAPE | {"rotary_dim": 8},
    "gemma2": SHAPE | EXAMPLES["gemma2"] | {"embed_scale": 48**0.5, "window": 8},
}
TARGETS = {
    "gpt2": ["c_attn", "mlp.c_proj"],
    "gpt_neox": ["query_key_value", "dense_4h_to_h"],
    "bloom": ["query_key_value", "dense_4h_to_h"],
    "phi3": ["qkv_proj", "gate_up_proj"],
}
IDS = torch.arange(24)[None] * 7 % 97


def config_of(name: str) -> ModelConfig:
    from miudo.config import Mlp, Norm

    values = dict(CONFIGS[name])
    for key, kind in (("norm", Norm), ("mlp", Mlp)):
        if key in values:
            values[key] = kind(values[key])
    return ModelConfig.uniform(**values)


@pytest.fixture(params=list(CONFIGS))
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.set_num_threads(1)
    config = config_of(request.param)
    decoder = Decoder(config)
    decoder.initialise(1)
    model = ModelFile(config, decoder.to_weights(), None, None, None, "", None)
    write_folder(tmp_path / "base", model)
    return tmp_path / "base"


def opened(folder: Path) -> Decoder:
    file = open_model(folder)
    return Decoder.from_weights(file.config, file.weights).eval()


def noisy(module: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_up" in name or "lora_B" in name:
                parameter.normal_(0.0, 0.1, generator=generator)


def ours(decoder: Decoder) -> np.ndarray:
    with torch.no_grad():
        return decoder.logits(decoder(IDS)).numpy()


def theirs(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(IDS).logits.numpy()


@pytest.mark.parametrize(
    "settings",
    [
        LoraSettings(rank=4, alpha=8.0),
        LoraSettings(rank=3, alpha=5.0, targets=("q", "v", "down")),
        LoraSettings(rank=6, alpha=12.0, rank_stabilised=True),
    ],
    ids=["all", "some", "stabilised"],
)
def test_peft_loads_what_we_wrote(base: Path, tmp_path: Path, settings: LoraSettings) -> None:
    decoder = opened(base)
    plain = ours(decoder)
    add_lora(decoder, settings, 0)
    noisy(decoder)
    record = Record(verb="finetune", name="a")
    write_peft(tmp_path / "a", to_adapter(decoder), decoder.config, record=record)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    found = theirs(peft.PeftModel.from_pretrained(model, tmp_path / "a"))
    assert np.abs(ours(decoder) - plain).max() > 100 * LOGITS  # the adapter does something
    np.testing.assert_allclose(ours(decoder), found, atol=LOGITS, rtol=0)
    # And we read our own back to the same logits.
    again = apply_adapter(opened(base), read_peft(tmp_path / "a", decoder.config))
    np.testing.assert_allclose(ours(again), ours(decoder), atol=1e-5, rtol=0)


@pytest.mark.parametrize("extra", [{}, {"use_rslora": True}, {"patterns": True}])
def test_we_read_what_peft_wrote(base: Path, tmp_path: Path, extra: dict[str, Any]) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    targets = TARGETS.get(model.config.model_type, ["q_proj", "v_proj", "down_proj"])
    values: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": targets}
    if extra.get("patterns"):
        values |= {"rank_pattern": {targets[0]: 2}, "alpha_pattern": {targets[0]: 7}}
    else:
        values |= extra
    config = peft.LoraConfig(task_type="CAUSAL_LM", **values)
    adapted = peft.get_peft_model(model, config)
    noisy(adapted)
    adapted.save_pretrained(tmp_path / "theirs")
    decoder = opened(base)
    apply_adapter(decoder, read_peft(tmp_path / "theirs", decoder.config))
    np.testing.assert_allclose(ours(decoder), theirs(adapted), atol=LOGITS, rtol=0)
