"""Tasks made ready: files read, examples drawn, prompts written, overlap looked for.

For: finding what is wrong before the first sample is scored, which may take hours.
Not for: scoring (`miudo.evaluate.harness`) or what a task asks (`miudo.evaluate.tasks`).
Read next: `miudo.evaluate.tasks.catalogue`, `miudo.evaluate.harness`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from miudo.config import ModelConfig
from miudo.data.pack import hold_out
from miudo.errors import DataError
from miudo.evaluate.continuations import Pair, encode_pair
from miudo.evaluate.overlap import find_overlap
from miudo.evaluate.tasks.task import Sample, Source, Task, TaskData, TaskSettings
from miudo.philox import uniform
from miudo.protocol import Engine, Tokenizer

__all__ = ["Asked", "PreparedTask", "choice_pairs", "prepare_tasks"]


@dataclass(frozen=True, slots=True)
class Asked:
    """A sample and the whole prompt before its choices, examples and all.

    `overlap`: found in training text; None: not looked for, or too short to be.
    """

    sample: Sample
    prompt: str
    overlap: bool | None = None


@dataclass(frozen=True, slots=True)
class PreparedTask:
    """A task with what will be asked, in the files' order, and how many examples each has."""

    task: Task
    data: TaskData
    asked: Sequence[Asked]
    shots: int
    overlap_sought: bool = False


def prepare_tasks(
    tasks: Sequence[Task],
    source: Source,
    model: tuple[Engine, Tokenizer],
    settings: TaskSettings,
    *,
    against: Iterable[str] | None = None,
) -> list[PreparedTask]:
    """Returns the tasks ready for `run_tasks`; with training texts in `against`, the overlap too.

    Examples before a question are drawn from the task's other split where there is one, by the
    seed and the question's place; never the question itself. `against` is read once for all
    tasks; see `miudo.evaluate.overlap` for the rule. Raises MissingError or DataError for files,
    for too few examples, and for a task of which `model` can be asked nothing.
    """
    prepared = [_prepared(task, source, model, settings) for task in tasks]
    if against is None:
        return prepared
    texts = [asked.sample.text for task in prepared for asked in task.asked]
    answers = iter(find_overlap(texts, against))
    return [
        replace(
            task,
            asked=[replace(asked, overlap=next(answers)) for asked in task.asked],
            overlap_sought=True,
        )
        for task in prepared
    ]


def choice_pairs(asked: Asked, tokenizer: Tokenizer, config: ModelConfig) -> list[Pair] | str:
    """Returns the ids of prompt and choice, a pair each, or why the model cannot be asked."""
    space = " " if asked.prompt else ""
    try:
        return [
            encode_pair(asked.prompt, space + choice, tokenizer, config)
            for choice in asked.sample.choices
        ]
    except DataError as error:
        return error.what


def _prepared(
    task: Task, source: Source, model: tuple[Engine, Tokenizer], settings: TaskSettings
) -> PreparedTask:
    data = task.load(source, settings)
    shots = settings.shots if task.kind == "choice" else 0
    pools = _pools(data)
    asked = []
    for place in _limited(data.samples, settings):
        sample = data.samples[place]
        examples = _examples(sample, place, pools, settings) if shots else []
        asked.append(Asked(sample, _prompt(sample, examples)))
    _check_something_to_score(data, asked, model)
    return PreparedTask(task, data, asked, shots)


def _check_something_to_score(
    data: TaskData, asked: Sequence[Asked], model: tuple[Engine, Tokenizer]
) -> None:
    engine, tokenizer = model
    skipped = Counter(data.skipped)
    for one in asked:
        pairs = choice_pairs(one, tokenizer, engine.config)
        if not isinstance(pairs, str):
            return
        skipped[pairs] += 1
    reasons = [f", {count:,} left out ({why})" for why, count in skipped.items() if count]
    raise DataError(f"there is nothing to score{''.join(reasons)}", where=", ".join(data.files))


def _limited(samples: Sequence[Sample], settings: TaskSettings) -> list[int]:
    """Returns the places of at most `limit` samples of each group, drawn by the seed, in order."""
    if settings.limit is None:
        return list(range(len(samples)))
    groups: dict[str, list[int]] = {}
    for place, sample in enumerate(samples):
        groups.setdefault(sample.group, []).append(place)

    def rank(place: int) -> tuple[float, int]:
        sample = samples[place]
        return hold_out(f"limit\n{sample.prompt}\n{sample.choices[0]}", settings.seed), place

    taken = (sorted(places, key=rank)[: settings.limit] for places in groups.values())
    return sorted(place for places in taken for place in places)


def _pools(data: TaskData) -> dict[str, list[Sample]]:
    """Returns the examples by group, and all of them under the empty name."""
    pools: dict[str, list[Sample]] = {"": list(data.pool)}
    for sample in data.pool:
        if sample.group:
            pools.setdefault(sample.group, []).append(sample)
    return pools


def _prompt(sample: Sample, examples: Sequence[Sample]) -> str:
    """Returns header, examples and question, parted as lm-evaluation-harness parts them."""
    shown = [f"{example.prompt} {example.choices[example.gold]}" for example in examples]
    return sample.header + "\n\n".join([*shown, sample.prompt])


def _examples(
    sample: Sample, place: int, pools: Mapping[str, Sequence[Sample]], settings: TaskSettings
) -> list[Sample]:
    """Returns examples other than `sample`; where it has a header, those of its group alone."""
    pool = pools.get(sample.group if sample.header else "", ())
    shown: list[Sample] = []
    moved: dict[int, int] = {}  # the steps of a Fisher-Yates shuffle, as far as it goes
    left = len(pool)
    while left and len(shown) < settings.shots:
        at = int(uniform(settings.seed, place, len(pool) - left) * left)
        left -= 1
        index, moved[at] = moved.get(at, at), moved.get(left, left)
        if pool[index].prompt != sample.prompt:
            shown.append(pool[index])
    if len(shown) < settings.shots:
        raise DataError(
            f"{len(shown)} examples are there for it, {settings.shots} are asked for",
            where=sample.id,
            remedy="Give fewer --shots, or the task's other split",
        )
    return shown
