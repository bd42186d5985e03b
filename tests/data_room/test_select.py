"""Documents chosen by two models, against scores added up by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from miudo.config import ModelConfig
from miudo.data.select import Scorer, select, text_score
from miudo.data.sources import ReadSettings
from miudo.engine.fake import FakeEngine, babble
from miudo.errors import CheckFailedError, ConfigError, DataError, UsageError
from miudo.protocol import FloatArray
from miudo.records import Artefact, Record
from miudo.text.tokenizer import TextTokenizer, train_bpe

LINES = ReadSettings(split="line")
WORDS = "o gato dorme na casa azul e o cachorro corre no parque verde"


def tokenizer(size: int) -> TextTokenizer:
    return train_bpe([WORDS], vocab_size=size)


def scorer(
    name: str, size: int, seed: int, positions: int = 16, seen: list[int] | None = None
) -> Scorer:
    words = tokenizer(size)
    config = ModelConfig.uniform(
        n_layers=1, d_model=8, n_heads=1, d_ff=8, vocab_size=size, max_positions=positions,
        eos_ids=(0,),
    )  # fmt: skip
    made = babble(size, order=2, seed=seed)

    def logits_of(ids: Sequence[int]) -> FloatArray:
        if seen is not None:
            seen.append(len(ids))
        return made(ids)

    engine = FakeEngine(config, logits_of)
    return Scorer(engine, words, Artefact("model", name, name * 64))


def by_hand(which: Scorer, seed: int, text: str, window: int) -> float:
    """Token by token, in windows that each begin with the end token."""
    ids = which.tokenizer.encode(text)
    logits_of, total = babble(which.engine.config.vocab_size, order=2, seed=seed), 0.0
    for at in range(0, len(ids), window):
        known = [0]
        for number in ids[at : at + window]:
            z = logits_of(known).astype(np.float64)
            total += z[number] - np.log(np.exp(z - z.max()).sum()) - z.max()
            known.append(number)
    return total


@pytest.fixture
def text(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    lines = [" ".join(draw.choice(WORDS.split(), draw.integers(3, 15))) for _ in range(12)]
    path = tmp_path / "text.txt"
    path.write_text("\n".join(lines))
    return path


def test_the_best_share_is_kept_in_order(tmp_path: Path, text: Path) -> None:
    teacher, reference = scorer("a", 280, 1), scorer("b", 300, 2)
    out = tmp_path / "kept.jsonl"
    report = select(teacher, reference, [str(text)], out, keep=0.25, read=LINES)
    lines = text.read_text().split("\n")
    scores = [
        (by_hand(teacher, 1, line, 15) - by_hand(reference, 2, line, 15)) / len(line.encode())
        for line in lines
    ]
    best = sorted(np.argsort(scores)[-3:].tolist())
    found = [json.loads(line)["text"].strip() for line in out.read_text().splitlines()]
    assert found == [lines[i] for i in best]
    assert (report.documents, report.kept) == (12, 3)
    assert report.mean_score == pytest.approx(np.mean(scores), rel=1e-3)
    assert report.mean_score_kept == pytest.approx(np.mean([scores[i] for i in best]), rel=1e-3)
    record = Record.from_json(json.loads((tmp_path / "kept.jsonl.record.json").read_text()))
    assert [part.role for part in record.inputs] == ["model", "model", "source"]
    assert not (tmp_path / "kept.jsonl.scores").exists()


def test_a_broken_run_scores_nothing_twice(tmp_path: Path, text: Path) -> None:
    teacher, reference = scorer("a", 280, 1), scorer("b", 300, 2)
    whole, out = tmp_path / "whole.jsonl", tmp_path / "kept.jsonl"
    select(teacher, reference, [str(text)], whole, read=LINES)

    def stop(scored: int) -> None:
        if scored == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        select(teacher, reference, [str(text)], out, read=LINES, note=stop)
    assert not out.exists()
    with (tmp_path / "kept.jsonl.scores").open("ab") as file:
        file.write(b'{"sha256": "ab')
    seen: list[int] = []
    again = scorer("a", 280, 1, seen=seen)
    other = Scorer(teacher.engine, teacher.tokenizer, Artefact("model", "c", "c" * 64))
    with pytest.raises(UsageError, match="other models"):
        select(other, reference, [str(text)], out, read=LINES, resume=True)
    select(again, reference, [str(text)], out, read=LINES, resume=True)
    assert out.read_bytes() == whole.read_bytes()
    left = text.read_text().split("\n")[7:]
    assert len(seen) == sum(len(teacher.tokenizer.encode(line)) for line in left)


def test_a_broken_model_and_wrong_wishes_are_refused(tmp_path: Path, text: Path) -> None:
    teacher, reference = scorer("a", 280, 1), scorer("b", 300, 2)
    for keep in (0.0, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="keep is"):
            select(teacher, reference, [str(text)], tmp_path / "x.jsonl", keep=keep)
    with pytest.raises(DataError, match=r"share of 0\.5 of 1 documents"):
        select(teacher, reference, [str(text)], tmp_path / "y.jsonl")
    chat = tmp_path / "chat.jsonl"
    chat.write_text('{"messages": [{"role": "user", "content": "a"}]}')
    with pytest.raises(DataError, match="conversation"):
        select(teacher, reference, [str(chat)], tmp_path / "z.jsonl")
    with pytest.raises(UsageError, match="JSONL"):
        select(teacher, reference, [str(text)], tmp_path / "x.txt")

    def broken(ids: object) -> FloatArray:
        return np.full(280, np.nan, dtype=np.float32)

    bad = Scorer(FakeEngine(teacher.engine.config, broken), teacher.tokenizer, teacher.artefact)
    with pytest.raises(CheckFailedError, match="not finite"):
        text_score(bad, "gato")
