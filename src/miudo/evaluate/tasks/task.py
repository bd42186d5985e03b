"""What a task is: samples with choices, where they come from, how they are counted.

For: the plain data that every task gives and the harness takes.
Not for: any single task (its own file) or the list of them (`miudo.evaluate.tasks.catalogue`).
Read next: `miudo.evaluate.tasks.questions`, `miudo.evaluate.harness`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from miudo.errors import ConfigError, DataError

__all__ = [
    "LabelSettings",
    "LastWordSettings",
    "Sample",
    "Source",
    "Task",
    "TaskData",
    "TaskSettings",
    "answer_at",
]


@dataclass(frozen=True, slots=True)
class Sample:
    """One question. A model reads `header`, examples, `prompt`; each of `choices` may follow.

    `choices` carry no space of their own before them; the harness puts one after a prompt.
    `gold` is the right one's index. `text` is what to look for in training text: question and
    answer without the words of the prompt. `group` is a paradigm, a subject, a year.
    """

    id: str
    prompt: str
    choices: tuple[str, ...]
    gold: int
    text: str
    group: str = ""
    header: str = ""


@dataclass(frozen=True, slots=True)
class TaskData:
    """What a task read: `samples` to score, `pool` for examples, counts of what was left out.

    `skipped` maps a reason to how many records it took. `files` are those that were read.
    """

    samples: Sequence[Sample]
    pool: Sequence[Sample] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LabelSettings:
    """Classification: the file's name, its two fields, the prompt around `{text}`, the test share.

    `file` is the beginning of a name, or a whole one with its ending.
    A text is in the test part where `hold_out(text, seed) < test_share`
    (`miudo.data.pack.hold_out`), a rule that training on the rest can share.
    """

    file: str = "banking77"
    text_field: str = "text"
    label_field: str = "category"
    prompt: str = "Message: {text}\nTopic:"
    test_share: float = 0.2

    def __post_init__(self) -> None:
        if self.prompt.count("{text}") != 1:
            raise ConfigError(
                f"labels.prompt is {self.prompt!r}", remedy="Write {text} in it, once"
            )
        if not 0.0 < self.test_share <= 1.0:
            raise ConfigError(f"labels.test_share is {self.test_share}, allowed above 0, to 1")


@dataclass(frozen=True, slots=True)
class LastWordSettings:
    """Last words: how many passages, of how many sentences, and the shortest word asked for."""

    passages: int = 500
    sentences: int = 5
    min_letters: int = 3

    def __post_init__(self) -> None:
        if self.passages < 1 or self.sentences < 2 or self.min_letters < 1:
            raise ConfigError(
                f"{self} asks for nothing",
                remedy="Give passages and min_letters of at least 1, sentences of at least 2",
            )


@dataclass(frozen=True, slots=True)
class TaskSettings:
    """How tasks run: examples before each question, samples of each file, seed, and the rest.

    `limit` None takes all; else so many of each group, drawn by the seed.
    """

    shots: int = 0
    limit: int | None = None
    seed: int = 0
    labels: LabelSettings = field(default_factory=LabelSettings)
    last_word: LastWordSettings = field(default_factory=LastWordSettings)

    def __post_init__(self) -> None:
        if not 0 <= self.shots <= 1000:
            raise ConfigError(f"shots is {self.shots}, allowed 0 to 1000")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit is {self.limit}", remedy="Give at least 1, or none for all")
        if not 0 <= self.seed < 1 << 63:
            raise ConfigError(f"seed is {self.seed}, allowed 0 to 2**63 - 1")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a task finds its data: files and folders of benchmarks, and texts for last words.

    Of each of `texts` at most `max_bytes` are read.
    """

    paths: tuple[Path, ...]
    texts: tuple[str, ...] = ()
    max_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """One row of the catalogue. `metric` is the headline: plain, or normalised by bytes.

    `pair` asks which of two whole sentences is likelier, `greedy` whether the model itself
    would write the one choice; neither takes examples. `takes_texts`: it reads `Source.texts`.
    """

    name: str
    load: Callable[[Source, TaskSettings], TaskData]
    metric: Literal["acc", "acc_norm"] = "acc_norm"
    kind: Literal["choice", "pair", "greedy"] = "choice"
    takes_texts: bool = False


def answer_at(answer: str, letters: Sequence[str], where: str) -> int:
    """Returns the index of `answer` among the choices' letters. Raises DataError if it is none."""
    if answer not in letters:
        raise DataError(
            f"the answer is {answer!r:.40}, the choices are {list(letters)[:20]}",
            where=where,
            remedy="Correct the record or leave it out",
        )
    return letters.index(answer)
