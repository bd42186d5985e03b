"""Classification of short texts by the log-probability of each label's name.

For: a CSV or JSON Lines file with a text and a label, such as BANKING77 (Casanueva et al. 2020).
Not for: a classifier that was trained; fine-tuning can train on the part that is not scored.
Read next: `miudo.data.pack.hold_out`, the rule that parts the file.
"""

from __future__ import annotations

import glob

from miudo.data.pack import hold_out
from miudo.errors import DataError
from miudo.evaluate.tasks.files import (
    bare_name,
    find_task_files,
    read_records,
    without_ending,
)
from miudo.evaluate.tasks.task import LabelSettings, Sample, Source, Task, TaskData, TaskSettings

__all__ = ["LABELS", "is_test"]


def is_test(text: str, seed: int, settings: LabelSettings) -> bool:
    """Whether a text is scored rather than trained on: a function of text, seed and share alone."""
    return hold_out(text, seed) < settings.test_share


def _load(source: Source, settings: TaskSettings) -> TaskData:
    chosen = settings.labels
    fields = (chosen.text_field, chosen.label_field)
    files = find_task_files("labels", source.paths, [_pattern(chosen.file)])
    rows = [
        (f"{bare_name(path)}/{number}", *map(record.text, fields))
        for path in files
        for number, record in enumerate(read_records(path, fields), start=1)
    ]
    names = sorted({label for _, _, label in rows})
    words = tuple(name.replace("_", " ").strip() for name in names)
    where = ", ".join(map(str, files))
    if len(names) < 2 or len(set(words)) < len(names):
        raise DataError(
            f"has {len(set(words))} different labels of {len(names)} in {chosen.label_field!r}",
            where=where,
            remedy="Give at least two, which stay different with spaces for underscores",
        )
    index = {name: i for i, name in enumerate(names)}
    samples: list[Sample] = []
    pool: list[Sample] = []
    for number, text, label in rows:
        prompt = chosen.prompt.replace("{text}", text.strip())
        sample = Sample(number, prompt, words, index[label], text=text)
        (samples if is_test(text, settings.seed, chosen) else pool).append(sample)
    if not samples:
        raise DataError(
            f"none of {len(rows)} texts fell into the test part",
            where=where,
            remedy="Raise labels.test_share or give more texts",
        )
    skipped = {"kept for training": len(pool)}
    return TaskData(samples, pool, skipped, tuple(map(str, files)))


def _pattern(file: str) -> str:
    """Returns the pattern of one file that was named with its ending, else of a beginning."""
    bare = without_ending(file)
    return glob.escape(bare) + ("*" if bare == file else "")


LABELS = Task("labels", _load, metric="acc")
