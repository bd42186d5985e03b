"""Prompts become conversations: order, record, resuming, what is left out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Lock

import pytest

from miudo.data.asked import AskReport, AskSettings, Teacher, ask, read_prompts
from miudo.data.chats import ChatSettings, read_chats
from miudo.data.pipeline import PrepareSettings, prepare
from miudo.data.sources import ReadSettings
from miudo.errors import ConfigError, DataError, MissingError, RequestError, UsageError
from miudo.protocol import Message, TextEvent
from miudo.records import Artefact, Record

BIG = Artefact("teacher", "big", "0" * 64)


class Parrot:
    """Answers in capitals; `fails` names prompts that go wrong, and how, the first times."""

    def __init__(self, **fails: list[Exception | str]) -> None:
        self.fails, self.asked, self._lock = fails, list[tuple[Message, ...]](), Lock()

    def generate(self, messages: Sequence[Message], *, max_tokens: int) -> Iterator[TextEvent]:
        with self._lock:
            self.asked.append(tuple(messages))
        text = messages[-1].content
        planned = self.fails.get(text, [])
        if planned:
            fault = planned.pop(0)
            if isinstance(fault, Exception):
                yield TextEvent("half an ans")
                raise fault
            yield TextEvent("" if fault == "empty" else "cut")
            yield TextEvent("", "length" if fault == "cut" else "stop", {"completion_tokens": 1})
            return
        yield TextEvent(text.upper())
        yield TextEvent("!", "stop", {"completion_tokens": 2})


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("um\ndois\n\ntrês\num\nquatro\n", encoding="utf-8")
    return path


def run(
    parrot: Parrot, prompts: Path, out: Path, *, resume: bool = False, **settings: object
) -> AskReport:
    made = AskSettings(**settings)  # type: ignore[arg-type]
    teacher = Teacher(parrot, {"model": "big"}, BIG)
    return ask(teacher, [str(prompts)], out, made, resume=resume)


@pytest.mark.parametrize("workers", [1, 3])
def test_conversations_come_in_the_order_of_the_prompts(
    tmp_path: Path, prompts: Path, workers: int
) -> None:
    out = tmp_path / "out.jsonl"
    report = run(Parrot(), prompts, out, workers=workers, system="Grite.")
    chats = [chat.messages for chat in read_chats([str(out)], ChatSettings())]
    assert [[m.content for m in chat] for chat in chats] == [
        ["Grite.", word, f"{word.upper()}!"] for word in ("um", "dois", "três", "quatro")
    ]
    assert (report.prompts, report.doubles, report.kept) == (5, 1, 4)
    assert report.completion_tokens == 8


def test_the_record_says_who_and_what(tmp_path: Path, prompts: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(Parrot(), prompts, out)
    values = json.loads((tmp_path / "out.jsonl.record.json").read_text())
    record = Record.from_json(values)
    assert record.inputs[0] == BIG
    assert record.inputs[1].sha256 == hashlib.sha256(prompts.read_bytes()).hexdigest()
    assert record.outputs == {"out.jsonl": hashlib.sha256(out.read_bytes()).hexdigest()}
    assert record.settings["teacher"] == {"model": "big"}
    assert {m.name: m.value for m in record.measurements}["kept"] == 4


def test_what_learns_from_it_knows_that_it_is_synthetic(tmp_path: Path, prompts: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(Parrot(), prompts, out)
    settings = PrepareSettings(vocab_size=300, dedupe=None, read=ReadSettings())
    data = prepare([out], tmp_path / "data", settings=settings)
    assert data.manifest["synthetic"] is True
    parent = Record.read(tmp_path / "data")
    assert parent is not None
    assert parent.parents[0].verb == "ask"


def test_a_broken_sitting_goes_on_without_asking_twice(tmp_path: Path, prompts: Path) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    run(Parrot(), prompts, whole)
    first = Parrot(três=[RequestError("no")])
    with pytest.raises(RequestError, match="no"):
        run(first, prompts, out)
    with pytest.raises(UsageError, match="--resume"):
        run(Parrot(), prompts, out)
    with out.open("ab") as file:  # kill -9 in the middle of a line
        file.write(b'{"messages": [{"ro')
    second = Parrot()
    report = run(second, prompts, out, resume=True)
    assert [m[-1].content for m in second.asked] == ["três", "quatro"]
    assert report.kept == 4
    assert out.read_bytes() == whole.read_bytes()


def test_another_sitting_than_the_first_is_refused(tmp_path: Path, prompts: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(Parrot(), prompts, out)
    with pytest.raises(UsageError, match="other settings"):
        run(Parrot(), prompts, out, resume=True, max_tokens=3)
    prompts.write_text("cinco\n", encoding="utf-8")
    with pytest.raises(UsageError, match="other prompts"):
        run(Parrot(), prompts, out, resume=True)
    (tmp_path / "out.jsonl.record.json").unlink()
    with pytest.raises(UsageError, match="no record"):
        run(Parrot(), prompts, out, resume=True)


def test_a_broken_answer_is_asked_for_again_and_then_given_up(
    tmp_path: Path, prompts: Path
) -> None:
    broken = MissingError("breaks off")
    run(Parrot(dois=[broken, broken]), prompts, tmp_path / "a.jsonl")
    assert "half" not in (tmp_path / "a.jsonl").read_text()
    with pytest.raises(MissingError, match="breaks off"):
        run(Parrot(dois=[broken] * 3), prompts, tmp_path / "b.jsonl")
    assert len((tmp_path / "b.jsonl").read_text().splitlines()) == 1


def test_empty_and_cut_answers_are_counted_and_left_out(tmp_path: Path, prompts: Path) -> None:
    def parrot() -> Parrot:
        return Parrot(um=["empty"], dois=["cut"])

    report = run(parrot(), prompts, tmp_path / "a.jsonl")
    assert (report.empty, report.cut, report.kept) == (1, 1, 2)
    report = run(parrot(), prompts, tmp_path / "b.jsonl", keep_cut=True)
    assert (report.empty, report.cut, report.kept) == (1, 1, 3)


def test_prompts_may_be_messages(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    turns = [("user", "a"), ("assistant", "b"), ("user", "c")]
    lines: list[object] = [
        {"prompt": "um"},
        {"messages": [{"role": role, "content": text} for role, text in turns]},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert list(read_prompts([path])) == [
        (Message("user", "um"),),
        tuple(Message(role, text) for role, text in turns),
    ]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", "line 1: not JSON"),
        ('{"text": "a"}', "no prompt"),
        ('{"prompt": " "}', "empty"),
        ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
         "ends with an answer"),
        ('{"messages": [{"role": "judge", "content": "a"}]}', "role"),
    ],
)  # fmt: skip
def test_a_prompt_that_is_none_is_refused_by_line(tmp_path: Path, line: str, what: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(line)
    with pytest.raises(DataError, match=what):
        list(read_prompts([path]))


def test_names_and_numbers_that_cannot_be_are_refused(tmp_path: Path, prompts: Path) -> None:
    with pytest.raises(UsageError, match="JSONL"):
        run(Parrot(), prompts, tmp_path / "out.txt")
    with pytest.raises(ConfigError, match="workers is 0"):
        AskSettings(workers=0)
