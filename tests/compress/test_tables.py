"""A table's Gram is the curvature of what the model says, found here by brute force."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from miudo.compress.quantize.tables import table_gram
from miudo.decoder.decoder import Decoder
from miudo.errors import CheckFailedError

Make = Callable[[str], Decoder]


def exact_gram(decoder: Decoder, batches: list[Tensor]) -> Tensor:
    """The same sum with the expectation over drawn ids taken, an id at a time."""
    total = torch.zeros(64, 64, dtype=torch.float64)
    for row in (row for ids in batches for row in ids.split(1)):
        leaf = decoder.embed.weight.detach()[row].clone().requires_grad_()
        handle = decoder.embed.register_forward_hook(lambda *_, leaf=leaf: leaf)
        hidden = decoder(row)
        log_p = decoder.logits(hidden)[0].log_softmax(-1)
        handle.remove()
        p = log_p.detach().exp()
        for t in range(row.shape[1]):
            for v in range(log_p.shape[1]):
                (g,) = torch.autograd.grad(log_p[t, v], leaf, retain_graph=True)
                total += float(p[t, v]) * (g[0].double().T @ g[0].double())
        if decoder.head is None:
            h = hidden[0].detach().double()
            total += (h * (1 - p.double().square().sum(-1))[:, None]).T @ h
    return total


@pytest.mark.parametrize("kind", ["llama", "llama-untied"])
def test_the_gram_is_the_expected_one(kind: str, tiny: Make) -> None:
    decoder = tiny(kind)
    with torch.no_grad():
        decoder.embed.weight.mul_(5)
    batches = [torch.randint(0, 96, (1, 6), generator=torch.Generator().manual_seed(1))]
    wanted = exact_gram(decoder, batches)
    found = sum(table_gram(decoder, batches, seed).outer for seed in range(100)) / 100
    assert isinstance(found, Tensor)
    off = (found - wanted).norm() / wanted.norm()
    # A mean over 100 draws of a heavy-tailed square; twice the Gram would be off by 1.
    assert off < 0.35


def test_the_second_order_model_says_what_an_error_costs(tiny: Make, batches: list[Tensor]) -> None:
    """KL of a small error of all rows against tr(E F E^T) / 2 summed over their uses."""
    decoder = tiny("llama")
    with torch.no_grad():
        decoder.embed.weight.mul_(5)
    gram = table_gram(decoder, batches)
    assert gram.tokens == sum(ids.numel() for ids in batches)

    def cost(direction: Tensor) -> float:
        made = tiny("llama")
        with torch.no_grad():
            made.embed.weight.copy_(decoder.embed.weight + 1e-2 * direction)
            p, q = (
                torch.cat([m.logits(m(ids)).double().log_softmax(-1) for ids in batches])
                for m in (decoder, made)
            )
        return float((p.exp() * (p - q)).sum())

    values, vectors = torch.linalg.eigh(gram.outer)
    generator = torch.Generator().manual_seed(5)
    signs = torch.randint(0, 2, (96, 1), generator=generator).float() * 2 - 1
    weak, strong = (signs * vectors[:, i].float() for i in (0, -1))
    assert cost(strong) > 5 * cost(weak)
    assert values[-1] > 5 * values[0]


def test_of_many_rows_some_are_taken_from_end_to_end(
    tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("miudo.compress.quantize.tables._ENOUGH", 12)
    monkeypatch.setattr("miudo.compress.quantize.tables._PER_DIMENSION", 0)
    rows = torch.arange(12)[:, None].expand(12, 6)  # row i says i throughout
    seen: list[int] = []
    decoder = tiny("llama")
    decoder.embed.register_forward_hook(lambda *call: seen.append(int(call[1][0].flatten()[0])))
    gram = table_gram(decoder, [rows[:5], rows[5:]])
    assert seen == [0, 6]
    assert gram.tokens == 12


def test_a_table_that_nothing_depends_on_is_refused(tiny: Make, batches: list[Tensor]) -> None:
    decoder = tiny("llama-untied")
    assert decoder.head is not None
    with torch.no_grad():
        decoder.head.weight.zero_()
    with pytest.raises(CheckFailedError, match=r"embed\.weight"):
        table_gram(decoder, batches)


def test_nothing_is_left_on_the_decoder(
    tiny: Make, batches: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = tiny("llama")
    table_gram(decoder, batches)
    untouched(decoder)
    monkeypatch.setattr(decoder, "logits", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        table_gram(decoder, batches)
    untouched(decoder)


def untouched(decoder: Decoder) -> None:
    assert all(value.grad is None and value.requires_grad for value in decoder.parameters())
    assert not any("forward" in vars(block) for block in decoder.layers)
    assert not decoder.embed._forward_hooks


@pytest.mark.parametrize("kind", ["llama", "llama-untied", "gpt2", "neox", "gemma"])
def test_a_row_taken_in_parts_gives_the_same_gram(
    kind: str, tiny: Make, batches: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = tiny(kind)

    def sure(p: Tensor, *_: object, **__: object) -> Tensor:
        return p.argmax(-1, keepdim=True)  # drawn ids hang on the parts

    monkeypatch.setattr("torch.multinomial", sure)
    whole = table_gram(decoder, batches)
    monkeypatch.setattr("miudo.compress.quantize.tables._POSITIONS", 5)
    parts = table_gram(decoder, batches)
    assert (parts.outer - whole.outer).norm() < 1e-4 * whole.outer.norm()
