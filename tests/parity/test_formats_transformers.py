"""`transformers` and miudo read each other's folders and agree on logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from miudo.decoder.decoder import Decoder
from miudo.formats import ModelFile, open_model
from miudo.formats.gguf import write_gguf
from miudo.formats.hf import write_folder

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

# The design's bound on absolute logit differences, at logits of size about 10.
LOGITS = 1e-4
LENGTH = 33  # longer than every window below

LLAMA_LIKE: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GPT2: dict[str, Any] = {
    "vocab_size": 97, "n_embd": 48, "n_inner": 100, "n_layer": 3, "n_head": 4, "n_positions": 64,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
WINDOWS = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", LLAMA_LIKE | {"rms_norm_eps": 1e-5}),
    "llama-tied": ("Llama", LLAMA_LIKE | {"tie_word_embeddings": True}),
    "llama-theta": ("Llama", LLAMA_LIKE | {"rope_theta": 500000.0}),
    "llama-biases": ("Llama", LLAMA_LIKE | {"attention_bias": True, "mlp_bias": True}),
    "llama-head-dim": ("Llama", LLAMA_LIKE | {"head_dim": 16, "eos_token_id": [2, 3]}),
    "llama-gelu": ("Llama", LLAMA_LIKE | {"hidden_act": "gelu_pytorch_tanh"}),
    "gpt2": ("GPT2", GPT2),
    "gpt2-exact-gelu": ("GPT2", GPT2 | {"activation_function": "gelu"}),
    "gpt2-untied": ("GPT2", GPT2 | {"tie_word_embeddings": False}),
    "gpt2-four-times": ("GPT2", GPT2 | {"n_inner": None, "layer_norm_epsilon": 1e-3}),
    "qwen2": ("Qwen2", LLAMA_LIKE),
    "qwen2-tied": ("Qwen2", LLAMA_LIKE | {"tie_word_embeddings": True}),
    "qwen2-windows": ("Qwen2", LLAMA_LIKE | WINDOWS),
    "qwen3": ("Qwen3", LLAMA_LIKE | {"head_dim": 16}),
    "qwen3-biases": ("Qwen3", LLAMA_LIKE | {"head_dim": 16, "attention_bias": True}),
    "qwen3-windows": ("Qwen3", LLAMA_LIKE | {"head_dim": 16} | WINDOWS),
}


@pytest.fixture(params=CASES.items(), ids=CASES.keys())
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Path]:
    """A tiny model of `transformers` in which every parameter is noise, and its folder."""
    torch.set_num_threads(1)
    torch.manual_seed(3)
    _, (name, values) = request.param
    config = getattr(transformers, name + "Config")(**values)
    head = "LMHeadModel" if name == "GPT2" else "ForCausalLM"
    model = getattr(transformers, name + head)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.25 if parameter.ndim > 1 else 0.3
            norm = parameter.ndim == 1 and bool((parameter == 1).all())
            parameter.normal_(1.0 if norm else 0.0, spread)
    model.save_pretrained(tmp_path / "theirs")
    return model, tmp_path / "theirs"


def theirs(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model(ids()).logits[0].numpy()


def ours(model: ModelFile) -> np.ndarray:
    decoder = Decoder.from_weights(model.config, model.weights)
    with torch.no_grad():
        return decoder.logits(decoder(ids()))[0].numpy()


def ids() -> torch.Tensor:
    return torch.tensor([[(7 * i + i * i) % 97 for i in range(LENGTH)]])


def test_we_compute_what_their_folder_means(saved: tuple[Any, Path]) -> None:
    model, folder = saved
    expected = theirs(model)
    assert np.abs(expected).max() > 2  # else the bound says little
    np.testing.assert_allclose(ours(open_model(folder)), expected, atol=LOGITS, rtol=0)


def test_they_compute_what_our_folder_means(saved: tuple[Any, Path], tmp_path: Path) -> None:
    model, folder = saved
    assert write_folder(tmp_path / "ours", open_model(folder)) == ()
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype="float32")
    np.testing.assert_array_equal(theirs(again.eval()), theirs(model))
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(again.config, key) == getattr(model.config, key)


def test_gguf_and_back_gives_the_same_folder(saved: tuple[Any, Path], tmp_path: Path) -> None:
    _, folder = saved
    first = open_model(folder)
    write_gguf(tmp_path / "a.gguf", first)
    second = open_model(tmp_path / "a.gguf")
    assert second.config == first.config
    for name, tensor in first.weights.items():
        np.testing.assert_array_equal(second.weights[name].data, tensor.data)


def test_padding_to_equal_widths_changes_no_logit(tmp_path: Path) -> None:
    import dataclasses

    from miudo.config import ModelConfig

    torch.set_num_threads(1)
    config = ModelConfig.uniform(
        n_layers=3, d_model=32, n_heads=4, d_ff=64, vocab_size=97, max_positions=64
    )
    layers = tuple(
        dataclasses.replace(x, d_ff=w) for x, w in zip(config.layers, (64, 33, 50), strict=True)
    )
    decoder = Decoder(dataclasses.replace(config, layers=layers))
    decoder.initialise(0)
    model = ModelFile(decoder.config, decoder.to_weights(), None, None, None, "", None)
    notes = write_folder(tmp_path / "wide", model)
    assert notes == ("2 layers padded with zeros to d_ff 64",)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "wide", dtype="float32")
    np.testing.assert_allclose(theirs(again.eval()), ours(model), atol=LOGITS, rtol=0)


def test_the_tokenizer_and_template_of_our_folder(tmp_path: Path, shared: Path) -> None:
    import dataclasses

    model = open_model(shared / "data" / "weights" / "stories260k")
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    write_folder(tmp_path / "out", dataclasses.replace(model, chat_template=template))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    turns = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == "<user>hi"
    text = "Once upon a time, there was a little girl"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_stories260k_agrees(shared: Path) -> None:
    folder = shared / "data" / "weights" / "stories260k"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    np.testing.assert_allclose(ours(open_model(folder)), theirs(model), atol=LOGITS, rtol=0)
