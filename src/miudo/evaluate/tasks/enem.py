"""ENEM: questions of the Brazilian exam at the end of school, in Portuguese.

For: the files of Pires et al. (2023), "Evaluating GPT-4's Vision Capabilities on Brazilian
University Admission Exams": context, question, five options.
Not for: questions that need a picture; they are left out and counted.
Read next: `miudo.evaluate.tasks.questions`, whose form of prompt this is in Portuguese.
"""

from __future__ import annotations

from miudo.evaluate.tasks.files import Record, bare_name, find_task_files, read_records
from miudo.evaluate.tasks.task import Sample, Source, Task, TaskData, TaskSettings, answer_at

__all__ = ["ENEM"]

_FIELDS = ("context", "question", "options", "label")
_PICTURE = "needs a picture"


def _load(source: Source, settings: TaskSettings) -> TaskData:
    files = find_task_files("enem", source.paths, ["enem_*", "enem"])
    samples: list[Sample] = []
    pictures = 0
    for path in files:
        for number, record in enumerate(read_records(path, _FIELDS), start=1):
            if _needs_picture(record):
                pictures += 1
            else:
                samples.append(_sample(record, f"{bare_name(path)}/{number}"))
    return TaskData(samples, samples, {_PICTURE: pictures}, tuple(map(str, files)))


def _needs_picture(record: Record) -> bool:
    """Whether a picture is marked, or options are absent, or none holds more than signs.

    The last two are what is left of options that were pictures or cells of a table: each its own
    letter, with at most signs, digits and letters that stand alone after it.
    """
    options = record.values.get("options")
    if record.values.get("has_associated_images") is True or options == []:
        return True
    texts = [text.strip() for text in record.texts("options")]
    return all(
        text.split()[0] == letter and all(len(part) == 1 for part in text.split())
        for text, letter in zip(texts, "ABCDEFGH", strict=False)
    )


def _sample(record: Record, number: str) -> Sample:
    choices = tuple(text.strip() for text in record.texts("options"))
    context = record.text("context", empty=True).strip()
    question = record.text("question", empty=True).strip()
    if not context and not question:
        raise record.refused("question", "", "a question or a context")
    # Some records hold their question at the end of the context.
    parts = (context, f"Pergunta: {question}" if question else "", "Resposta:")
    letters = "abcdefgh"[: len(choices)]
    gold = answer_at(record.text("label").lower(), letters, f"{record.where}, field label")
    return Sample(
        id=record.name(number),
        prompt="\n".join(filter(None, parts)),
        choices=choices,
        gold=gold,
        text=f"{context} {question} {choices[gold]}",
        group=str(record.values.get("exam", "")),
    )


ENEM = Task("enem", _load)
