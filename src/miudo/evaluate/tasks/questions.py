r"""Questions with written answers: ARC, CommonsenseQA, MMLU.

For: the cloze form `Question: ...\nAnswer: <text of the answer>`, which small models can do.
Not for: answering by a letter, where models of this size are near chance.
Read next: `miudo.evaluate.tasks.files`, `miudo.evaluate.tasks.enem`.

ARC (Clark et al. 2018) and MMLU (Hendrycks et al. 2021) are asked as lm-evaluation-harness does
in `arc_easy`, `arc_challenge` and `mmlu_continuation`. That asks CommonsenseQA (Talmor et al.
2019) by letter; here it has the cloze form of OLMES (Gu et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from miudo.evaluate.tasks.files import Record, read_split
from miudo.evaluate.tasks.task import Sample, Source, Task, TaskData, TaskSettings, answer_at

__all__ = ["QUESTION_TASKS"]

_FIELDS = ("question", "choices", "answer")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _loader(name: str, *order: str) -> Callable[[Source, TaskSettings], TaskData]:
    def load(source: Source, settings: TaskSettings) -> TaskData:
        if order:
            return read_split(source, name, _FIELDS, _sample, order)
        return read_split(source, name, _FIELDS, _sample)

    return load


def _sample(record: Record, number: str) -> Sample:
    letters, texts = _choices(record)
    field = "answerKey" if "answerKey" in record.values else "answer"
    subject = record.optional("subject")
    topic = subject.replace("_", " ")
    question = record.text("question").strip()
    answer = record.values.get(field)
    if type(answer) is not int:
        answer = record.text(field)
    elif str(answer) not in letters:  # a place instead of a letter
        answer, letters = str(answer), [str(i) for i in range(len(texts))]
    gold = answer_at(str(answer), letters, f"{record.where}, field {field}")
    return Sample(
        id=record.name(number),
        prompt=f"Question: {question}\nAnswer:",
        choices=texts,
        gold=gold,
        text=f"{question} {texts[gold]}",
        group=subject,
        header=f"The following are questions (with answers) about {topic}.\n\n" if topic else "",
    )


def _choices(record: Record) -> tuple[Sequence[str], tuple[str, ...]]:
    """Returns letters and texts of a list, of {letter: text}, or of {"label": [], "text": []}."""
    value = record.values.get("choices")
    if not isinstance(value, Mapping):
        texts = record.texts("choices")
        return _LETTERS[: len(texts)], texts
    where = f"{record.where}, field choices"
    if value.keys() == {"label", "text"}:
        inner = Record(value, where)
        letters, texts = inner.texts("label"), inner.texts("text")
        if len(letters) != len(texts):
            raise inner.refused("label", value["label"], f"{len(texts)} labels")
        return letters, texts
    texts = Record({"choices": list(value.values())}, record.where).texts("choices")
    return tuple(value), texts


QUESTION_TASKS = (
    Task("arc_easy", _loader("arc_easy")),
    Task("arc_challenge", _loader("arc_challenge")),
    # The answers to its test questions were never published.
    Task("csqa", _loader("csqa", "validation", "val", "dev", "train", "")),
    Task("mmlu", _loader("mmlu")),
)
