"""BLiMP: which of two sentences, alike but for one grammatical point, is likelier.

For: Warstadt et al. (2020), one file a paradigm of a thousand pairs.
Not for: prompts: sentences stand alone, after the model's start id.
Read next: `miudo.evaluate.harness`.
"""

from __future__ import annotations

from miudo.evaluate.tasks.files import Record, bare_name, find_task_files, read_records
from miudo.evaluate.tasks.task import Sample, Source, Task, TaskData, TaskSettings

__all__ = ["BLIMP"]


def _load(source: Source, settings: TaskSettings) -> TaskData:
    files = find_task_files("blimp", source.paths, ["blimp/*", "blimp_*"])
    samples = [
        _sample(record, paradigm, number)
        for path, paradigm in zip(files, map(bare_name, files), strict=True)
        for number, record in enumerate(read_records(path, ("sentence_good", "sentence_bad")))
    ]
    return TaskData(samples, files=tuple(map(str, files)))


def _sample(record: Record, paradigm: str, number: int) -> Sample:
    pair = (record.text("sentence_good"), record.text("sentence_bad"))
    return Sample(f"{paradigm}/{number}", "", pair, 0, text=pair[0], group=paradigm)


BLIMP = Task("blimp", _load, metric="acc", kind="pair")
