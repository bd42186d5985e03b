from pathlib import Path

import pytest

from miudo.data.dedupe import DedupeSettings
from miudo.data.mixture import Source
from miudo.data.pack import PackSettings, hold_out, pack
from miudo.data.pipeline import PrepareSettings, prepare
from miudo.data.sources import Document, ReadSettings
from miudo.errors import DataError, MissingError
from miudo.evaluate.texts import read_domains, read_texts
from miudo.text.tokenizer import train_bpe

TEXTS = ["um gato dorme", "a dog runs", "o cão corre", "the cat sleeps", "olá"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    documents = [Document(text, "x", i) for i, text in enumerate(TEXTS)]
    return pack(
        documents, train_bpe(TEXTS, vocab_size=261), tmp_path / "data", held_out=0.5, seed=1
    ).folder


def test_a_data_folder_gives_the_documents_it_held_out(folder: Path) -> None:
    found = list(read_texts([folder]))
    assert found
    assert set(found) < set(TEXTS)


def test_files_give_their_documents(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.jsonl").write_text('{"text": "two"}\n{"text": "três"}\n')
    assert list(read_texts([tmp_path / "a.txt", tmp_path / "b.jsonl"])) == ["one", "two", "três"]


@pytest.mark.parametrize(
    ("limit", "expected"), [(100, ["olá", "two"]), (4, ["olá"]), (3, ["ol"]), (6, ["olá", "tw"])]
)
def test_a_limit_cuts_the_last_document_between_characters(
    tmp_path: Path, limit: int, expected: list[str]
) -> None:
    (tmp_path / "b.jsonl").write_text('{"text": "olá"}\n{"text": "two"}\n')
    assert list(read_texts([tmp_path / "b.jsonl"], max_bytes=limit)) == expected


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingError):
        list(read_texts([tmp_path / "none.txt"]))


def test_a_data_folder_without_held_out_text_is_told(tmp_path: Path) -> None:
    documents = [Document(TEXTS[0], "x", 0)]
    data = pack(documents, train_bpe(TEXTS, vocab_size=261), tmp_path / "d", held_out=0.0)
    with pytest.raises(DataError, match="nothing was held out"):
        list(read_texts([data.folder]))


def training(folder: Path) -> set[str]:
    (texts,) = read_domains([str(folder)], split="train").values()
    return set(texts)


def test_the_training_part_is_the_rest_and_pieces_change_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out, train = set(read_texts([folder])), training(folder)
    assert held_out | train == set(TEXTS)
    assert not held_out & train
    for size in (1, 3, 7):
        monkeypatch.setattr("miudo.evaluate.texts._PIECE", size)
        assert training(folder) == train
        assert set(read_texts([folder])) == held_out


def test_a_limit_is_of_each_input(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("abcdef")
    inputs = [tmp_path / "a.txt", tmp_path / "b.txt"]
    assert list(read_texts(inputs, max_bytes=2)) == ["ab", "ab"]


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    """A data folder of two sources that held text out and one that did not."""
    for name in ("cats", "dogs"):
        lines = "".join(f"{i} {name} sat on a mat\n" for i in range(40))
        (tmp_path / f"{name}.txt").write_text(lines)
    (tmp_path / "one.txt").write_text("one document and no more")
    by_line = ReadSettings(split="line")
    sources = (
        Source("cats", "cats.txt", "CC0-1.0", read=by_line),
        Source("one", "one.txt", "CC0-1.0", held_out=0.0),
        Source("dogs", "dogs.txt", "CC0-1.0", read=by_line),
    )
    settings = PrepareSettings(
        vocab_size=300,
        root=tmp_path,
        sources=sources,
        dedupe=DedupeSettings(near=None),
        pack=PackSettings(held_out=0.3, seed=1),
    )
    return prepare([], tmp_path / "mixed", settings=settings).folder


@pytest.mark.parametrize("piece", [1 << 20, 7])
def test_each_source_of_a_mixture_is_a_domain(
    mixture: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr("miudo.evaluate.texts._PIECE", piece)
    found = {name: list(texts) for name, texts in read_domains([str(mixture)]).items()}
    assert list(found) == [(str(mixture), "cats"), (str(mixture), "dogs")]
    for (_, source), texts in found.items():
        expected = [f"{i} {source} sat on a mat" for i in range(40)]
        assert texts == [text for text in expected if hold_out(text, 1) < 0.3]
    assert list(read_texts([mixture])) == [t for texts in found.values() for t in texts]
    cut = read_domains([str(mixture)], max_bytes=30)
    assert [sum(len(t.encode()) for t in texts) for texts in cut.values()] == [30, 30]


def test_what_is_absent_is_told_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a text")
    with pytest.raises(MissingError, match="none"):
        read_domains([str(tmp_path / "a.txt"), str(tmp_path / "none.txt")])


def test_two_sources_of_one_name_are_refused(mixture: Path) -> None:
    manifest = mixture / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"dogs"', '"cats"'))
    with pytest.raises(DataError, match="one name"):
        read_domains([str(mixture)])
