"""Prompts in, conversations out: text that a teacher writes for a student to learn.

For: sequence-level distillation (Kim and Rush 2016): a JSONL file that `miudo finetune` and
`miudo prepare` read, its record beside it; gone on with after `kill -9`, no prompt asked twice.
Not for: the teacher itself: any `miudo.protocol.Generator` will do.
Read next: `miudo.data.chats`, which reads the file again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from miudo.data.ledger import Ledger
from miudo.data.lines import open_source, read_lines
from miudo.data.sources import RECORD_SUFFIX, encodable, file_kind, find_files
from miudo.errors import ConfigError, DataError, MissingError, RequestError, UsageError
from miudo.files import sha256_file
from miudo.plain_json import read_json, read_line, write_json
from miudo.protocol import Generator, Message
from miudo.records import Artefact, Measurement, Record
from miudo.text.chat import parse_messages

__all__ = ["AskReport", "AskSettings", "Teacher", "ask", "read_prompts"]

_LINE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class AskSettings:
    """`max_tokens` an answer; `workers` prompts are asked at a time.

    `system` is put before prompts that have no system message of their own. A broken answer is
    asked for `attempts` times in all. `keep_cut` keeps answers that `max_tokens` cut off, which
    teach to stop anywhere. Raises ConfigError for a value out of range.
    """

    max_tokens: int = 512
    system: str | None = None
    workers: int = 1
    attempts: int = 3
    keep_cut: bool = False

    def __post_init__(self) -> None:
        limits = {"max_tokens": 1 << 20, "workers": 256, "attempts": 100}
        for name, high in limits.items():
            if not 1 <= getattr(self, name) <= high:
                raise ConfigError(f"{name} is {getattr(self, name)}, allowed 1 to {high}")


@dataclass(frozen=True, slots=True)
class Teacher:
    """Who is asked, and what the record says of it: `settings` never hold a key.

    `artefact` is None where nothing vouches for the weights, as with a server's.
    """

    generator: Generator
    settings: Mapping[str, Any]
    artefact: Artefact | None = None
    parents: tuple[Record, ...] = ()


@dataclass(slots=True)
class AskReport:
    """Counts of prompts and of what came of them in this sitting; `kept` is all of the file."""

    prompts: int = 0
    doubles: int = 0
    kept: int = 0
    empty: int = 0
    cut: int = 0
    completion_tokens: int = 0

    def measurements(self) -> tuple[Measurement, ...]:
        """Returns the counts as a record keeps them."""
        names = ("prompts", "doubles", "kept", "empty", "cut", "completion_tokens")
        return tuple(Measurement(name, getattr(self, name), "1", "counted") for name in names)


@dataclass(frozen=True, slots=True)
class _Answer:
    text: str
    reason: str
    tokens: int


def ask(
    teacher: Teacher,
    prompts: Sequence[str],
    out: Path,
    settings: AskSettings,
    *,
    resume: bool = False,
    note: Callable[[int, int], None] = lambda kept, prompts: None,
) -> AskReport:
    """Writes a conversation a line into `out`, in the order of the prompts, and its record.

    With `resume`, prompts that were answered are left alone. Raises UsageError where `out` is
    there already, or is of other prompts or settings, and what the teacher raises; what was
    answered until then stays.
    """
    if out.suffix != ".jsonl":
        raise UsageError("is no JSONL file's name", where=out, remedy="Write --out NAME.jsonl")
    files = find_files(prompts)
    asked = [Artefact("prompts", path.name, sha256_file(path)) for path in files]
    record = Record(
        verb="ask",
        name=out.name,
        settings={"synthetic": True, "teacher": dict(teacher.settings), "ask": _plain(settings)},
        inputs=(*([] if teacher.artefact is None else [teacher.artefact]), *asked),
        parents=teacher.parents,
        notes=("synthetic text: written by a program, not by people",),
    )
    beside = out.with_name(out.name + RECORD_SUFFIX)
    done = _begun(out, beside, record, resume=resume)
    report = AskReport(kept=len(done))
    wanted = _unanswered(read_prompts(files, settings.system), done, report)
    with Ledger(out) as ledger, ThreadPoolExecutor(settings.workers) as pool:
        while batch := list(islice(wanted, settings.workers)):
            futures = [
                pool.submit(_answered, teacher.generator, each, settings) for each, _ in batch
            ]
            for (messages, digest), future in zip(batch, futures, strict=True):
                _keep(ledger, messages, digest, future.result(), settings, report)
            note(report.kept, report.prompts)
    outputs = {out.name: sha256_file(out)}
    record = replace(record, outputs=outputs, measurements=report.measurements())
    write_json(beside, record.to_json())
    return report


def read_prompts(files: Sequence[Path], system: str | None = None) -> Iterator[tuple[Message, ...]]:
    """Yields what is asked: of JSONL `prompt` or `messages`, of text a prompt a line.

    Raises DataError naming file and line for a record that is neither, or ends with an answer.
    """
    for path in files:
        kind = file_kind(path)
        if kind not in ("jsonl", "text"):
            raise DataError(f"is {kind}", where=path, remedy="Give JSONL, or text, a prompt a line")
        with open_source(path) as stream:
            for line in read_lines(stream, path, line_bytes=_LINE_BYTES):
                if line.text.strip():
                    where = f"{path}, line {line.number}"
                    yield _prompt(line.text, where, kind, system)


def _prompt(text: str, where: str, kind: str, system: str | None) -> tuple[Message, ...]:
    values: dict[str, Any] = {"prompt": text.strip()}
    if kind == "jsonl":
        values = read_line(text, where)
    if isinstance(values.get("prompt"), str):
        messages = [Message("user", values["prompt"])]
    elif "messages" in values:
        try:
            messages = parse_messages(values["messages"])
        except RequestError as error:
            raise DataError(error.what, where=where, remedy=error.remedy) from error
    else:
        raise DataError("has no prompt and no messages", where=where, remedy="Name the key prompt")
    for message in messages:
        if not encodable(message.content, where).strip():
            raise DataError(f"an empty message ({message.role})", where=where)
    if messages[-1].role != "user":
        raise DataError("ends with an answer", where=where, remedy="End with what is asked")
    if system and messages[0].role != "system":
        messages = [Message("system", system), *messages]
    return tuple(messages)


def _unanswered(
    prompts: Iterator[tuple[Message, ...]], done: set[str], report: AskReport
) -> Iterator[tuple[tuple[Message, ...], str]]:
    """Yields prompts that neither the file nor an earlier line has, with their digests."""
    seen = set[str]()
    for messages in prompts:
        report.prompts += 1
        text = json.dumps([[m.role, m.content] for m in messages], ensure_ascii=False)
        digest = hashlib.sha256(text.encode()).hexdigest()
        report.doubles += digest in seen
        if digest not in seen and digest not in done:
            yield messages, digest
        seen.add(digest)


def _answered(generator: Generator, messages: Sequence[Message], settings: AskSettings) -> _Answer:
    for attempt in range(1, settings.attempts + 1):
        parts, reason, tokens = list[str](), "", 0
        try:
            for event in generator.generate(messages, max_tokens=settings.max_tokens):
                parts.append(event.text)
                reason = event.finish_reason or reason
                tokens = event.usage.get("completion_tokens", tokens)
        except MissingError:
            # Before the first piece the generator has tried again itself.
            if not parts or attempt == settings.attempts:
                raise
            continue
        return _Answer("".join(parts).strip(), reason, tokens)
    raise AssertionError("the last attempt returns or raises")


def _keep(
    ledger: Ledger,
    messages: Sequence[Message],
    digest: str,
    answer: _Answer,
    settings: AskSettings,
    report: AskReport,
) -> None:
    """Appends one conversation; counts what is left out."""
    report.completion_tokens += answer.tokens
    report.empty += not answer.text
    report.cut += answer.reason == "length"
    if not answer.text or (answer.reason == "length" and not settings.keep_cut):
        return
    turns = [*messages, Message("assistant", encodable(answer.text, digest, errors="replace"))]
    listed = [{"role": m.role, "content": m.content} for m in turns]
    ledger.append({"messages": listed, "finish_reason": answer.reason, "prompt_sha256": digest})
    report.kept += 1


def _begun(out: Path, beside: Path, record: Record, *, resume: bool) -> set[str]:
    """Returns the digests of prompts that `out` answers; a torn last line is cut off."""
    if not resume and (out.exists() or beside.exists()):
        raise UsageError(
            "is there already", where=out, remedy="Go on with --resume, or choose another name"
        )
    if not beside.exists():
        if out.exists():
            raise UsageError("has no record", where=out, remedy="Choose another name")
        write_json(beside, record.to_json())
        return set()
    begun = read_json(beside)
    try:
        same = all(begun[key] == record.to_json()[key] for key in ("settings", "inputs"))
    except KeyError as error:
        raise DataError(f"is no record ({error})", where=beside) from error
    if not same:
        raise UsageError(
            "was begun with another teacher, other prompts or other settings",
            where=out,
            remedy="Resume with the same command, or choose another name",
        )
    return _answers(out) if out.exists() else set()


def _answers(out: Path) -> set[str]:
    done = set[str]()
    for number, values in enumerate(Ledger.read(out), 1):
        digest = values.get("prompt_sha256")
        if not isinstance(digest, str):
            raise DataError("is no answer", where=f"{out}, line {number}")
        done.add(digest)
    return done


def _plain(settings: AskSettings) -> dict[str, Any]:
    # How many were asked at a time, and how often, changes no answer.
    names = ("max_tokens", "system", "keep_cut")
    return {name: getattr(settings, name) for name in names}
