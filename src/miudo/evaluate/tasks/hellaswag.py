"""HellaSwag: which of four endings follows.

For: Zellers et al. (2019), with the clean-up of lm-evaluation-harness's `hellaswag`.
Not for: other sentence completion.
Read next: `miudo.evaluate.tasks.questions`.
"""

from __future__ import annotations

import re

from miudo.evaluate.tasks.files import Record, read_split
from miudo.evaluate.tasks.task import Sample, Source, Task, TaskData, TaskSettings, answer_at

__all__ = ["HELLASWAG"]

_FIELDS = ("ctx", "label", "endings")
# Its test labels were never published.
_ORDER = ("validation", "val", "dev", "train", "")


def _load(source: Source, settings: TaskSettings) -> TaskData:
    return read_split(source, "hellaswag", _FIELDS, _sample, _ORDER)


def _sample(record: Record, name: str) -> Sample:
    endings = record.texts("endings")
    numbers = [str(i) for i in range(len(endings))]
    label = str(record.values.get("label"))
    gold = answer_at(label, numbers, f"{record.where}, field label")
    prompt, choices = _context(record), tuple(map(_cleaned, endings))
    return Sample(name, prompt, choices, gold, text=f"{prompt} {choices[gold]}")


def _context(record: Record) -> str:
    """Returns topic and context: as published in three fields, or joined in `ctx` already.

    Where `ctx` stands in for the last two, the topic may be in it or not.
    """
    if "activity_label" not in record.values:
        return _cleaned(record.text("ctx"))
    topic = f"{record.text('activity_label')}: "
    if "ctx_b" not in record.values:
        return _cleaned(topic + record.text("ctx").removeprefix(topic))
    end = record.text("ctx_b", empty=True).capitalize()
    return _cleaned(f"{topic}{record.text('ctx_a', empty=True)} {end}")


def _cleaned(text: str) -> str:
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


HELLASWAG = Task("hellaswag", _load)
