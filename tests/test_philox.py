"""Random numbers: the published algorithm, NumPy's stream, and what orders are built on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miudo.philox import Orders, permutation, uniform

WORD = (1 << 64) - 1
words = st.integers(0, WORD)


def philox4x64(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Philox4x64-10 as Salmon et al. 2011 print it: multipliers, Weyl keys, ten rounds."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (
            second >> 64 ^ c1 ^ k0,
            second & WORD,
            first >> 64 ^ c3 ^ k1,
            first & WORD,
        )
        k0, k1 = k0 + 0x9E3779B97F4A7C15 & WORD, k1 + 0xBB67AE8584CAA73B & WORD
    return c0, c1, c2, c3


@pytest.mark.parametrize(
    ("counter", "key", "block"),
    [
        # The known answers that the authors publish with their library (kat_vectors).
        (
            (0, 0, 0, 0),
            (0, 0),
            (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B),
        ),
        (
            (WORD, WORD, WORD, WORD),
            (WORD, WORD),
            (0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0),
        ),
    ],
)
def test_the_oracle_here_gives_the_published_answers(
    counter: tuple[int, ...], key: tuple[int, ...], block: tuple[int, ...]
) -> None:
    assert philox4x64(counter, key) == block


@given(words, words, words)
def test_uniform_is_the_first_word_of_the_block_after_the_position(
    seed: int, request: int, position: int
) -> None:
    low, high = position + 1 & WORD, position + 1 >> 64
    block = philox4x64((low, high, 0, 0), (seed, request))
    assert uniform(seed, request, position) == (block[0] >> 11) * 2.0**-53


@given(words, words, words)
def test_uniform_lies_in_the_half_open_unit_interval(seed: int, request: int, at: int) -> None:
    value = uniform(seed, request, at)
    assert 0.0 <= value < 1.0


def test_uniform_fills_the_interval_evenly() -> None:
    draws = np.array([uniform(7, 0, i) for i in range(20_000)])
    counts = np.bincount((draws * 16).astype(int), minlength=16)
    chi_square = float(((counts - 1250.0) ** 2 / 1250.0).sum())
    # Fifteen degrees of freedom: a fair generator exceeds 49 once in 50,000 seeds.
    assert chi_square < 49.0
    assert abs(float(np.corrcoef(draws[:-1], draws[1:])[0, 1])) < 0.03


def test_seed_request_and_position_each_change_the_number() -> None:
    values = {uniform(0, 0, 0), uniform(1, 0, 0), uniform(0, 1, 0), uniform(0, 0, 1)}
    assert len(values) == 4


@given(words, st.integers(0, 1000), st.integers(0, 300))
def test_a_permutation_holds_each_item_once(seed: int, epoch: int, n: int) -> None:
    order = permutation(seed, epoch, n)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(n))
    assert order.tolist() == permutation(seed, epoch, n).tolist()


def test_a_permutation_sorts_the_words_of_the_published_algorithm() -> None:
    blocks = [philox4x64((i + 1, 0, 0, 0), (3, 5)) for i in range(3)]
    stream = [word for block in blocks for word in block][:10]
    expected = sorted(range(10), key=lambda i: stream[i])
    assert permutation(3, 5, 10).tolist() == expected


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {tuple(permutation(seed, epoch, 20)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_orders_are_sorted_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    sorted_epochs: list[int] = []

    def counted(seed: int, epoch: int, n: int) -> object:
        sorted_epochs.append(epoch)
        return permutation(seed, epoch, n)

    monkeypatch.setattr("miudo.philox.permutation", counted)
    orders = Orders()
    for epoch in (0, 0, 1, 0, 1, 2, 2):
        assert (orders.of(7, epoch, 9) == permutation(7, epoch, 9)).all()
    assert sorted_epochs == [0, 1, 2]
