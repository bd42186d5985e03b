"""AWQ's scales are exact before rounding, and kept only where they help."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from miudo.compress.quantize.awq import AWQ, apply_fold, folds
from miudo.compress.quantize.importance import ImportanceRounding
from miudo.compress.walk import walk
from miudo.config import Mlp, ModelConfig, Norm, Parallel
from miudo.decoder.decoder import Decoder
from miudo.tensors import DType

Make = Callable[[str], Decoder]


def logits(decoder: Decoder, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return decoder.logits(decoder(ids))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen", "one norm", "two norms", "plain"])
def test_folding_leaves_the_logits(kind: str, tiny: Make, batches: list[Tensor]) -> None:
    if kind in ("llama", "gpt2", "qwen"):
        decoder = tiny(kind)
    else:
        rest: dict[str, object] = {"mlp": Mlp.PLAIN, "mlp_bias": True}
        if kind != "plain":
            rest = {"parallel": Parallel(kind.replace(" ", "_")), "qkv_bias": True}
        if kind == "two norms":
            rest |= {"norm": Norm.LAYER, "norm_bias": True}
        config = ModelConfig.uniform(
            n_layers=2, d_model=64, n_heads=4, d_ff=96, vocab_size=96, max_positions=48, **rest
        )
        decoder = Decoder(config)
        decoder.initialise(4)
    expected = logits(decoder, batches[0])
    generator = torch.Generator().manual_seed(1)
    names = set()
    for station in walk(decoder, batches):
        if station.name == "head":
            continue
        layer = decoder.config.layers[int(station.name[-1])]
        for fold in folds(station.module, station.name, decoder.config, layer):
            columns = station.weights[fold.readers[0]].shape[1]
            scale = torch.rand(columns, generator=generator) * 3 + 0.2
            apply_fold(fold, station.weights, scale)
            names.add(fold.name.partition(": ")[2])
    torch.testing.assert_close(logits(decoder, batches[0]), expected, rtol=1e-4, atol=1e-5)
    wanted = {
        "llama": {"norm to q", "norm to up", "up to down"},  # its keys are grouped
        "gpt2": {"norm to q", "v to o", "norm to up"},  # its activation is in the way
        "qwen": {"norm to q", "norm to up", "up to down"},
        "one norm": {"norm to q", "v to o", "up to down"},
        "two norms": {"norm to q", "v to o", "norm to up", "up to down"},
        "plain": {"norm to q", "v to o", "norm to up"},
    }
    assert names == wanted[kind]


def outlying(decoder: Decoder, channel: int = 7) -> Decoder:
    """One channel of a norm's output is large, as in big models, and read by small weights."""
    with torch.no_grad():
        for block in decoder.layers:
            for norm, readers in (
                (block.attn_norm, (block.attn.q, block.attn.k, block.attn.v)),
                (block.mlp_norm, (block.mlp.gate, block.mlp.up)),
            ):
                norm.weight[channel] *= 40
                for reader in readers:
                    reader.weight[:, channel] *= 0.2
    return decoder


def block_errors(decoder: Decoder, made: Decoder, batches: list[Tensor]) -> float:
    """The squared error of the first block's output: both have the inputs of one table."""
    with torch.no_grad():
        made.embed.weight.copy_(decoder.embed.weight)
    first, other = (next(walk(m, batches)).outputs() for m in (decoder, made))
    return sum(float((a - b).square().sum()) for a, b in zip(first, other, strict=True))


def test_an_outlying_channel_is_spared(tiny: Make, batches: list[Tensor]) -> None:
    decoder = outlying(tiny("llama"))
    method = AWQ(DType.Q4_0, steps=5)
    made, report = method.apply(decoder, method.calibrate(decoder, batches))
    plain = ImportanceRounding(DType.Q4_0)
    weighed, _ = plain.apply(decoder, plain.calibrate(decoder, batches))
    errors = [block_errors(decoder, m, batches) for m in (made, weighed)]
    assert errors[0] < errors[1]
    assert "scales kept for" in report.notes[0]
    assert "layers.0: norm to" in report.notes[0]
    assert (
        report.bytes_after == plain.store(decoder, plain.calibrate(decoder, batches))[1].bytes_after
    )


def test_scales_that_do_not_help_a_block_are_taken_back(
    tiny: Make, batches: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = tiny("llama")
    plain, _ = ImportanceRounding(DType.Q8_0).apply(
        decoder, ImportanceRounding().calibrate(decoder, batches)
    )
    # What the search finds is made a harm: most channels are rounded to nothing.
    harm = torch.full((200,), 1.0)
    harm[::7] = 900.0
    monkeypatch.setattr(AWQ, "_best_scale", lambda *a: harm[: len(a[3].outer)].clone())
    method = AWQ(DType.Q8_0, steps=2)
    made, report = method.apply(decoder, method.calibrate(decoder, batches))
    assert report.notes[0].startswith("scales kept for 0 of 9")
    for norm in ("attn_norm", "mlp_norm"):
        torch.testing.assert_close(
            getattr(made.layers[1], norm).weight, getattr(plain.layers[1], norm).weight
        )
