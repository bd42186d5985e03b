"""The synthetic corpus: a pure function of its seed, labelled, grammatical, rich."""

from __future__ import annotations

import importlib.util
import json
import re
from itertools import islice
from pathlib import Path
from random import Random
from types import ModuleType

import pytest

from miudo.data.grammar import Grammar
from miudo.data.sample import sample_documents, write_sample
from miudo.data.sources import read_documents
from miudo.errors import ConfigError
from miudo.records import Record

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "sample_corpus.py"


def seeded(seed: int) -> Random:
    return Random(seed)  # noqa: S311 - text, not secrets


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sample_corpus", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_the_same_seed_gives_the_same_bytes_and_a_label(tmp_path: Path, name: str) -> None:
    one = write_sample(tmp_path / "1" / name, seed=3, size_bytes=30_000)
    two = write_sample(tmp_path / "2" / name, seed=3, size_bytes=30_000)
    other = write_sample(tmp_path / "3" / name, seed=4, size_bytes=30_000)
    assert one.outputs == two.outputs != other.outputs
    assert 30_000 <= (tmp_path / "1" / name).stat().st_size < 40_000
    values = json.loads((tmp_path / "1" / f"{name}.record.json").read_text())
    record = Record.from_json(values)
    assert record.settings["synthetic"] is True
    assert "synthetic" in record.notes[0]
    documents = list(read_documents([tmp_path / "1" / name]))
    assert len(documents) == next(m.value for m in record.measurements if m.name == "documents")
    assert not any("synthetic" in d.text for d in documents)


def test_every_line_says_what_it_is(tmp_path: Path) -> None:
    write_sample(tmp_path / "a.jsonl", seed=0, size_bytes=60_000)
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert all(line["synthetic"] is True for line in lines)
    assert {line["kind"] for line in lines} == {"story", "shop", "home"}
    assert {line["language"] for line in lines} == {"en", "pt"}
    assert all(("messages" in line) == (line["kind"] != "story") for line in lines)


def test_a_larger_corpus_begins_with_the_smaller() -> None:
    assert list(islice(sample_documents(5), 9)) == list(islice(sample_documents(5), 20))[:9]


def test_documents_are_whole_sentences() -> None:
    for document in islice(sample_documents(1), 300):
        assert not re.search(r"[{}\[\]|~\x00]|  | [.,!?]", document.text), document.text
        assert not re.search(r"\b[ao] [ao] |\bde [oa] |\ban? an? ", document.text), document.text
        for message in document.messages:
            assert message.content[0].isupper() or not message.content[0].isalpha()
        roles = [m.role for m in document.messages if m.role != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + roles[len(roles) // 2 * 2 :]


def test_no_two_documents_are_alike() -> None:
    texts = [d.text for d in islice(sample_documents(2), 300)]
    assert len(set(texts)) == 300


def test_a_small_corpus_is_beyond_a_trigram_model(benchmark: ModuleType) -> None:
    texts = [d.text for d in islice(sample_documents(0), 900)]
    perplexity, unknown, learned, measured = benchmark.measure(texts, 0)
    assert perplexity >= benchmark.BAR
    assert unknown < 0.05
    assert learned > measured > 1000


def test_kneser_ney_is_a_distribution_and_learns(benchmark: ModuleType) -> None:
    words = ["a", "b", "a", "b", "a", "c", "a", "b", "d", "a", "b"]
    model = benchmark.KneserNey([words, ["d", "c"]])
    for context in (("a", "b"), ("<s>", "<s>"), ("x", "y"), ("b", "a")):
        assert sum(model.probability(context, w) for w in model.vocabulary) == pytest.approx(1.0)
    assert model.probability(("b", "a"), "b") > model.probability(("b", "a"), "d")
    assert model.probability(("a", "b"), "never") == 0.0


def test_a_bad_seed_or_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="seed"):
        next(sample_documents(-1))
    with pytest.raises(ConfigError, match="size_bytes"):
        write_sample(tmp_path / "a.txt", size_bytes=0)


def test_the_grammar_binds_agrees_and_chooses() -> None:
    source = """
= cor
vermelho, azul
= bicho f
raposa
> x
{b=cor+bicho.um} viu [o|o] mar. {b:ele|ela} estava cansad{b:o|a} e {cor~b}, perto de {b.o}.
"""
    grammar = Grammar("pt", [source])
    text = grammar.document("x", seeded(0))
    assert re.fullmatch(
        r"Uma raposa (vermelha|azul) viu o mar\. Ela estava cansada e (vermelha|azul), "
        r"perto da raposa\.",
        text,
    )
    with pytest.raises(ConfigError, match="nowhere"):
        grammar.expand("{nowhere}", seeded(0), {})


def test_english_articles_and_plurals() -> None:
    grammar = Grammar("en", ["= w\nowl, unicorn, hour, knife, box, berry\n"])
    seen = {grammar.expand("{w.a} {w.s}", seeded(i), {}) for i in range(300)}
    words = " ".join(seen)
    assert {"an owl", "a unicorn", "an hour"} <= {" ".join(s.split()[:2]) for s in seen}
    assert all(p in words for p in ("knives", "boxes", "berries", "owls"))
