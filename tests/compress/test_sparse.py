"""Sparse pruning against Optimal Brain Surgeon done the slow way, and against plain NumPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from miudo.compress.hessian import invert, output_error
from miudo.compress.method import Report
from miudo.compress.prune import sparse
from miudo.compress.prune.allocation import Allocation, allocate
from miudo.compress.prune.pattern import Pattern
from miudo.compress.prune.scores import magnitude, wanda
from miudo.compress.prune.sparse import SparseMethod, SparsePruning
from miudo.compress.prune.sparsegpt import sparsegpt
from miudo.compress.station import Gram
from miudo.compress.walk import walk
from miudo.decoder.decoder import Decoder
from miudo.errors import CheckFailedError, ConfigError, DataError

Make = Callable[[str], Decoder]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(size: int, tokens: int = 300) -> Tensor:
    """Correlated, of unequal sizes, as the inputs of a trained matrix are."""
    return drawn(tokens, size, seed=1) @ drawn(size, size, seed=2) * torch.linspace(0.2, 3.0, size)


def brain_surgeon(weight: Tensor, outer: Tensor, pattern: str, block: int) -> Tensor:
    """Optimal Brain Surgeon, a column after the other, each with an inverse of its own."""
    rows, size = weight.shape
    damped = outer + 0.01 * outer.diagonal().mean() * torch.eye(size, dtype=torch.float64)
    rest = [torch.linalg.inv(damped[j:, j:]) for j in range(size)]
    work, gone = weight.clone(), torch.zeros(rows, size, dtype=torch.bool)
    for j in range(size):
        price = torch.stack([work[:, c] ** 2 / rest[c][0, 0] for c in range(size)], dim=1)
        if ":" in pattern:
            kept, group = map(int, pattern.split(":"))
            if j % group == 0:
                for row in range(rows):
                    places = sorted((float(price[row, j + c]), row, j + c) for c in range(group))
                    gone[row, [c for _, _, c in places[: group - kept]]] = True
        elif j % block == 0:
            end = min(j + block, size)
            so_far = round(float(pattern) * rows * j)
            count = round(float(pattern) * rows * end) - so_far
            places = [(float(price[r, c]), r, c) for r in range(rows) for c in range(j, end)]
            for _, r, c in sorted(places)[:count]:
                gone[r, c] = True
        change = torch.where(gone[:, j], work[:, j] / rest[j][0, 0], 0.0)
        work[:, j:] -= change[:, None] * rest[j][0]
        work[:, j] = torch.where(gone[:, j], 0.0, work[:, j])
    return work


@pytest.mark.parametrize(
    ("pattern", "block"), [("0.5", 8), ("0.5", 128), ("0.3", 10), ("2:4", 8), ("4:8", 128)]
)
def test_sparsegpt_is_the_brain_surgeon_in_blocks(pattern: str, block: int) -> None:
    weight, x = drawn(5, 24), inputs(24)
    outer = x.T @ x
    made = sparsegpt(weight, invert(outer, where="w"), Pattern.parse(pattern), block=block)
    torch.testing.assert_close(made, brain_surgeon(weight, outer, pattern, block))
    plain = magnitude(weight, Pattern.parse(pattern))
    assert output_error(weight, made, outer) < 0.8 * output_error(weight, plain, outer)


def test_the_last_weights_of_a_row_are_right_for_the_first() -> None:
    # Without the update two of three equal inputs pruned would lose two thirds of the output.
    x = drawn(40, 1).expand(40, 3) + 1e-3 * drawn(40, 3, seed=5)
    weight = torch.tensor([[0.9, 0.95, 1.0]], dtype=torch.float64)
    inverse = invert(x.T @ x, damping=1e-4, where="w")
    made = sparsegpt(weight, inverse, Pattern(2 / 3))
    assert int((made == 0).sum()) == 2
    assert float(made.sum()) == pytest.approx(2.85, rel=1e-2)


@pytest.mark.parametrize("pattern", ["0.5", "0.37", "2:4"])
def test_wanda_is_three_lines_of_numpy(pattern: str) -> None:
    weight, x = drawn(6, 16), inputs(16)
    made = wanda(weight, Gram(x.T @ x, len(x)), Pattern.parse(pattern)).numpy()
    score = np.abs(weight.numpy()) * np.linalg.norm(x.numpy(), axis=0)
    width, count = (4, 2) if ":" in pattern else (16, round(float(pattern) * 16))
    order = np.argsort(score.reshape(-1, width), axis=1)[:, :count]
    expected = weight.numpy().reshape(-1, width).copy()
    np.put_along_axis(expected, order, 0.0, axis=1)
    np.testing.assert_array_equal(made, expected.reshape(6, 16))


def test_magnitude_takes_the_smallest_of_all() -> None:
    weight = torch.tensor([[1.0, -0.1, 3.0, 0.2], [-0.3, 5.0, 0.4, 6.0]])
    made = magnitude(weight, Pattern.parse("0.5"))
    assert made.tolist() == [[1.0, 0.0, 3.0, 0.0], [0.0, 5.0, 0.0, 6.0]]
    assert magnitude(weight, Pattern.parse("1:4")).count_nonzero() == 2


def test_what_is_zero_stays_zero_and_counts() -> None:
    weight, x = drawn(8, 32), inputs(32)
    zero = torch.rand(8, 32, generator=torch.Generator().manual_seed(4)) < 0.4
    weight[zero] = 0.0
    made = sparsegpt(weight, invert(x.T @ x, where="w"), Pattern.parse("0.5"), block=8)
    assert bool((made[zero] == 0).all())
    assert int((made == 0).sum()) == 128
    already = sparsegpt(weight, invert(x.T @ x, where="w"), Pattern.parse("0.2"), block=8)
    assert torch.equal(already, weight)


def test_pruning_and_rounding_in_one_pass_beat_one_after_the_other() -> None:
    weight, x = drawn(16, 32), inputs(32)
    inverse, pattern = invert(x.T @ x, where="w"), Pattern.parse("0.25")

    def to_grid(w: Tensor) -> Tensor:
        return torch.round(w * 2) / 2

    joint = sparsegpt(weight, inverse, pattern, rounding=lambda _, rest: to_grid(rest[:, 0]))
    torch.testing.assert_close(joint, to_grid(joint), rtol=0, atol=0)
    after = to_grid(sparsegpt(weight, inverse, pattern))
    outer = x.T @ x
    assert output_error(weight, joint, outer) < 0.8 * output_error(weight, after, outer)


@pytest.mark.parametrize("text", ["0", "1", "1.5", "4:2", "2:2", "0:4", "nan", "two", "2:4:8", ""])
def test_patterns_that_cannot_be(text: str) -> None:
    with pytest.raises(ConfigError, match="pattern"):
        Pattern.parse(text)


def test_rows_that_are_no_groups_are_named(tiny: Make, batches: list[Tensor]) -> None:
    with pytest.raises(ConfigError, match=r"layers\.0\.attn\.q\.weight.*64.*groups of 7"):
        SparsePruning("3:7").calibrate(tiny("llama"), batches)


KINDS = ("llama", "llama-untied", "gpt2", "qwen", "neox", "gemma")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", SparseMethod)
def test_every_matrix_of_the_blocks_and_nothing_else(
    kind: str, method: SparseMethod, tiny: Make, batches: list[Tensor]
) -> None:
    decoder = tiny(kind)
    made, report = _run(SparsePruning("0.5", method), decoder, batches)
    old = dict(decoder.named_parameters())
    for name, value in made.named_parameters():
        if name.startswith("layers.") and value.dim() == 2:
            assert int((value == 0).sum()) == value.numel() // 2, name
        else:
            assert torch.equal(value, old[name]), name
    assert "(50.00%)" in report.notes[0]
    assert report.changes == ()


@pytest.mark.parametrize("method", SparseMethod)
def test_a_block_is_pruned_on_what_the_pruned_ones_give(
    method: SparseMethod, tiny: Make, batches: list[Tensor]
) -> None:
    decoder = tiny("llama")
    made, _ = _run(SparsePruning("0.5", method), decoder, batches)
    # q of block 1 hangs on block 0 alone, which in `made` is as it was left.
    stations = walk(made, batches)
    next(stations)
    name = "layers.1.attn.q.weight"
    gram = next(stations).grams()[name]
    weight = dict(decoder.named_parameters())[name]
    pattern = Pattern.parse("0.5")
    expected = {
        SparseMethod.MAGNITUDE: lambda: magnitude(weight, pattern),
        SparseMethod.WANDA: lambda: wanda(weight, gram, pattern),
        SparseMethod.SPARSEGPT: lambda: sparsegpt(weight, invert(gram.outer, where=name), pattern),
    }[method]()
    torch.testing.assert_close(dict(made.named_parameters())[name].detach(), expected)


def test_sparsegpt_hurts_the_logits_least(tiny: Make, batches: list[Tensor]) -> None:
    decoder = tiny("llama")
    with torch.no_grad():
        whole = decoder.logits(decoder(batches[0]))
        off = {
            method: float((m.logits(m(batches[0])) - whole).square().mean())
            for method in SparseMethod
            for m in [_run(SparsePruning("0.5", method), decoder, batches)[0]]
        }
    assert off[SparseMethod.SPARSEGPT] < 0.8 * off[SparseMethod.MAGNITUDE]


def test_a_worse_error_than_magnitudes_is_refused(
    tiny: Make, batches: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse, "sparsegpt", lambda w, _i, p: -magnitude(w, p))
    with pytest.raises(CheckFailedError, match=r"layers\.0\.attn\.q.*above magnitude's"):
        _run(SparsePruning(), tiny("llama"), batches)


def test_a_sparse_matrix_may_be_better_off_by_magnitude(
    tiny: Make, batches: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is zero must stay zero and cannot make up for others: then magnitude may win.
    decoder = tiny("llama")
    matrices = [v for n, v in decoder.named_parameters() if n.startswith("layers.") and v.dim() > 1]
    with torch.no_grad():
        for value in matrices:
            value.copy_(magnitude(value, Pattern(0.25)))
    monkeypatch.setattr(sparse, "sparsegpt", lambda w, _i, p: -magnitude(w, p))
    made, report = _run(SparsePruning(), decoder, batches)
    assert torch.equal(
        dict(made.named_parameters())["layers.0.attn.q.weight"],
        magnitude(dict(decoder.named_parameters())["layers.0.attn.q.weight"], Pattern(0.5)),
    )
    assert any("21 matrices, sparse before, are better off by magnitude" in n for n in report.notes)


@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
def test_too_few_zeros_are_refused(
    pattern: str, tiny: Make, batches: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse, "sparsegpt", lambda w, _i, _p: w.detach().clone())
    with pytest.raises(CheckFailedError, match=r"layers\.0\.attn\.q.*the pattern wants 2048"):
        _run(SparsePruning(pattern), tiny("llama"), batches)


def test_a_raised_damping_is_reported(
    tiny: Make, batches: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sparse,
        "invert",
        lambda outer, *, damping, where: invert(
            # Off by rounding, much exaggerated: the smallest damping cannot mend it.
            outer - 0.05 * outer.diagonal().mean() * torch.eye(len(outer), dtype=outer.dtype),
            damping=damping,
            where=where,
        ),
    )
    _, report = _run(SparsePruning(), tiny("llama"), batches[:1])
    assert any("layers.0.attn.q.weight: damping 0.01" in note for note in report.notes)


def test_no_text_is_refused(tiny: Make) -> None:
    with pytest.raises(DataError, match="no tokens"):
        SparsePruning().calibrate(tiny("llama"), [])


def test_a_block_with_more_outliers_keeps_more(tiny: Make, batches: list[Tensor]) -> None:
    decoder = tiny("llama")
    counts = []
    for station in walk(decoder, batches):
        if station.name != "head":
            parts = [
                np.abs(w.detach().numpy()) * np.sqrt(station.grams()[n].outer.diagonal().numpy())
                for n, w in station.weights.items()
            ]
            scores = np.concatenate([part.ravel() for part in parts])
            counts.append(np.mean(scores > 5 * scores.mean()))
    kept = 0.2 * (np.array(counts) - min(counts)) / (max(counts) - min(counts))
    shares = allocate(decoder, batches, Pattern(0.5), Allocation.OUTLIERS, 0.1)
    np.testing.assert_allclose(shares, 0.5 - (kept - kept.mean()), atol=1e-9)
    made, report = _run(SparsePruning(allocation=Allocation.OUTLIERS, spread=0.1), decoder, batches)
    zeros = [int(q.eq(0).sum()) for n, q in made.named_parameters() if n.endswith("q.weight")]
    assert zeros == [round(share * 64 * 64) for share in shares]
    assert any("shares of zeros a block" in note for note in report.notes)


def test_a_block_whose_pruning_costs_most_keeps_most(tiny: Make, batches: list[Tensor]) -> None:
    decoder = tiny("llama")
    rises = []
    for i in range(3):
        trial = Decoder.from_weights(decoder.config, decoder.to_weights())
        with torch.no_grad():
            for value in trial.layers[i].parameters():
                if value.dim() == 2:
                    value.copy_(magnitude(value, Pattern(0.5)))
            parts = [(trial.logits(trial(ids[:, :-1])), ids[:, 1:]) for ids in batches]
            losses = [
                torch.nn.functional.cross_entropy(z.flatten(0, 1), y.flatten()) for z, y in parts
            ]
        rises.append(float(torch.stack(losses).mean()))
    shares = allocate(decoder, batches, Pattern(0.5), Allocation.LOSS, 0.1)
    low, high = min(rises), max(rises)
    kept = np.array([0.2 * (rise - low) / (high - low) for rise in rises])
    np.testing.assert_allclose(shares, 0.5 - (kept - kept.mean()), atol=1e-4)


def test_uneven_shares_are_for_shares_alone(tiny: Make, batches: list[Tensor]) -> None:
    with pytest.raises(ConfigError, match="N:M"):
        _run(SparsePruning("2:4", allocation=Allocation.OUTLIERS), tiny("llama"), batches)


def _run(method: SparsePruning, decoder: Decoder, batches: list[Tensor]) -> tuple[Decoder, Report]:
    return method.apply(decoder, method.calibrate(decoder, batches))
