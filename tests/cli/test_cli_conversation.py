"""A conversation of `miudo run`: turns, commands, several lines, history, and a real terminal."""

import codecs
import os
import pty
import re
import select
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from miudo.cli.answering import AnswerStopped
from miudo.cli.commands import COMMANDS, command
from miudo.cli.conversing import converse
from miudo.cli.talk import Talk
from miudo.cli.turns import Conversation
from miudo.cli.typed import Typed, TypedTexts, history_file
from miudo.config import ModelConfig
from miudo.engine.generate import GenerateSettings
from miudo.errors import MiudoError, RequestError, UsageError
from miudo.formats import ModelFile
from miudo.formats.gguf import write_gguf
from miudo.protocol import Message, SamplingSettings
from miudo.text.tokenizer import train_bpe

TINY = Path(__file__).parents[1] / "data" / "tiny"
TEMPLATE = "{{ messages }}"


class Model:
    """Stands for loading, rendering and answering: keeps what was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[list[Message]] = []
        self.talks: list[Talk] = []
        self.replies: Iterator[str | BaseException] = iter(())
        monkeypatch.setattr(Talk, "ids", lambda talk, messages: messages)
        monkeypatch.setattr("miudo.cli.turns.answer", self._answer)

    def talk(self, template: str | None = TEMPLATE, temperature: float = 0.7) -> Talk:
        settings = GenerateSettings(sampling=SamplingSettings(temperature=temperature))
        return Talk("m", SimpleNamespace(), settings, template)  # type: ignore[arg-type]

    def _answer(self, talk: Talk, ids: Sequence[Any]) -> str:
        self.asked.append(list(ids))
        self.talks.append(talk)
        reply = next(self.replies, "fine")
        if isinstance(reply, BaseException):
            raise reply
        return reply


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    return Model(monkeypatch)


@pytest.fixture
def type_in(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes `input` give these lines, then the end; an exception is raised."""

    def use(*lines: str | BaseException) -> None:
        left = iter(lines)

        def give(mark: str = "") -> str:
            line = next(left, EOFError())
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr("builtins.input", give)

    return use


def turns(messages: Sequence[Message]) -> list[str]:
    return [f"{m.role[0]}:{m.content}" for m in messages]


def do(conversation: Conversation, line: str) -> None:
    found = command(line)
    assert found is not None
    found(conversation)


def test_a_conversation_keeps_its_turns(model: Model, type_in: Callable[..., None]) -> None:
    type_in("one", "", "two", "/clear", "three", "/bye", "never")
    converse(model.talk(), system="be brief", history=None)
    assert [turns(asked) for asked in model.asked] == [
        ["s:be brief", "u:one"],
        ["s:be brief", "u:one", "a:fine", "u:two"],
        ["s:be brief", "u:three"],
    ]


def test_without_a_template_each_text_stands_alone(
    model: Model, type_in: Callable[..., None]
) -> None:
    type_in("one", "two", "/retry")
    converse(model.talk(None), system=None, history=None)
    assert [turns(asked) for asked in model.asked] == [["u:one"], ["u:two"], ["u:two"]]


