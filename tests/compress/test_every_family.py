"""Every family's model can be pruned in every way, repaired, and written so that it comes back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from family_examples import EXAMPLES, IDS, LAYERS, SHAPE
from torch import Tensor

from miudo.compress.method import Method
from miudo.compress.prune.depth import DepthPruning
from miudo.compress.prune.heads import HeadPruning
from miudo.compress.prune.hidden import HiddenPruning
from miudo.compress.prune.recover import prune_and_recover
from miudo.compress.prune.sparse import SparsePruning
from miudo.compress.prune.width import WidthPruning
from miudo.config import ModelConfig, Position
from miudo.decoder.decoder import Decoder
from miudo.errors import ConfigError
from miudo.formats import ModelFile, open_model
from miudo.formats.gguf import write_gguf

METHODS: dict[str, Method] = {
    "depth": DepthPruning(),
    "hidden": HiddenPruning(multiple=16),
    "heads": HeadPruning(),
    "width": WidthPruning(),
    "sparse": SparsePruning("2:4"),
}


def decoder_of(family: str) -> Decoder:
    config = ModelConfig.uniform(**SHAPE | IDS | EXAMPLES[family])
    if family in LAYERS:
        layers = tuple(dataclasses.replace(config.layers[0], **own) for own in LAYERS[family])
        config = dataclasses.replace(config, layers=layers)
    decoder = Decoder(config)
    decoder.initialise(1)
    return decoder


def logits(decoder: Decoder, ids: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = decoder.logits(decoder(ids))
        return found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", EXAMPLES)
def test_pruned_and_repaired_it_goes_out_and_comes_back(
    family: str, method: str, tmp_path: Path
) -> None:
    decoder = decoder_of(family)
    generator = torch.Generator().manual_seed(3)
    batches = [torch.randint(0, 50, (4, 16), generator=generator) for _ in range(2)]
    if method == "heads" and decoder.config.position is Position.ALIBI:
        with pytest.raises(ConfigError, match="ALiBi"):
            METHODS[method].calibrate(decoder, batches)
        return
    made = prune_and_recover(decoder, (METHODS[method],), batches, ridge=0.01).decoder
    found = logits(made, batches[0])
    assert bool(torch.isfinite(found).all())
    assert made.config != decoder.config or method == "sparse"
    model = ModelFile(
        config=made.config, weights=made.to_weights(), tokenizer=None, chat_template=None,
        record=None, architecture=family, path=None,
    )  # fmt: skip
    write_gguf(tmp_path / "model.gguf", model)
    opened = open_model(tmp_path / "model.gguf")
    back = Decoder.from_weights(opened.config, opened.weights)
    torch.testing.assert_close(logits(back, batches[0]), found, rtol=1e-5, atol=1e-5)
