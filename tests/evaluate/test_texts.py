from pathlib import Path

import pytest

from miudo.data.pack import pack
from miudo.data.sources import Document
from miudo.errors import DataError, MissingError
from miudo.evaluate.texts import read_texts
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


def test_the_training_part_is_the_rest_and_pieces_change_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out, train = set(read_texts([folder])), set(read_texts([folder], split="train"))
    assert held_out | train == set(TEXTS)
    assert not held_out & train
    for size in (1, 3, 7):
        monkeypatch.setattr("miudo.evaluate.texts._PIECE", size)
        assert set(read_texts([folder], split="train")) == train


def test_a_limit_is_of_each_input(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("abcdef")
    inputs = [tmp_path / "a.txt", tmp_path / "b.txt"]
    assert list(read_texts(inputs, max_bytes=2)) == ["ab", "ab"]
