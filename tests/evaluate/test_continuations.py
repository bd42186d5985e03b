import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from miudo.engine.fake import FakeEngine, follow
from miudo.errors import DataError
from miudo.evaluate import continuations
from miudo.evaluate.continuations import Pair, encode_pair, score_pairs
from miudo.protocol import SeqWork, StepOut, Tokenizer

MakeEngine = Callable[..., FakeEngine]

# Scores pass through float32 on their way.
SCORE_TOLERANCE = 1e-5


class MergingTokenizer:
    """Letters a to j are ids 1 to 9 and 10; `bc` together is id 10, a space is id 9."""

    vocab_size = 11
    fingerprint = "merging"

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        ids, rest = [], text
        while rest:
            piece = "bc" if rest.startswith("bc") else rest[0]
            ids.append({"bc": 10, " ": 9}.get(piece) or ord(piece) - ord("a") + 1)
            rest = rest.removeprefix(piece)
        return ids


def test_the_border_is_where_the_prompt_alone_ends(make_engine: MakeEngine) -> None:
    config = make_engine().config
    tokenizer: Tokenizer = MergingTokenizer()  # type: ignore[assignment]
    assert encode_pair("a", " d", tokenizer, config) == Pair((0, 1), (9, 4))
    # Spaces at the end of the prompt go over.
    assert encode_pair("a ", "d", tokenizer, config) == Pair((0, 1), (9, 4))
    # `abcd` is a, bc, d: the prompt `ab` has two ids, so that d alone is left.
    assert encode_pair("ab", "cd", tokenizer, config) == Pair((0, 1, 2), (4,))
    with pytest.raises(DataError, match="no token of its own"):
        encode_pair("ab", "c", tokenizer, config)


def test_without_a_prompt_the_start_id_or_the_first_id_stands_before(
    make_engine: MakeEngine, letters: Tokenizer
) -> None:
    assert encode_pair("", "abc", letters, make_engine().config) == Pair((0,), (1, 2, 3))
    bare = make_engine(bos_id=None).config
    assert encode_pair("", "abc", letters, bare) == Pair((1,), (2, 3))


def test_a_prompt_beyond_the_positions_loses_its_beginning(
    make_engine: MakeEngine, letters: Tokenizer
) -> None:
    config = make_engine(max_positions=5).config
    # 1 + 3 + 3 ids, of which the last is never taken in: one too many.
    assert encode_pair("abc", "def", letters, config) == Pair((1, 2, 3), (4, 5, 6), cut=1)
    assert encode_pair("ab", "def", letters, config) == Pair((0, 1, 2), (4, 5, 6))
    assert encode_pair("abcj", "defgh", letters, config) == Pair((10,), (4, 5, 6, 7, 8), cut=4)
    with pytest.raises(DataError, match="longer than the model's 5 positions"):
        encode_pair("a", "bcdefg", letters, config)


@pytest.mark.parametrize(("values", "together"), [(1 << 22, 16), (1 << 22, 1), (1, 16), (24, 2)])
def test_sums_equal_those_of_whole_texts(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, values: int, together: int
) -> None:
    monkeypatch.setattr(continuations, "_MAX_CHUNK_VALUES", values)
    monkeypatch.setattr(continuations, "_TOGETHER", together)
    engine = make_engine()
    prompts = [(0, 1, 2, 3), (0, 4)]
    choices = [(5,), (6, 7, 8), (1, 2), (3, 4, 5, 6, 7), (9, 8, 7), (2,)]
    pairs = [Pair(p, c) for p in prompts for c in choices]
    found = score_pairs(engine, pairs)
    for pair, continuation in zip(pairs, found, strict=True):
        whole = engine.score((*pair.prompt, *pair.continuation))
        expected = whole.logprobs[len(pair.prompt) - 1 :].sum()
        assert continuation.logprob == pytest.approx(expected, abs=SCORE_TOLERANCE)
    # A choice of one id follows from the prompt alone; the others have a fork each.
    assert engine.opened == engine.closed == len(prompts) * (1 + 4)


def test_a_shared_prompt_is_taken_in_once(make_engine: MakeEngine) -> None:
    engine = make_engine()
    score_pairs(engine, [Pair((0, 1, 2), (i,)) for i in range(3, 9)])
    assert engine.steps == 1


def test_choices_share_steps(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, sizes = make_engine(), []
    step = engine.step

    def counted(batch: Sequence[SeqWork]) -> list[StepOut]:
        sizes.append(len(batch))
        return step(batch)

    monkeypatch.setattr(engine, "step", counted)
    score_pairs(engine, [Pair((0, 1), (i, 2)) for i in (3, 4)] + [Pair((0,), (5, 6))] * 20)
    assert sizes == [1, 2, 1, 16, 4]


def test_greedy_means_every_id_is_the_most_probable(make_engine: MakeEngine) -> None:
    engine = FakeEngine(make_engine().config, follow([3, 4, 5], 11))
    found = score_pairs(engine, [Pair((0,), (3, 4, 5)), Pair((0,), (3, 4)), Pair((0,), (3, 5))])
    assert [continuation.greedy for continuation in found] == [True, True, False]
    # One logit of 20 against ten of 0.
    assert found[1].logprob == pytest.approx(2 * -math.log1p(10 * math.exp(-20)), abs=1e-7)


def test_an_error_leaves_no_conversation_open(make_engine: MakeEngine) -> None:
    def logits(ids: object) -> np.ndarray:
        raise RuntimeError("broken")

    engine = FakeEngine(make_engine().config, logits)
    with pytest.raises(RuntimeError, match="broken"):
        score_pairs(engine, [Pair((0,), (1, 2))])
    assert engine.opened == engine.closed == 1
