"""`transformers` and miudo read each other's folders and agree on logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from miudo.decoder.decoder import Decoder
from miudo.formats import ModelFile, open_model
from miudo.formats.hf import write_folder

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

# The design's bound on absolute logit differences, at logits of size about 10.
LOGITS = 1e-4
LENGTH = 33


def theirs(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model(ids()).logits[0].numpy()


def ours(model: ModelFile) -> np.ndarray:
    decoder = Decoder.from_weights(model.config, model.weights)
    with torch.no_grad():
        return decoder.logits(decoder(ids()))[0].numpy()


def ids() -> torch.Tensor:
    return torch.tensor([[(7 * i + i * i) % 97 for i in range(LENGTH)]])


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
