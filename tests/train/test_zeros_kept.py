"""What was pruned stays zero: under either optimiser, in a broken run, in every verb's file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from miudo.data.pipeline import PrepareSettings
from miudo.decoder.decoder import Decoder
from miudo.decoder.lora import LoraSettings
from miudo.decoder.sparsity import Masks, masks_to_keep
from miudo.errors import CheckFailedError, ModelFileError, UsageError
from miudo.formats import open_model
from miudo.formats.export import export
from miudo.formats.hf import write_folder
from miudo.formats.precision import held_as
from miudo.formats.zeros import carried, declared, sparse_settings
from miudo.records import Record
from miudo.tensors import DType
from miudo.train.checkpoint import load_checkpoint
from miudo.train.finetune import finetune
from miudo.train.lesson import FinetuneJob
from miudo.train.loop import fit
from miudo.train.merge import merge_adapter
from miudo.train.pretrain import TrainJob, train
from miudo.train.settings import FitSettings, Optimizer, Precision

TINY = Path(__file__).parents[1] / "data" / "tiny"
WORDS = ("river", "stone", "letter", "garden", "winter", "bread", "window", "paper")
TEXT = "\n<|endoftext|>\n".join(f"The {a} lies by the {b}. " * 40 for a in WORDS for b in WORDS)
PACK = PrepareSettings(dedupe=None)


def thinned(decoder: Decoder, share: float = 0.5) -> Decoder:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in decoder.named_parameters():
            if name.startswith("layers.") and value.dim() == 2:
                value[torch.rand(value.shape, generator=generator) < share] = 0.0
    return decoder


def zeros(decoder: Decoder) -> dict[str, int]:
    return Masks.of(decoder).zeros()


@pytest.mark.parametrize("optimizer", Optimizer)
def test_masked_weights_stay_zero_and_the_others_learn(
    optimizer: Optimizer, small: SimpleNamespace, tmp_path: Path
) -> None:
    decoder = thinned(small.decoder())
    masks, before = Masks.of(decoder), {n: p.clone() for n, p in decoder.named_parameters()}
    settings = small.settings(optimizer=optimizer, weight_decay=0.1)
    result = fit(decoder, small.tokens(), settings, tmp_path, masks=masks)
    for name, live in masks.live.items():
        value = dict(decoder.named_parameters())[name]
        assert bool((value[~live] == 0).all()), name
        assert bool((value[live] != before[name][live]).all()), name
    assert result.zeros == masks.zeros()


@pytest.mark.parametrize("optimizer", Optimizer)
def test_without_masks_they_would_not(
    optimizer: Optimizer, small: SimpleNamespace, tmp_path: Path
) -> None:
    decoder = thinned(small.decoder())
    fit(decoder, small.tokens(), small.settings(optimizer=optimizer), tmp_path)
    assert zeros(decoder) == {}


def test_masked_gradients_are_in_no_moment(small: SimpleNamespace, tmp_path: Path) -> None:
    decoder = thinned(small.decoder())
    masks = Masks.of(decoder)
    fit(decoder, small.tokens(), small.settings(optimizer=Optimizer.ADAMW), tmp_path, masks=masks)
    saved = load_checkpoint(tmp_path / "checkpoints", 8)
    for name, live in masks.live.items():
        assert bool((saved.optimizer[f"adamw/{name}/exp_avg_sq"][~live] == 0).all())


@pytest.mark.parametrize("given", [True, False])
def test_a_broken_run_goes_on_to_the_same_zeros(
    given: bool, small: SimpleNamespace, tmp_path: Path
) -> None:
    """The checkpoint knows them, whether or not they are given again."""
    for out in ("whole", "broken"):
        decoder = thinned(small.decoder())
        fit(decoder, small.tokens(), small.settings(), tmp_path / out, masks=Masks.of(decoder))
    small.forget_after(tmp_path / "broken", 4)
    again = thinned(small.decoder())
    masks = Masks.of(again) if given else None
    again.initialise(77)
    result = fit(
        again, small.tokens(), small.settings(), tmp_path / "broken", masks=masks, resume=True
    )
    assert small.hashes(tmp_path / "broken", 8) == small.hashes(tmp_path / "whole", 8)
    assert zeros(again) == result.zeros != {}


def test_going_on_with_zeros_that_the_run_had_not_is_refused(
    small: SimpleNamespace, tmp_path: Path
) -> None:
    fit(small.decoder(), small.tokens(), small.settings(), tmp_path)
    sparse = thinned(small.decoder())
    with pytest.raises(UsageError, match="other zeros"):
        fit(sparse, small.tokens(), small.settings(), tmp_path, masks=Masks.of(sparse), resume=True)


def test_a_lost_zero_is_named_before_it_is_saved(
    small: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Masks, "put_back", lambda *_: None)  # as if an optimiser were forgotten
    decoder = thinned(small.decoder())
    with pytest.raises(CheckFailedError, match=r"layers\.0\.attn\.q\.weight.*no longer zero"):
        fit(decoder, small.tokens(), small.settings(), tmp_path, masks=Masks.of(decoder))


# What a model's record and its weights say.


def record(sparse: Mapping[str, int]) -> Record:
    return Record(verb="prune", name="x", settings=sparse_settings(sparse))


def test_the_record_decides(small: SimpleNamespace) -> None:
    decoder = thinned(small.decoder())
    found = masks_to_keep(decoder, record(zeros(decoder)))
    assert found is not None
    assert found.zeros() == zeros(decoder)
    assert masks_to_keep(small.decoder(), None) is None
    assert masks_to_keep(decoder, record(zeros(decoder)), keep=False) is None
    only = {"layers.1.mlp.up.weight": zeros(decoder)["layers.1.mlp.up.weight"]}
    part = masks_to_keep(decoder, record(only))
    assert part is not None
    assert part.zeros() == only


def test_a_record_and_weights_that_disagree_are_refused(small: SimpleNamespace) -> None:
    decoder = thinned(small.decoder())
    with pytest.raises(CheckFailedError, match=r"no record says.*--keep-zeros"):
        masks_to_keep(decoder, None, where="model")
    assert masks_to_keep(decoder, None, keep=True) is not None
    with pytest.raises(CheckFailedError, match=r"has 0 zeros, its record names 512"):
        masks_to_keep(small.decoder(), record({"layers.0.mlp.up.weight": 512}))
    with pytest.raises(ModelFileError, match=r"layers\.9"):
        masks_to_keep(decoder, record({"layers.9.mlp.up.weight": 512}))
    broken = Record(verb="prune", name="x", settings={"sparse": ["layers.0"]})
    with pytest.raises(ModelFileError, match="no table"):
        declared(broken)


def test_padding_is_no_mask(small: SimpleNamespace) -> None:
    decoder = small.decoder()
    with torch.no_grad():
        for block in decoder.layers:
            block.mlp.down.weight[:, 8:] = 0.0
            block.mlp.up.weight[8:] = block.mlp.gate.weight[8:] = 0.0
    assert masks_to_keep(decoder, None) is None


# The verbs, from file to file.


@pytest.fixture
def sparse_model(tmp_path: Path) -> Path:
    file = open_model(TINY)
    decoder = thinned(Decoder.from_weights(file.config, file.weights))
    made = dataclasses.replace(
        file, weights=decoder.to_weights(), record=record(zeros(decoder)), path=None
    )
    write_folder(tmp_path / "sparse", made)
    return tmp_path / "sparse"


def model_zeros(path: Path) -> dict[str, int]:
    file = open_model(path)
    assert dict(declared(file.record)) == zeros(Decoder.from_weights(file.config, file.weights))
    return zeros(Decoder.from_weights(file.config, file.weights))


def fine(model: Path, out: Path, *, lora: bool, keep: bool | None = None) -> FinetuneJob:
    (out.parent / "text.txt").write_text(TEXT)
    settings = FitSettings(
        steps=3, batch_size=2, length=32, precision=Precision.F32, weight_decay=0.1
    )
    side = LoraSettings(rank=2) if lora else None
    text = (str(out.parent / "text.txt"),)
    return FinetuneJob(model, text, out, settings, lora=side, keep_zeros=keep, prepare=PACK)


def test_finetuning_all_weights_keeps_them(sparse_model: Path, tmp_path: Path) -> None:
    before = model_zeros(sparse_model)
    made = finetune(fine(sparse_model, tmp_path / "out", lora=False))
    assert model_zeros(made.path) == before
    freed = finetune(fine(sparse_model, tmp_path / "freed", lora=False, keep=False))
    assert model_zeros(freed.path) == {}


def test_an_adapter_merges_into_the_mask(sparse_model: Path, tmp_path: Path) -> None:
    before = model_zeros(sparse_model)
    adapter = finetune(fine(sparse_model, tmp_path / "out", lora=True)).path
    assert model_zeros(merge_adapter(sparse_model, adapter, tmp_path / "merged").path) == before
    freed = merge_adapter(sparse_model, adapter, tmp_path / "freed", keep_zeros=False)
    assert declared(open_model(freed.path).record) == {}


def test_going_on_with_pretraining_keeps_them(sparse_model: Path, tmp_path: Path) -> None:
    before = model_zeros(sparse_model)
    (tmp_path / "text.txt").write_text(TEXT)
    settings = FitSettings(steps=3, batch_size=2, length=32, precision=Precision.F32)
    job = TrainJob(
        (str(tmp_path / "text.txt"),), tmp_path / "out", settings, prepare=PACK, init=sparse_model
    )
    assert model_zeros(train(job).folder) == before


@pytest.mark.parametrize("dtype", [DType.F16, DType.Q8_0, DType.Q4_0])
def test_export_keeps_them_where_the_type_has_a_zero(
    dtype: DType, sparse_model: Path, tmp_path: Path
) -> None:
    before = model_zeros(sparse_model)
    made = export(sparse_model, tmp_path / "out.gguf", to="gguf", dtype=dtype)
    file = open_model(made.path)
    held = declared(file.record)
    assert held.keys() == before.keys()
    assert all(held[name] >= count for name, count in before.items())
    assert masks_to_keep(Decoder.from_weights(file.config, file.weights), file.record) is not None


def test_a_type_with_offsets_is_dense_and_says_so(sparse_model: Path) -> None:
    file = open_model(sparse_model)
    assert carried(file.record, held_as(file.config, file.weights, DType.Q4_1)) == {}
