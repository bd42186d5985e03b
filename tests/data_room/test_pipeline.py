"""From files to a data folder with its record."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from miudo.data.dedupe import DedupeSettings
from miudo.data.pack import PackSettings, hold_out
from miudo.data.packed import DataSet
from miudo.data.pipeline import PrepareSettings, prepare
from miudo.data.sample import write_sample
from miudo.data.sources import RECORD_SUFFIX
from miudo.errors import DataError, MissingError
from miudo.files import sha256_file
from miudo.records import Record
from miudo.text.tokenizer import train_bpe

SETTINGS = PrepareSettings(
    vocab_size=400, dedupe=DedupeSettings(near=None), pack=PackSettings(held_out=0.2, seed=1)
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    texts = [f"a tale of {i} cats and {i} dogs" for i in range(50)]
    path.write_text("\n<|endoftext|>\n".join([*texts, texts[0], "x\u0001y"]))
    return path


def test_the_whole_way_is_recorded(source: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    data = prepare([source], tmp_path / "out", settings=SETTINGS, progress=lines.append)
    record = Record.read(tmp_path / "out")
    assert record is not None
    counted = {m.name: m.value for m in record.measurements}
    assert (record.verb, record.seed, record.name) == ("prepare", 1, "out")
    assert record.licence is None  # the source states none
    assert (counted["clean.documents"], counted["duplicates.exact"]) == (52, 1)
    assert counted["clean.characters_removed"] == 1
    assert counted["train.tokens"] == data.tokens("train")
    assert data.documents("train") + data.documents("held_out") == 51
    assert record.inputs[0].sha256 == sha256_file(source)
    assert record.outputs["train.bin"] == sha256_file(tmp_path / "out" / "train.bin")
    assert any("document 50" in note for note in record.notes)
    assert data.manifest["synthetic"] is False
    assert len(lines) == 3


def test_the_tokenizer_learns_nothing_from_held_out_text(tmp_path: Path) -> None:
    texts = [f"word{i} " * 30 for i in range(40)]
    (tmp_path / "a.txt").write_text("\n<|endoftext|>\n".join(texts))
    data = prepare([tmp_path / "a.txt"], tmp_path / "out", settings=SETTINGS)
    seen = [t.strip(" ") for t in texts if hold_out(t, 1) >= 0.2]
    assert 0 < len(seen) < 40
    expected = train_bpe([t + " " for t in seen], vocab_size=400)
    assert data.tokenizer().fingerprint == expected.fingerprint


def test_the_tokenizer_learns_nothing_from_the_one_held_out_of_few(tmp_path: Path) -> None:
    texts = [f"word{i} " * 30 for i in range(4)]
    share = 1e-6  # of four documents none falls below it: the lowest is held out
    lowest = min(texts, key=lambda text: hold_out(text.strip(), 1))
    (tmp_path / "a.txt").write_text("\n<|endoftext|>\n".join(t.strip() for t in texts))
    settings = replace(SETTINGS, pack=PackSettings(held_out=share, seed=1))
    data = prepare([tmp_path / "a.txt"], tmp_path / "out", settings=settings)
    assert data.documents("held_out") == 1
    expected = train_bpe([t.strip() for t in texts if t != lowest], vocab_size=400)
    assert data.tokenizer().fingerprint == expected.fingerprint


def test_no_folder_stands_without_its_record(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Record, "write", fail)
    with pytest.raises(KeyboardInterrupt):
        prepare([source], tmp_path / "out", settings=SETTINGS)
    assert not (tmp_path / "out").exists()


def test_a_given_tokenizer_is_used(source: Path, tmp_path: Path) -> None:
    tokenizer = train_bpe(["cats and dogs"], vocab_size=270)
    data = prepare([source], tmp_path / "out", tokenizer=tokenizer, settings=SETTINGS)
    assert data.tokenizer().fingerprint == tokenizer.fingerprint


def test_a_damaged_record_of_a_source_is_named(source: Path, tmp_path: Path) -> None:
    beside = source.with_name(source.name + RECORD_SUFFIX)
    beside.write_text('{"verb": ')
    with pytest.raises(DataError, match=f"{beside.name}: not JSON"):
        prepare([source], tmp_path / "out", settings=SETTINGS)
    assert not (tmp_path / "out").exists()


def test_the_sample_stays_labelled_synthetic(tmp_path: Path) -> None:
    write_sample(tmp_path / "s.jsonl", seed=1, size_bytes=60_000)
    data = prepare([tmp_path / "s.jsonl"], tmp_path / "out", settings=SETTINGS)
    record = Record.read(tmp_path / "out")
    assert data.manifest["synthetic"] is True
    assert record is not None
    assert record.notes[0].startswith("synthetic")
    assert [p.verb for p in record.parents] == ["sample"]
    assert record.licence == record.parents[0].licence == "Apache-2.0"
    ids = data.open_split()._window(0, data.tokens("train") - 1)
    assert {1, 2, 3} & set(ids.tolist())  # chats are framed by special tokens


def test_running_again_replaces_the_folder_whole(source: Path, tmp_path: Path) -> None:
    first = prepare([source], tmp_path / "out", settings=SETTINGS)
    second = prepare([source], tmp_path / "out", settings=SETTINGS)
    assert first.manifest == second.manifest
    assert DataSet.open(tmp_path / "out").manifest == second.manifest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "text.txt"]


def test_nothing_is_written_for_a_missing_source(tmp_path: Path) -> None:
    with pytest.raises(MissingError):
        prepare([tmp_path / "no.txt"], tmp_path / "out", settings=SETTINGS)
    assert not list(tmp_path.iterdir())
