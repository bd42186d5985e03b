"""Reading text: every kind and compression, and errors that name file, line and byte."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
from pathlib import Path

import pytest

from miudo.data.sources import Document, ReadSettings, find_files, read_documents
from miudo.errors import ConfigError, DataError, MissingError


def texts(path: object, **settings: object) -> list[str]:
    return [d.text for d in read_documents([path], ReadSettings(**settings))]  # type: ignore[arg-type,list-item]


def put(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_plain_text_is_one_document_unless_it_is_parted(tmp_path: Path) -> None:
    assert texts(put(tmp_path, "a.txt", "one\n\ntwo\n")) == ["one\n\ntwo"]
    assert texts(put(tmp_path, "b.txt", "one\n\n\ntwo\nmore\n\n\n\n\nthree")) == [
        "one",
        "two\nmore",
        "three",
    ]
    marked = put(tmp_path, "c.txt", "one\n\n\nstill\n<|endoftext|>\ntwo\n<|endoftext|>\n\n")
    assert texts(marked) == ["one\n\n\nstill", "two"]
    assert len(texts(marked, split="file")) == 1
    assert texts(put(tmp_path, "d.txt", "a\r\n\r\n\r\nb\r\n")) == ["a", "b"]


def test_wikitext_is_parted_at_article_headings(tmp_path: Path) -> None:
    text = " \n = First = \n \n Body , with = signs = in it . \n = = Part = = \n more\n"
    text += " \n = Second one = \n \n End . \n"
    found = texts(put(tmp_path, "wiki.tokens", text))
    assert [t.split("\n")[0] for t in found] == [" = First = ", " = Second one = "]
    assert "= = Part = =" in found[0]


def test_jsonl_gives_text_or_messages(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    lines = [{"text": "x"}, {"messages": turns, "kind": "shop"}, {"body": "no", "text": "y"}]
    path = put(tmp_path, "a.jsonl", "\n".join(map(json.dumps, lines)) + "\n\n")
    found = list(read_documents([path]))
    assert [d.text for d in found] == ["x", "q\na", "y"]
    assert [m.role for m in found[1].messages] == ["user", "assistant"]
    assert found[2] == Document("y", str(path), 2)
    assert texts(put(tmp_path, "b.jsonl", '{"body": "z"}'), field="body") == ["z"]


def test_tables_give_a_column(tmp_path: Path) -> None:
    csv = put(tmp_path, "a.csv", 'id,text\n1,"two\nlines, ""quoted"""\n\n2,x\n')
    assert texts(csv) == ['two\nlines, "quoted"', "x"]
    assert texts(put(tmp_path, "a.tsv", "id\tbody\n1\tz\n"), field="body") == ["z"]
    long = "y" * 300_000
    assert texts(put(tmp_path, "b.csv", f"text\n{long}\n")) == [long]
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["p", "q"], "n": [1, 2]}), path)
    assert texts(path) == ["p", "q"]
    for field, says in (("n", "int64"), ("other", "no column 'other'")):
        with pytest.raises(DataError, match=says):
            texts(path, field=field)


@pytest.mark.parametrize(("pack", "suffix"), [(gzip.compress, "gz"), (lzma.compress, "xz")])
def test_compression_is_known_by_content(tmp_path: Path, pack: object, suffix: str) -> None:
    data = pack(b'{"text": "x"}\n')  # type: ignore[operator]
    assert texts(put(tmp_path, f"a.jsonl.{suffix}", data)) == ["x"]
    assert texts(put(tmp_path, "b.jsonl", data)) == ["x"]


@pytest.mark.parametrize("suffix", ["gz", "xz"])
def test_a_cut_off_archive_is_refused(tmp_path: Path, suffix: str) -> None:
    pack = gzip.compress if suffix == "gz" else lzma.compress
    data = pack(os.urandom(5000).hex().encode())
    path = put(tmp_path, f"a.txt.{suffix}", data[:-20])
    with pytest.raises(DataError, match="cut off or damaged"):
        texts(path)
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 255
    with pytest.raises(DataError, match="cut off or damaged"):
        texts(put(tmp_path, f"b.txt.{suffix}", bytes(flipped)))


