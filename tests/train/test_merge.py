"""A model and an adapter become one model's folder, whose record names both."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from miudo.adapter import base_fingerprint
from miudo.decoder.decoder import Decoder
from miudo.decoder.lora import LoraSettings, add_lora, to_adapter
from miudo.errors import ModelFileError, UsageError
from miudo.formats import open_model
from miudo.formats.export import export_adapter
from miudo.formats.gguf import write_gguf
from miudo.formats.peft import write_peft
from miudo.records import Record
from miudo.tensors import DType
from miudo.text.tokenizer import TextTokenizer
from miudo.train.merge import merge_adapter

TINY = Path(__file__).parents[1] / "data" / "tiny"
IDS = torch.arange(20)[None] * 11 % 512


@pytest.fixture
def adapted(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """An adapter folder for the tiny model, and the logits of both together."""
    file = open_model(TINY)
    decoder = add_lora(
        Decoder.from_weights(file.config, file.weights).eval(), LoraSettings(rank=2), 0
    )
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if name.endswith("lora_up"):
                parameter.normal_(0.0, 0.02, generator=generator)
        logits = decoder.logits(decoder(IDS)).numpy()
    assert file.tokenizer is not None
    adapter = to_adapter(
        decoder,
        base=base_fingerprint(file.config, file.weights),
        tokenizer=TextTokenizer(file.tokenizer).fingerprint,
    )
    write_peft(
        tmp_path / "adapter",
        adapter,
        file.config,
        record=Record(verb="finetune", name="adapter"),
        chat_template="{{ messages }}",
    )
    return tmp_path / "adapter", logits


def test_the_merged_model_says_the_same(tmp_path: Path, adapted: tuple[Path, np.ndarray]) -> None:
    made = merge_adapter(TINY, adapted[0], tmp_path / "out")
    file = open_model(made.path)
    decoder = Decoder.from_weights(file.config, file.weights).eval()
    with torch.no_grad():
        found = decoder.logits(decoder(IDS)).numpy()
    # Two orders of float32 sums, at logits of size 4.
    np.testing.assert_allclose(found, adapted[1], atol=5e-5, rtol=1e-5)
    assert file.chat_template == "{{ messages }}"
    assert file.record is not None
    assert [parent.verb for parent in file.record.parents] == ["train", "finetune"]
    assert [part.role for part in file.record.inputs] == ["model", "adapter"]


def test_a_quantised_file_of_the_base_takes_it_too(
    tmp_path: Path, adapted: tuple[Path, np.ndarray]
) -> None:
    write_gguf(tmp_path / "tiny.gguf", open_model(TINY), dtype=DType.Q8_0)
    made = merge_adapter(tmp_path / "tiny.gguf", adapted[0], tmp_path / "out", dtype=DType.BF16)
    assert open_model(made.path).weights["layers.0.attn.q.weight"].dtype is DType.BF16


def test_the_template_that_was_learned_through_goes_before_the_models(
    tmp_path: Path, adapted: tuple[Path, np.ndarray]
) -> None:
    file = dataclasses.replace(open_model(TINY), chat_template="{{ 'old' }}")
    write_gguf(tmp_path / "tiny.gguf", file)
    made = merge_adapter(tmp_path / "tiny.gguf", adapted[0], tmp_path / "out")
    assert open_model(made.path).chat_template == "{{ messages }}"
    (adapted[0] / "chat_template.jinja").unlink()
    made = merge_adapter(tmp_path / "tiny.gguf", adapted[0], tmp_path / "own")
    assert open_model(made.path).chat_template == "{{ 'old' }}"
    (adapted[0] / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ModelFileError, match=r"chat_template\.jinja: is not UTF-8"):
        merge_adapter(tmp_path / "tiny.gguf", adapted[0], tmp_path / "none")


def test_an_adapter_file_merges_like_a_folder(
    tmp_path: Path, adapted: tuple[Path, np.ndarray]
) -> None:
    export_adapter(adapted[0], TINY, tmp_path / "a.gguf", to="gguf")
    one = open_model(merge_adapter(TINY, adapted[0], tmp_path / "one").path)
    two = open_model(merge_adapter(TINY, tmp_path / "a.gguf", tmp_path / "two").path)
    for name, tensor in one.weights.items():
        np.testing.assert_allclose(
            tensor.data.view("<f4"), two.weights[name].data.view("<f4"), atol=1e-6, err_msg=name
        )
    assert two.record is not None
    assert [parent.verb for parent in two.record.parents] == ["train", "export"]
    assert two.chat_template == one.chat_template


def test_another_base_is_refused_and_nothing_is_written(
    tmp_path: Path, adapted: tuple[Path, np.ndarray]
) -> None:
    file = open_model(TINY)
    decoder = Decoder.from_weights(file.config, file.weights)
    with torch.no_grad():
        decoder.norm.weight.mul_(1.5)
    other = dataclasses.replace(file, weights=decoder.to_weights())
    write_gguf(tmp_path / "other.gguf", other)
    with pytest.raises(ModelFileError, match="was trained on the model"):
        merge_adapter(tmp_path / "other.gguf", adapted[0], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_inputs_and_other_folders_are_not_overwritten(
    tmp_path: Path, adapted: tuple[Path, np.ndarray]
) -> None:
    with pytest.raises(UsageError, match="would overwrite what it is made from"):
        merge_adapter(TINY, adapted[0], adapted[0])
    (tmp_path / "mine").mkdir()
    with pytest.raises(UsageError, match="is there and holds no model"):
        merge_adapter(TINY, adapted[0], tmp_path / "mine")
