"""Conversations out of files: spellings that people have, and every refusal by record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from miudo.data.chats import ChatSettings, Conversation, holds_chats, read_chats
from miudo.errors import ConfigError, DataError, MissingError
from miudo.protocol import Message

GOOD = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
PAIR = (Message("user", "hi"), Message("assistant", "hello"))


def write(path: Path, *records: Any) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def read(*inputs: str, **settings: Any) -> list[Conversation]:
    return list(read_chats(inputs, ChatSettings(**settings)))


def test_all_spellings_become_the_same_messages(tmp_path: Path) -> None:
    shared = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
    jsonl = write(
        tmp_path / "a.jsonl",
        {"messages": GOOD},
        {"conversations": shared},
        {"conversations": GOOD, "id": 7},
        {"prompt": "hi", "answer": "hello"},
    )
    csv, tsv = tmp_path / "b.csv", tmp_path / "c.tsv"
    csv.write_text("id,prompt,answer\n1,hi,hello\n")
    tsv.write_text("answer\tprompt\nhello\thi\n")
    found = read(jsonl, str(csv), str(tsv))
    assert [c.messages for c in found] == [PAIR] * 6
    assert found[1].where.endswith("a.jsonl, line 2")
    assert found[4].where.endswith("b.csv, line 2")


def test_a_system_text_beside_a_pair_counts(tmp_path: Path) -> None:
    record = {"prompt": "hi", "answer": "hello", "system": "be kind"}
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    assert read(str(tmp_path / "a.jsonl"))[0].messages[0] == Message("system", "be kind")


def test_columns_have_the_names_that_settings_give(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    table = pa.table({"q": ["hi", "a"], "a": ["hello", "b"], "s": ["be kind", ""]})
    pq.write_table(table, tmp_path / "d.parquet")
    found = read(str(tmp_path / "d.parquet"), prompt="q", answer="a", system="s")
    assert found[0].messages == (Message("system", "be kind"), *PAIR)
    assert found[1].messages[0].role == "user"  # an empty system column says nothing
    assert found[1].where.endswith("d.parquet, row 1")
    with pytest.raises(DataError, match=r"d\.parquet: has no column 'prompt'. Choose one of"):
        read(str(tmp_path / "d.parquet"))


def test_contents_in_parts_are_joined(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    path = write(tmp_path / "a.jsonl", turns(("user", parts), ("assistant", parts[:1])))
    assert [m.content for m in read(path)[0].messages] == ["a b", "a "]


def turns(*pairs: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": r, "content": c} for r, c in pairs]}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": []}, "messages is empty"),
        ({"messages": None}, "messages is empty or no list"),
        ({"messages": [{"content": "x"}]}, r"messages\[0\] has the keys \['content'\]"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\] has the keys \['role'\]"),
        ({"messages": ["x"]}, r"messages\[0\] is a str"),
        (turns(("user", "a"), ("tool", "b")), r"messages\[1\]\.role is 'tool'"),
        (turns(("user", "a"), ("assistant", "")), r"messages\[1\]\.content is empty \(assistant"),
        (turns(("user", " \n"), ("assistant", "b")), r"messages\[0\]\.content is empty \(user"),
        (turns(("user", 3), ("assistant", "b")), r"messages\[0\]\.content is a int"),
        (
            turns(("user", [{"type": "image_url", "image_url": "x"}]), ("assistant", "b")),
            r"messages\[0\]\.content is a list, not text. Give text alone",
        ),
        (turns(("user", "a"), ("assistant", [])), r"messages\[1\]\.content is a list"),
        (turns(("user", [{"type": "text", "text": 1}])), r"messages\[0\]\.content is a list"),
        (turns(("user", "a")), "has no answer of the assistant"),
        (turns(("system", "a")), "has no answer of the assistant"),
        (turns(("assistant", "a"), ("user", "b")), r"messages\[0\]\.role is assistant: expected"),
        (turns(("user", "a"), ("user", "b"), ("assistant", "c")), r"messages\[1\]\.role is user"),
        (
            turns(("user", "a"), ("assistant", "b"), ("system", "c"), ("assistant", "d")),
            r"messages\[2\]\.role is system",
        ),
        (turns(("user", "a"), ("assistant", "b"), ("user", "c")), "expected is an answer at the"),
        (turns(("user", "\ud800"), ("assistant", "b")), r"messages\[0\]\.content: character 0"),
        ({"question": "a"}, "has no messages and no text under 'prompt' .found: .'question'"),
        ({"prompt": "a"}, "no text under 'answer'"),
        ([1], "is a JSON list, not an object"),
    ],
)
def test_a_bad_record_is_named_with_its_field(tmp_path: Path, record: Any, message: str) -> None:
    path = write(tmp_path / "a.jsonl", {"messages": GOOD}, record)
    with pytest.raises(DataError, match=message) as caught:
        read(path)
    assert "a.jsonl, line 2" in str(caught.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps({"messages": GOOD}).encode() + b'\n{"messages": "\xff"}\n')
    with pytest.raises(DataError, match=r"line 2, byte .*: byte 0xff is not UTF-8"):
        read(str(path))
    path.write_text('{"messages": [\n')
    with pytest.raises(DataError, match="line 1: not JSON"):
        read(str(path))
    path.write_text("\n\n")
    with pytest.raises(DataError, match="holds no conversation"):
        read(str(path))
    with pytest.raises(MissingError):
        read(str(tmp_path / "absent.jsonl"))


def test_names_and_first_records_say_what_the_data_is(tmp_path: Path) -> None:
    chats = write(tmp_path / "a.jsonl", {"messages": GOOD})
    texts = write(tmp_path / "b.jsonl", {"text": "once"})
    (tmp_path / "c.txt").write_text("once")
    (tmp_path / "d.csv").write_text("text\nonce\n")
    plain = str(tmp_path / "c.txt")
    auto = ChatSettings()
    assert holds_chats([chats], auto)
    assert not holds_chats([texts], auto)
    assert not holds_chats([plain], auto)
    assert holds_chats([str(tmp_path / "d.csv")], auto)
    assert not holds_chats([str(tmp_path / "d.csv")], ChatSettings(kind="text"))
    with pytest.raises(DataError, match=r"c\.txt: is running text, other inputs are"):
        read(chats, plain)
    for both in ([chats, plain], [plain, chats], [texts, chats]):
        with pytest.raises(DataError, match="is running text, other inputs are conversations"):
            holds_chats(both, auto)
    assert not holds_chats([plain, chats], ChatSettings(kind="text"))
    odd = write(tmp_path / "e.jsonl", {"question": "a", "answer": "b"})
    with pytest.raises(DataError, match=r"e.jsonl, line 1: has no messages.*chat.prompt=KEY"):
        holds_chats([odd], auto)
    assert holds_chats([odd], ChatSettings(prompt="question"))
    assert not holds_chats([odd], auto, field="answer")
    (tmp_path / "f.json").write_text(json.dumps([{"messages": GOOD}]))
    with pytest.raises(DataError, match=r"f\.json: is JSON in one piece.*JSON Lines"):
        holds_chats([str(tmp_path / "f.json")], auto)
    for bad in ({"kind": "audio"}, {"held_out": 1.0}):
        with pytest.raises(ConfigError):
            ChatSettings(**bad)
