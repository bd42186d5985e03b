"""One suite for every compression method: the promises that all of them make.

A mask is the zeros inside a tensor that keeps its shape: they must stay zeros under every
method. A distilled student shares no tensor with its teacher: there is nothing to keep.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from miudo.compress.catalogue import METHODS, method_from_json, method_to_json
from miudo.compress.distill.method import ResponseDistillation
from miudo.compress.method import Method, Quantizer, Report
from miudo.compress.prune.allocation import Allocation
from miudo.compress.prune.depth import DepthPruning, DepthScore
from miudo.compress.prune.heads import HeadPruning, HeadScore
from miudo.compress.prune.hidden import HiddenPruning
from miudo.compress.prune.sparse import SparseMethod, SparsePruning
from miudo.compress.prune.width import WidthPruning, WidthScore
from miudo.compress.quantize.awq import AWQ
from miudo.compress.quantize.gptq import GPTQ, Rounding
from miudo.compress.quantize.importance import ImportanceRounding
from miudo.compress.quantize.learned import LearnedRounding
from miudo.compress.quantize.mixed import MixedTypes
from miudo.compress.quantize.nearest import NearestRounding
from miudo.compress.quantize.trained import TrainedRounding
from miudo.decoder.decoder import Decoder
from miudo.decoder.torch_engine import TorchEngine
from miudo.engine.native import NativeEngine
from miudo.errors import CheckFailedError, ConfigError, DataError, MiudoError, ModelFileError
from miudo.formats import ModelFile, open_model
from miudo.formats.gguf import write_gguf
from miudo.formats.hf import write_folder
from miudo.protocol import Engine, SeqWork, Want
from miudo.tensors import DType, Weights

EXAMPLES: dict[str, Method] = {
    "response": ResponseDistillation(ratio=0.3, steps=2, batch_size=4, seed=5),
    "depth by influence": DepthPruning(drop=1),
    "depth by loss": DepthPruning(drop=2, score=DepthScore.LOSS),
    "width by output": WidthPruning(keep=0.4),
    "width by activation": WidthPruning(keep=0.6, score=WidthScore.ACTIVATION),
    "width a layer": WidthPruning(widths=(32, 160, 96)),
    "groups": HeadPruning(),
    "heads": HeadPruning(groups=1.0, heads=0.5, score=HeadScore.ACTIVATION),
    "hidden": HiddenPruning(),
    "sparsegpt": SparsePruning(),
    "sparsegpt 2:4": SparsePruning("2:4"),
    "wanda 4:8": SparsePruning("4:8", SparseMethod.WANDA),
    "wanda by outliers": SparsePruning("0.6", SparseMethod.WANDA, Allocation.OUTLIERS),
    "magnitude": SparsePruning("0.7", SparseMethod.MAGNITUDE),
    "q8_0": NearestRounding(),
    "f16": NearestRounding(DType.F16),
    "q4_0": NearestRounding(DType.Q4_0),
    "q4_k": NearestRounding(DType.Q4_K),
    "importance q4_0": ImportanceRounding(),
    "gptq q4_0": GPTQ(),
    "gptq q4_1 in order": GPTQ(DType.Q4_1, damping=0.1, act_order=False),
    "gptq q4_0, tables bf16": GPTQ(tables=DType.BF16),
    "awq q4_0": AWQ(steps=3),
    "awq then gptq": AWQ(DType.Q5_0, steps=2, rounding=Rounding.GPTQ),
    "learned q4_0": LearnedRounding(steps=6),
    "mixed": MixedTypes(max_bytes=88_000, types=("Q8_0", "Q5_0", "Q4_0")),
    "trained q4_0": TrainedRounding(steps=2, batch_size=4, tables=DType.Q4_0, seed=5),
    "trained q4_1": TrainedRounding(DType.Q4_1, steps=2, batch_size=4),
}
# No grid of theirs need have a zero.
WITH_OFFSETS = (DType.Q4_1, DType.Q5_1, DType.Q2_K, DType.Q4_K, DType.Q5_K)
# Zero padding of unequal layers, and a cache, put the same sums in another order.
SAME_SUMS = 1e-5
# The engine's contract for dequantised weights times float activations.
REFERENCE_PATH = 1e-4
KINDS = ("llama", "llama-untied", "gpt2", "qwen")
Make = Callable[[str], Decoder]

pytestmark = pytest.mark.parametrize("example", EXAMPLES)


def fingerprint(decoder: Decoder) -> str:
    """Of values, types, gradient flags and hooks: everything a method could leave behind."""
    digest = hashlib.sha256(repr((decoder.config, decoder.training)).encode())
    for name, value in decoder.state_dict(keep_vars=True).items():
        digest.update(f"{name} {value.dtype} {value.shape} {value.requires_grad}".encode())
        digest.update(value.detach().numpy().tobytes())
    for name, module in decoder.named_modules():
        digest.update(f"{name} {len(module._forward_hooks)}".encode())
        digest.update(f"{len(module._forward_pre_hooks)}".encode())
    return digest.hexdigest()


def run(method: Method, decoder: Decoder, batches: Iterable[Tensor]) -> tuple[Decoder, Report]:
    return method.apply(decoder, method.calibrate(decoder, batches))


def file_weights(method: Method, decoder: Decoder, made: Decoder, batches: list[Tensor]) -> Weights:
    """What a file of `made` holds: a rounding method says it itself, for others it is F32."""
    if not isinstance(method, Quantizer):
        return made.to_weights()
    return method.store(decoder, method.calibrate(decoder, batches))[0]


@pytest.mark.parametrize("kind", KINDS)
def test_input_is_untouched_and_not_shared(
    example: str, kind: str, tiny: Make, batches: list[Tensor]
) -> None:
    decoder = tiny(kind)
    before = fingerprint(decoder)
    made, _ = run(EXAMPLES[example], decoder, batches)
    assert fingerprint(decoder) == before
    with torch.no_grad():
        for value in made.parameters():
            value.fill_(7.0)
    assert fingerprint(decoder) == before


@pytest.mark.parametrize("kind", KINDS)
def test_report_equals_a_recount(
    example: str, kind: str, tiny: Make, batches: list[Tensor]
) -> None:
    decoder = tiny(kind)
    made, report = run(EXAMPLES[example], decoder, batches)
    stored = file_weights(EXAMPLES[example], decoder, made, batches)
    assert report.method == EXAMPLES[example].name
    assert report.parameters_before == sum(p.numel() for p in decoder.parameters())
    assert report.parameters_after == sum(p.numel() for p in made.parameters())
    assert report.bytes_before == sum(p.numel() * 4 for p in decoder.parameters())
    assert report.bytes_after == sum(t.data.nbytes for t in stored.values())
    if isinstance(EXAMPLES[example], SparsePruning):  # zeros take as much room as numbers
        assert report.bytes_after == report.bytes_before
    else:
        assert report.bytes_after < report.bytes_before
    difference = sum(c.bytes_before - c.bytes_after for c in report.changes)
    assert difference == report.bytes_before - report.bytes_after
    assert report.bits_per_weight == 8 * report.bytes_after / report.parameters_after


def test_same_seed_same_result(example: str, tiny: Make, batches: list[Tensor]) -> None:
    made = [run(EXAMPLES[example], tiny("llama"), batches) for _ in range(2)]
    assert fingerprint(made[0][0]) == fingerprint(made[1][0])
    assert made[0][1] == made[1][1]


def test_settings_and_report_survive_json(example: str, tiny: Make, batches: list[Tensor]) -> None:
    method = EXAMPLES[example]
    assert method_from_json(json.loads(json.dumps(method_to_json(method)))) == method
    _, report = run(method, tiny("llama"), batches)
    plain = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert plain["settings"] == method_to_json(method)["settings"]


def test_unknown_settings_are_refused(example: str) -> None:
    values = method_to_json(EXAMPLES[example])
    values["settings"]["no_such"] = 1
    with pytest.raises(ConfigError, match="no_such"):
        method_from_json(values)


@pytest.mark.parametrize("wrong", ["text", None, [1.5], -1, float("nan")])
def test_settings_of_another_type_are_refused(example: str, wrong: Any) -> None:
    method = EXAMPLES[example]
    for field in dataclasses.fields(method):  # type: ignore[arg-type]
        if wrong is None and field.default is None:
            continue  # it may be left open
        values = method_to_json(method)
        values["settings"][field.name] = wrong
        with pytest.raises(ConfigError):
            method_from_json(values)


@pytest.mark.parametrize("kind", KINDS)
def test_ties_are_kept(example: str, kind: str, tiny: Make, batches: list[Tensor]) -> None:
    decoder = tiny(kind)
    made, _ = run(EXAMPLES[example], decoder, batches)
    assert made.config.tie_embeddings is decoder.config.tie_embeddings
    assert (made.head is None) is decoder.config.tie_embeddings
    assert (
        "head.weight" in file_weights(EXAMPLES[example], decoder, made, batches)
    ) is not decoder.config.tie_embeddings


def test_zeros_in_what_keeps_its_shape_stay_zeros(
    example: str, tiny: Make, batches: list[Tensor]
) -> None:
    method = EXAMPLES[example]
    if isinstance(method, ResponseDistillation):
        return
    if getattr(method, "dtype", None) in WITH_OFFSETS:
        return
    decoder = tiny("llama")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in decoder.named_parameters():
            if value.dim() == 2 and name != "embed.weight":
                value[torch.rand(value.shape, generator=generator) < 0.5] = 0.0
    made, _ = run(EXAMPLES[example], decoder, batches)
    if isinstance(EXAMPLES[example], DepthPruning):  # blocks have moved: count instead
        share = float((made.layers[0].attn.q.weight == 0).float().mean())
        assert share == pytest.approx(0.5, abs=0.05)
        return
    old = dict(decoder.named_parameters())
    for name, value in made.named_parameters():
        if value.shape == old[name].shape:
            assert bool((value[old[name] == 0] == 0).all()), name


@pytest.mark.parametrize("empty", [[], [torch.zeros((0, 5), dtype=torch.int64)]])
def test_a_calibration_that_saw_nothing_fails(
    example: str, empty: list[Tensor], tiny: Make
) -> None:
    method = EXAMPLES[example]
    if not method.needs_calibration:
        assert method.calibrate(tiny("llama"), empty) is None
        return
    with pytest.raises(DataError, match=r"no tokens.*--data"):
        method.calibrate(tiny("llama"), empty)


def test_uncalibrated_apply_fails(example: str, tiny: Make) -> None:
    if EXAMPLES[example].needs_calibration:
        with pytest.raises((DataError, CheckFailedError)):
            EXAMPLES[example].apply(tiny("llama"), None)


def test_a_broken_model_is_refused_by_tensor(
    example: str, tiny: Make, batches: list[Tensor]
) -> None:
    decoder = tiny("llama")
    with torch.no_grad():
        decoder.layers[2].attn.v.weight[0, 0] = np.nan
    with pytest.raises(MiudoError, match=r"layers\.2\.attn\.v\.weight.*NaN"):
        run(EXAMPLES[example], decoder, batches)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["gguf", "folder"])
def test_exported_files_run_as_the_decoder_does(
    example: str, kind: str, form: str, tiny: Make, batches: list[Tensor], tmp_path: Path
) -> None:
    decoder = tiny(kind)
    made, _ = run(EXAMPLES[example], decoder, batches)
    method = EXAMPLES[example]
    path = tmp_path / ("model.gguf" if form == "gguf" else "model")
    model = ModelFile(
        config=made.config, weights=file_weights(EXAMPLES[example], decoder, made, batches),
        tokenizer=None, chat_template=None, record=None, architecture=kind, path=None,
    )  # fmt: skip
    if form == "gguf":
        write_gguf(path, model)
    elif kind == "gpt2" and isinstance(method, HiddenPruning):
        with pytest.raises(ModelFileError, match=r"head_dim is 16.*Export to GGUF"):
            write_folder(path, model)  # such folders know no heads that are more than d_model
        return
    else:
        write_folder(path, model)
    opened = open_model(path)
    ids = batches[0][0].tolist()
    with torch.no_grad():
        expected = made.logits(made(batches[0][:1]))[0].numpy()
    twin = TorchEngine(Decoder.from_weights(opened.config, opened.weights))
    np.testing.assert_allclose(all_logits(twin, ids), expected, rtol=0, atol=SAME_SUMS)
    native = NativeEngine(opened, activations="float")
    np.testing.assert_allclose(all_logits(native, ids), expected, rtol=0, atol=REFERENCE_PATH)


def all_logits(engine: Engine, ids: list[int]) -> Any:
    work = SeqWork(conversation=engine.open(), ids=ids, want=Want.ALL_LOGITS)
    return engine.step([work])[0].logits


def test_every_registered_method_is_here(example: str) -> None:
    assert {method.name for method in EXAMPLES.values()} == set(METHODS)
    assert METHODS[EXAMPLES[example].name] is type(EXAMPLES[example])
