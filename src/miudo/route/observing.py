"""Asks every local target the user's own prompts, and keeps what each answered and how surely.

For: what the classifier learns from, and what thresholds are calibrated on.
Not for: learning or calibrating (`miudo.route.fitting`, `miudo.route.calibrating`).
Read next: `miudo.route.calibrating`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from miudo.data.lines import open_source, read_lines
from miudo.errors import DataError, RequestError
from miudo.evaluate.loading import LoadedModel
from miudo.files import atomic_write
from miudo.plain_json import read_line
from miudo.protocol import Generator, Message, SeqWork, Want
from miudo.route.confidence import Confidence, confidence
from miudo.sampling import log_softmax_at
from miudo.text.prompt import prompt_ids

__all__ = [
    "Answered",
    "Example",
    "Observation",
    "ask_local",
    "ask_remote",
    "is_right",
    "read_examples",
    "read_observations",
    "write_observations",
]


_LINE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt of the user's, and the answer that counts as right; None: not known."""

    prompt: str
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """What a target wrote. `right` None: the right answer is not known; `seconds` by the clock."""

    text: str
    right: bool | None
    confidence: Confidence | None
    prompt_tokens: int
    new_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Observation:
    """An example with what each target answered, by the target's name."""

    example: Example
    answered: Mapping[str, Answered]


def is_right(text: str, answer: str) -> bool:
    """Whether an answer is the right one but for case, white space and a last full stop."""
    return _plain(text) == _plain(answer)


def ask_local(loaded: LoadedModel, example: Example, max_tokens: int) -> Answered:
    """Returns the most probable answer of a model on this machine. Raises RequestError."""
    started = time.perf_counter()
    engine, config = loaded.engine, loaded.model.config
    messages = [Message("user", example.prompt)]
    template = loaded.model.chat_template
    prompt = prompt_ids(loaded.tokenizer, messages, config, template=template)
    room = engine.config.max_positions - len(prompt)
    if room < 1:
        raise RequestError(f"the prompt has {len(prompt)} tokens", remedy="Leave it out")
    given, tokens = list(prompt), list[int]()
    logprobs, best = list[float](), list[tuple[float, float]]()
    conversation = engine.open()
    try:
        while len(tokens) < min(max_tokens, room):
            want = Want.SAMPLE | Want.LAST_LOGITS
            (out,) = engine.step([SeqWork(conversation, given, want, adapter=loaded.adapter)])
            if out.token is None or out.logprob is None or out.logits is None:
                raise RequestError("the engine returned no token")
            second = int(out.logits.argpartition(-2)[-2])
            logprobs.append(out.logprob)
            best.append((out.logprob, log_softmax_at(out.logits, second)))
            if out.token in config.eos_ids:
                break
            tokens.append(out.token)
            given = [out.token]
    finally:
        engine.close(conversation)
    text = loaded.tokenizer.decode(tokens)
    sure, took = confidence(logprobs, best), time.perf_counter() - started
    return Answered(text, _judged(text, example), sure, len(prompt), len(logprobs), took)


def ask_remote(generator: Generator, example: Example, max_tokens: int) -> Answered:
    """Returns what another server answered, without a confidence. Raises what it raises."""
    started, text, usage = time.perf_counter(), "", dict[str, int]()
    for event in generator.generate([Message("user", example.prompt)], max_tokens=max_tokens):
        text += event.text
        usage |= event.usage
    took = time.perf_counter() - started
    counts = (usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0))
    return Answered(text, _judged(text, example), None, *counts, took)


def read_examples(path: Path) -> list[Example]:
    """Returns the examples of a JSONL file of prompt and, where it is known, answer."""
    return [_example(values, where) for values, where in _objects(path)]


def write_observations(path: Path, observations: Iterable[Observation]) -> None:
    """Writes an object a line, atomically."""

    def write(file: IO[bytes]) -> None:
        for each in observations:
            answered = {name: asdict(one) for name, one in each.answered.items()}
            values = {**asdict(each.example), "answered": answered}
            file.write(json.dumps(values, ensure_ascii=False).encode() + b"\n")

    atomic_write(path, write)


def read_observations(path: Path) -> list[Observation]:
    """Returns what `write_observations` wrote; of plain examples, observations without answers.

    Raises DataError naming the line.
    """
    return [_observation(values, where) for values, where in _objects(path)]


def _objects(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    with open_source(path) as stream:
        for line in read_lines(stream, path, line_bytes=_LINE_BYTES):
            where = f"{path}, line {line.number}"
            if not line.text.strip():
                continue
            yield read_line(line.text, where, remedy="Give prompt and answer"), where


def _example(values: Mapping[str, Any], where: str, *, more: Sequence[str] = ()) -> Example:
    unknown = sorted(set(values) - {"prompt", "answer", *more})
    if unknown:
        raise DataError(
            f"has the field {unknown[0]!r:.60}", where=where, remedy="Give prompt and answer alone"
        )
    prompt, answer = values.get("prompt"), values.get("answer")
    if not isinstance(prompt, str) or not prompt.strip():
        raise DataError(f"prompt is {prompt!r:.60}", where=where, remedy="Give some text")
    if answer is not None and not isinstance(answer, str):
        raise DataError(f"answer is {answer!r:.60}", where=where, remedy="Give a text, or none")
    return Example(prompt, answer)


def _observation(values: Mapping[str, Any], where: str) -> Observation:
    example = _example(values, where, more=("answered",))
    try:
        answered = {}
        for name, one in values.get("answered", {}).items():
            sure = one["confidence"]
            kept = None if sure is None else Confidence(**sure)
            answered[name] = Answered(**{**one, "confidence": kept})
            _check(answered[name])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"no observation ({error})", where=where, remedy="Give what `miudo route observe` wrote"
        ) from error
    return Observation(example, answered)


def _check(one: Answered) -> None:
    """Raises ValueError for values of another kind than `ask_local` gives."""
    if one.right not in (True, False, None) or not isinstance(one.text, str):
        raise ValueError(f"right is {one.right!r:.40}")
    sure = () if one.confidence is None else (one.confidence.mean, one.confidence.min)
    for value in (*sure, one.seconds, one.prompt_tokens, one.new_tokens):
        if type(value) not in (int, float) or not 0 <= value < 1e12:
            raise ValueError(f"{value!r:.40} is no number of this kind")


def _judged(text: str, example: Example) -> bool | None:
    return None if example.answer is None else is_right(text, example.answer)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".")
