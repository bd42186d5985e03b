"""The loss counts answers alone, over the whole step, and sees one sample at a time."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from miudo.data.samples import PackedSamples, pack_samples
from miudo.decoder.lora import LoraSettings, add_lora
from miudo.text.answers import Sample
from miudo.train.evaluation import held_out_loss
from miudo.train.loop import fit
from miudo.train.loss import Marks, cross_entropy
from miudo.train.plan import make_plan
from miudo.train.stepper import Stepper

# float32 sums of losses near 4 in another order.
CLOSE = 1e-5


def sample(*pairs: tuple[int, bool]) -> Sample:
    return Sample(tuple(i for i, _ in pairs), tuple(c for _, c in pairs))


ONE = sample((3, False), (9, False), (17, True), (4, True))
TWO = sample((8, False), (30, True), (41, False), (5, True), (6, True))
THREE = sample((50, False), (2, True))


def by_hand(decoder: Any, samples: list[Sample]) -> float:
    """The mean over every counted id of every sample, each computed alone."""
    losses = []
    with torch.no_grad():
        for s in samples:
            ids = torch.tensor([s.ids])
            logits = decoder.logits(decoder(ids[:, :-1]))[0]
            each = F.cross_entropy(logits, ids[0, 1:], reduction="none")
            losses += each[torch.tensor(s.counted[1:])].tolist()
    return float(np.mean(losses))


def rows(*samples: Sample) -> PackedSamples:
    return pack_samples(samples, 8, pad_id=0)


def test_the_loss_is_that_of_the_answers_each_sample_alone(small: Any) -> None:
    decoder, data = small.decoder(), rows(ONE, TWO, THREE)
    ids = torch.from_numpy(data.batch(0, 0, 2, 8))
    marks = Marks(*(torch.from_numpy(a) for a in data.batch_marks(0, 0, 2, 8)))
    found = float(cross_entropy(decoder, ids, marks)[0].detach())
    assert found == pytest.approx(by_hand(decoder, [ONE, TWO, THREE]), abs=CLOSE)
    assert found != pytest.approx(float(cross_entropy(decoder, ids)[0].detach()), abs=0.01)
    settings = small.settings(eval_tokens=64)
    assert held_out_loss(decoder, data, settings) == pytest.approx(found, abs=CLOSE)


def test_a_step_is_a_mean_over_tokens_not_of_means(small: Any) -> None:
    """Rows of 5 and 1 counted ids: one batch of both, or two batches of one."""
    data = rows(
        sample(*((i, i > 21) for i in range(18, 27))),
        sample((7, False), *((i, i == 40) for i in range(33, 41))),
    )
    assert data.n_blocks(8) == 2
    found = []
    for changes in ({"batch_size": 2}, {"batch_size": 1, "accumulate": 2}):
        settings = small.settings(optimizer="adamw", **changes)
        run = Stepper(small.decoder(), data, settings, cross_entropy)
        result = run.take(0, make_plan(settings, steps=8, compiled=False))
        found.append((result.loss, result.norm))
    assert found[0] == pytest.approx(found[1], abs=CLOSE)
    samples = list(data._samples)
    assert found[0][0] == pytest.approx(by_hand(small.decoder(), samples), abs=CLOSE)


def test_what_is_not_counted_gives_no_gradient(small: Any) -> None:
    """Only the ids of a sample before its last answer can matter."""
    decoder = small.decoder()
    data = rows(sample((3, False), (9, True), (17, False), (4, False)))
    ids = torch.from_numpy(data.batch(0, 0, 1, 8))
    marks = Marks(*(torch.from_numpy(a) for a in data.batch_marks(0, 0, 1, 8)))
    decoder.embed.weight.grad = None
    hidden = decoder(ids[:, :-1], segments=marks.segments)
    assert hidden.shape[1] == 8
    loss = cross_entropy(decoder, ids, marks)[0]
    wanted = by_hand(decoder, [sample((3, False), (9, True))])
    assert float(loss.detach()) == pytest.approx(wanted, abs=CLOSE)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_packed_runs_resume_to_the_bit(
    small: Any, tmp_path: Path, lora: bool, checkpoint: bool
) -> None:
    data = rows(ONE, TWO, THREE, TWO, ONE)
    settings = small.settings(checkpoint_activations=checkpoint, batch_size=2)

    def decoder() -> Any:
        made = small.decoder()
        return add_lora(made, LoraSettings(rank=2, dropout=0.3), 0) if lora else made

    fit(decoder(), data, settings, tmp_path / "a")
    fit(decoder(), data, settings, tmp_path / "b")
    small.forget_after(tmp_path / "b", 4)
    torch.rand(3)
    fit(decoder(), data, settings, tmp_path / "b", resume=True)
    assert small.hashes(tmp_path / "a", 8) == small.hashes(tmp_path / "b", 8)
    plain = dataclasses.replace(settings, checkpoint_activations=not checkpoint)
    fit(decoder(), data, plain, tmp_path / "c")  # computing again changes no bit either
    assert small.hashes(tmp_path / "a", 8) == small.hashes(tmp_path / "c", 8)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_side_paths_alone_are_trained_and_saved(small: Any, tmp_path: Path, optimizer: str) -> None:
    from safetensors.torch import load_file

    decoder = add_lora(small.decoder(), LoraSettings(rank=2, targets=("q", "down")), 0)
    before = {n: p.detach().clone() for n, p in decoder.named_parameters()}
    fit(decoder, rows(ONE, TWO), small.settings(optimizer=optimizer, batch_size=1), tmp_path / "a")
    moved = {n for n, p in decoder.named_parameters() if not torch.equal(p, before[n])}
    trained = {
        f"layers.{i}.{m}.lora_{f}"
        for i in (0, 1)
        for m in ("attn.q", "mlp.down")
        for f in ("down", "up")
    }
    assert moved == trained
    folder = tmp_path / "a" / "checkpoints" / "step-00000008"
    assert set(load_file(folder / "weights.safetensors")) == trained
    moments = {n.split("/")[1] for n in load_file(folder / "optimizer.safetensors")}
    assert moments == trained