def test_ctrl_c_stops_an_answer_and_keeps_what_was_said(
    model: Model, type_in: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    model.replies = iter([AnswerStopped("half"), AnswerStopped(""), "whole"])
    type_in("one", "two", KeyboardInterrupt(), "/retry")
    converse(model.talk(), system=None, history=None)
    assert [turns(asked) for asked in model.asked] == [
        ["u:one"],
        ["u:one", "a:half", "u:two"],
        ["u:one", "a:half", "u:two"],
    ]
    told = capsys.readouterr().err
    assert "stopped; /retry asks again" in told
    assert "Ctrl-D or /bye leaves" in told


def test_an_error_leaves_the_conversation_as_it_was(
    model: Model, type_in: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    long = RequestError("the prompt has 9 tokens, the model 8 positions", remedy="Shorten it")
    model.replies = iter(["fine", long, "good"])
    type_in("one", "too long", "two")
    converse(model.talk(), system=None, history=None)
    assert turns(model.asked[-1]) == ["u:one", "a:fine", "u:two"]
    assert "9 tokens, the model 8 positions. Shorten it. /clear makes room" in (
        capsys.readouterr().err
    )


def test_retry_draws_anew_and_says_so_where_nothing_is_drawn(
    model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    conversation = Conversation(model.talk())
    with pytest.raises(RequestError, match="nothing was asked yet"):
        do(conversation, "/retry")
    conversation.say("one")
    do(conversation, "/retry")
    assert turns(model.asked[1]) == ["u:one"]
    assert [talk.settings.sampling.request for talk in model.talks] == [0, 1]
    conversation = Conversation(model.talk(temperature=0.0))
    conversation.say("one")
    do(conversation, "/retry")
    assert "the answer will be the same" in capsys.readouterr().err


def test_set_changes_settings_checked_by_type_and_range(
    model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    conversation = Conversation(model.talk())
    for line in ("temperature 0", "top-k = 5", "max_tokens=9", "stop END", "timings off"):
        do(conversation, f"/set {line}")
    settings = conversation.talk.settings
    assert (settings.sampling.temperature, settings.sampling.top_k) == (0.0, 5)
    assert (settings.max_tokens, settings.stop) == (9, ("END",))
    assert conversation.talk.timings is False
    do(conversation, "/set")
    shown = capsys.readouterr().err
    assert re.search(r"max_tokens +9\n", shown)
    assert "eos_ids" not in shown
    for line, told in (
        ("temprature 1", "Did you mean 'temperature'?"),
        ("temperature warm", "Give a number"),
        ("temperature -1", "allowed 0"),
        ("temperature", "gives no value"),
        ("max_tokens 0", "Give at least 1"),
        ("timings maybe", "Write on or off"),
    ):
        with pytest.raises(MiudoError, match=re.escape(told)):
            do(conversation, f"/set {line}")
    assert conversation.talk.settings == settings


def test_a_system_text_may_change_and_go(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    conversation = Conversation(model.talk(), "old")
    conversation.say("one")
    do(conversation, "/system be kind to cats")
    assert turns(conversation.messages) == ["s:be kind to cats", "u:one", "a:fine"]
    do(conversation, "/system")
    assert "be kind to cats" in capsys.readouterr().err
    do(conversation, "/system none")
    assert turns(conversation.messages) == ["u:one", "a:fine"]
    with pytest.raises(UsageError, match="needs a chat template"):
        do(Conversation(model.talk(None)), "/system be kind")


def test_what_is_saved_is_loaded_and_is_data_for_finetune(model: Model, tmp_path: Path) -> None:
    from miudo.data.chats import ChatSettings, read_chats

    path = tmp_path / "a talk.json"
    conversation = Conversation(model.talk(), "be brief")
    with pytest.raises(UsageError, match="names no file"):
        do(conversation, "/save")
    conversation.say("olá")
    do(conversation, f"/save {path}")
    conversation.say("again")
    do(conversation, "/save")
    other = Conversation(model.talk())
    do(other, f"/load {path}")
    assert other.messages == conversation.messages
    with pytest.raises(UsageError, match="is there already"):
        do(_said(model), f"/save {path}")
    jsonl = tmp_path / "talk.jsonl"
    jsonl.write_bytes(path.read_bytes())
    (chat,) = read_chats([jsonl], ChatSettings())
    assert list(chat.messages) == conversation.messages


def _said(model: Model) -> Conversation:
    conversation = Conversation(model.talk())
    conversation.say("one")
    return conversation


@pytest.mark.parametrize(
    "content",
    ["", "[1", "[]", "{}", '{"messages": []}', '{"messages": [{"role": "cat", "content": ""}]}'],
)
def test_what_is_no_conversation_is_not_loaded(model: Model, tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    conversation = _said(model)
    before = list(conversation.messages)
    with pytest.raises(MiudoError, match=r"x\.json: .*Load what /save wrote"):
        do(conversation, f"/load {path}")
    assert conversation.messages == before


@pytest.mark.parametrize("line", ["/etc/passwd is what?", "hello", "/ what", "/Users are many"])
def test_a_path_is_a_text(line: str) -> None:
    assert command(line) is None


def test_an_unknown_command_names_the_nearest_and_help_names_all(
    model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="Did you mean /clear"):
        command("/claer")
    with pytest.raises(UsageError, match="/clear takes nothing"):
        command("/clear it all")
    do(Conversation(model.talk()), "/help")
    shown = capsys.readouterr().err
    assert all(f"/{name}" in shown for name in COMMANDS)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["one"], Typed("one")),
        (["one\\", "two\\", "three"], Typed("one\ntwo\nthree", quoted=True)),
        (['"""one', "", '/two"""'], Typed("one\n\n/two", quoted=True)),
        (['"""', "  one", '"""'], Typed("  one", quoted=True)),
        (['"""/bye"""'], Typed("/bye", quoted=True)),
        ([], None),
        (['"""one'], None),
    ],
)
def test_texts_of_several_lines(
    type_in: Callable[..., None], lines: list[str], expected: Typed | None
) -> None:
    type_in(*lines)
    assert TypedTexts().read() == expected


class Terminal:
    """A program on a terminal of its own; `until` reads on till it says something."""

    def __init__(self, *arguments: str, **variables: str) -> None:
        self._own, other = pty.openpty()
        command = [sys.executable, "-m", "miudo", *arguments]
        environment = {**os.environ, "TERM": "dumb", "NO_COLOR": "1", **variables}
        self.process = subprocess.Popen(
            command, stdin=other, stdout=other, stderr=other, env=environment,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )  # fmt: skip
        os.close(other)
        self.seen = ""
        # What is read at once may end within a character.
        self._text = codecs.getincrementaldecoder("utf-8")("replace")

    def until(self, wanted: str, seconds: float = 30.0) -> str:
        """Returns what was printed up to `wanted`."""
        end = time.monotonic() + seconds
        while wanted not in self.seen:
            ready, _, _ = select.select([self._own], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{wanted!r} did not come: {self.seen!r}"
            try:
                self.seen += self._text.decode(os.read(self._own, 4096))
            except OSError:  # it has ended
                raise AssertionError(f"ended without {wanted!r}: {self.seen!r}") from None
        before, _, self.seen = self.seen.partition(wanted)
        return before + wanted

    def more(self, seconds: float = 30.0) -> None:
        """Waits until something comes beyond what was read."""
        if not self.seen:
            ready, _, _ = select.select([self._own], [], [], seconds)
            assert ready, "nothing came"

    def type(self, text: str) -> None:
        os.write(self._own, text.encode())

    def interrupt(self, wanted: str) -> None:
        """Types Ctrl-C at a prompt until `wanted` comes, as a person would.

        Python's readline sees a signal only while it waits for a key: one that comes a moment
        before is seen with the next.
        """
        for _ in range(5):
            self.type("\x03")
            ready, _, _ = select.select([self._own], [], [], 2.0)
            if ready:
                break
        self.until(wanted)

    def ends(self) -> int:
        """Returns the exit code."""
        try:
            while os.read(self._own, 4096):
                pass
        except OSError:
            pass
        return self.process.wait(30)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._own)


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_on_a_terminal(tmp_path: Path) -> None:
    with Terminal("run", str(TINY), "--temperature", "0", "--max-tokens", "400") as terminal:
        first = terminal.until("Ctrl-D leaves")
        for label in ("model", "size", "memory", "licence", "template"):
            assert re.search(rf"^{label} +\S", first, re.MULTILINE), first
        terminal.until(">>> ")
        terminal.type('"""two\r')
        terminal.until("... ")
        terminal.type('lines"""\r')
        terminal.until("new tokens")
        terminal.until(">>> ")
        terminal.type("half a line")
        terminal.until("half a line")  # its echo: the line is being edited
        terminal.interrupt("leaves")
        terminal.until(">>> ")
        terminal.type("/shwo\r")
        terminal.until("Did you mean /show?")
        terminal.until(">>> ")
        terminal.type("\x04")
        assert terminal.ends() == 0
    kept = history_file()
    assert kept.read_text() == '"""two\nlines"""\n/shwo\n'
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700


def test_ctrl_c_stops_the_answer_and_not_the_program(
    tmp_path: Path, make_model: Callable[..., Any]
) -> None:
    """With a model that never ends by itself and takes seconds to its last position."""
    tokenizer = train_bpe(["olá, two lines"], vocab_size=320)
    config = ModelConfig.uniform(
        vocab_size=320, d_model=256, n_layers=8, n_heads=4, d_ff=1024, max_positions=1 << 16
    )
    weights = make_model(config).weights
    path = tmp_path / "endless.gguf"
    write_gguf(path, ModelFile(config, weights, tokenizer.spec, None, None, "llama", None))
    with Terminal("run", str(path), "--max-tokens", "60000", MIUDO_NO_HISTORY="1") as terminal:
        terminal.until(">>> ")
        terminal.type("olá\r")
        terminal.until("olá\r\n")
        terminal.more()
        terminal.type("\x03")
        assert "stopped; /retry asks again" in terminal.until(">>> ")
        terminal.type("/bye\r")
        assert terminal.ends() == 0
    assert not history_file().exists()


def test_a_history_that_cannot_be_kept_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "history").mkdir()
    TypedTexts(tmp_path / "history")
    assert "no history" in capsys.readouterr().err