def test_folders_are_read_in_order_and_globs_too(tmp_path: Path) -> None:
    for name in ("b.txt", "a/c.txt", "a/z.jsonl.gz", ".hidden/x.txt", "readme.pdf", "a/.x.txt"):
        content = gzip.compress(b'{"text": "x"}') if name.endswith("gz") else name.encode()
        put(tmp_path, name, content)
    found = [p.relative_to(tmp_path).as_posix() for p in find_files(tmp_path)]
    assert found == ["a/c.txt", "a/z.jsonl.gz", "b.txt"]
    assert [p.name for p in find_files([str(tmp_path / "**/*.txt")])] == ["c.txt", "b.txt"]


def test_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        buffer = io.BytesIO(gzip.compress(b"one\n<|endoftext|>\ntwo"))

    monkeypatch.setattr("sys.stdin", Stdin())
    assert [(d.source, d.text) for d in read_documents("-")] == [("-", "one"), ("-", "two")]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"", "holds no text"),
        ("a.txt", b" \n\n ", "holds no text"),
        ("a.txt", b"ok\nab\0c", r"line 2, byte 5: holds a NUL byte"),
        ("a.txt", b"ok\nab\xffc", r"line 2, byte 5: byte 0xff is not UTF-8"),
        ("a.txt", "é".encode("utf-16"), "UTF-16"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', r"line 2: not JSON \(Expecting value, char"),
        ("a.jsonl", b"[" * 100_000, "line 1: not JSON"),
        ("a.jsonl", b'{"body": "x"}', r"no text under 'text'.*found: \['body'\]"),
        ("a.jsonl", b"5", "line 1: is a JSON int, not an object"),
        ("a.jsonl", b'{"text": 5}', "no text"),
        ("a.jsonl", b'{"text": "a\\ud800"}', "surrogate"),
        ("a.jsonl", b'{"messages": [{"role": "x", "content": "y"}]}', r"line 1: messages\[0\]"),
        ("a.csv", b"id,body\n1,x\n", "no column 'text'"),
        ("a.csv", b"id,text\n1\n", "line 2: has 1 columns"),
        ("a.csv", b'id,text\n1,"x', "not CSV"),
        ("a.parquet", b"PAR1 and no more", "Parquet"),
    ],
)
def test_text_that_cannot_be_read_names_where(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    path = put(tmp_path, name, content)
    with pytest.raises(DataError, match=says) as caught:
        texts(path)
    assert str(path) in str(caught.value)


def test_bad_bytes_may_be_replaced(tmp_path: Path) -> None:
    assert texts(put(tmp_path, "a.txt", b"a\xffb"), errors="replace") == ["a\ufffdb"]
    path = put(tmp_path, "a.jsonl", b'{"text": "a\\ud800b"}')
    assert texts(path, errors="replace") == ["a?b"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    assert texts(put(tmp_path, "a.txt", b"\xef\xbb\xbfhi")) == ["hi"]
    assert texts(put(tmp_path, "a.jsonl", b'\xef\xbb\xbf{"text": "x"}')) == ["x"]
    with pytest.raises(DataError, match="line 1, byte 5"):
        texts(put(tmp_path, "b.txt", b"\xef\xbb\xbfhi\xff"))


def test_long_lines_and_documents_are_bounded(tmp_path: Path) -> None:
    path = put(tmp_path, "a.txt", "short\n" + "x" * 5000)
    with pytest.raises(DataError, match="line 2, byte 6: a line is longer than 1000 bytes"):
        texts(path, line_bytes=1000)
    with pytest.raises(DataError, match="a document is longer than 4000"):
        texts(path, document_bytes=4000)


def test_what_is_not_there_is_missing(tmp_path: Path) -> None:
    for item in (tmp_path / "no.txt", tmp_path, str(tmp_path / "*.txt")):
        with pytest.raises(MissingError):
            list(read_documents([item]))
    with pytest.raises(DataError, match="no input"):
        list(read_documents([]))


def test_a_pipe_is_refused_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(DataError, match="not a regular file"):
        texts(tmp_path / "pipe.txt")


@pytest.mark.parametrize(
    "values", [{"split": "x"}, {"errors": "ignore"}, {"kind": "pdf"}, {"line_bytes": 0}]
)
def test_settings_that_mean_nothing_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        ReadSettings(**values)  # type: ignore[arg-type]


def test_real_wikitext_is_read_by_article(shared: Path) -> None:
    path = shared / "data/en_prose/wikitext-2/wiki.valid.tokens.xz"
    found = texts(path)
    assert len(found) == 60
    assert found[0].startswith(" = Homarus gammarus = ")
