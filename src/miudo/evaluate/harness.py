"""Runs tasks on a model: prompts with examples, scores, intervals, overlap with training text.

For: one score a task, and every sample's log-probabilities to look at.
Not for: what a task asks (`miudo.evaluate.tasks`) or how scores are shown (`task_table`).
Read next: `miudo.evaluate.continuations`, `miudo.evaluate.tasks.catalogue`.

The method is that of lm-evaluation-harness (Gao et al. 2024): the choice with the highest
log-probability is the model's answer ("acc"), or the highest after division by the choice's UTF-8
bytes ("acc_norm"; theirs divides by characters, and calls this one "acc_bytes"). Here, other than
there, a right choice that shares the highest place is a wrong answer.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from miudo.data.pack import hold_out
from miudo.errors import CheckFailedError, DataError
from miudo.evaluate.accuracy import Accuracy, accuracy
from miudo.evaluate.continuations import Continuation, Pair, encode_pair, score_pairs
from miudo.evaluate.overlap import Overlap, find_overlap, overlap_share
from miudo.evaluate.tasks.task import Sample, Source, Task, TaskData, TaskSettings
from miudo.files import atomic_write
from miudo.philox import uniform
from miudo.protocol import Engine, Tokenizer

__all__ = ["SampleResult", "TaskScore", "run_task", "run_tasks", "write_samples"]


@dataclass(frozen=True, slots=True)
class SampleResult:
    """One sample as it was scored. `chosen` is the model's answer, None for a tie or no answer.

    `logprobs` are sums in nats, a choice each. `cut` counts ids of the prompt that were too many
    for the model's positions. `overlap`: found in training text; None: not looked for, or short.
    """

    task: str
    sample: Sample
    prompt: str
    logprobs: tuple[float, ...]
    chosen: int | None
    chosen_plain: int | None
    tied: bool
    cut: int
    overlap: bool | None = None

    @property
    def right(self) -> bool:
        """Whether the model's answer is the right one."""
        return self.chosen == self.sample.gold


@dataclass(frozen=True, slots=True)
class TaskScore:
    """What one task gave. `score` is the headline, by `metric`; `acc` is without division.

    `chance` is what guessing would give, None where nothing can be guessed. `mean_of_groups`
    weighs each group alike. `perplexity` is of a whole last word. `ties` counts samples without
    a single best choice; `cut` those whose prompt lost its beginning.
    """

    task: str
    metric: str
    score: Accuracy
    acc: Accuracy
    chance: float | None
    shots: int
    ties: int
    cut: int
    skipped: dict[str, int]
    groups: dict[str, Accuracy]
    mean_of_groups: float | None
    perplexity: float | None
    overlap: Overlap | None
    files: tuple[str, ...]
    seconds: float


def run_task(
    task: Task,
    source: Source,
    model: tuple[Engine, Tokenizer],
    settings: TaskSettings,
    *,
    progress: Callable[[int], None] = lambda samples: None,
) -> tuple[TaskScore, list[SampleResult]]:
    """Returns the score of one task and the result of each sample, in the files' order.

    Examples before a question are drawn from the task's other split where there is one, by the
    seed and the question's place; never the question itself. Raises MissingError or DataError
    for files, CheckFailedError where a log-probability is no finite number.
    """
    start = time.perf_counter()
    data = task.load(source, settings)
    places = _limited(data.samples, settings)
    shots = settings.shots if task.kind == "choice" else 0
    pools = _pools(data)
    results: list[SampleResult] = []
    for place in places:
        sample = data.samples[place]
        examples = _examples(sample, place, pools, settings) if shots else []
        prompt = _prompt(sample, examples)
        results.append(_result(task, sample, prompt, model))
        progress(len(results))
    if not results:
        raise DataError("there is nothing to score", where=", ".join(data.files))
    seconds = time.perf_counter() - start
    return _score(task, data, results, shots, seconds), results


def run_tasks(
    tasks: Sequence[Task],
    source: Source,
    model: tuple[Engine, Tokenizer],
    settings: TaskSettings,
    *,
    against: Iterable[str] | None = None,
    progress: Callable[[int], None] = lambda samples: None,
) -> list[tuple[TaskScore, list[SampleResult]]]:
    """Returns `run_task` of each task; with training texts in `against`, the overlap as well.

    `against` is read once for all tasks; see `miudo.evaluate.overlap` for the rule.
    """
    scored: list[tuple[TaskScore, list[SampleResult]]] = []
    done = 0

    def tell(samples: int) -> None:
        progress(done + samples)

    for task in tasks:
        scored.append(run_task(task, source, model, settings, progress=tell))
        done += len(scored[-1][1])
    return scored if against is None else _with_overlap(scored, against)


def write_samples(path: Path, results: Iterable[SampleResult]) -> None:
    """Writes a JSON object a line for every sample, atomically."""

    def write(file: IO[bytes]) -> None:
        for result in results:
            file.write(json.dumps(_plain(result), ensure_ascii=False).encode() + b"\n")

    atomic_write(path, write)


def _with_overlap(
    scored: Sequence[tuple[TaskScore, list[SampleResult]]], training: Iterable[str]
) -> list[tuple[TaskScore, list[SampleResult]]]:
    texts = [result.sample.text for _, results in scored for result in results]
    answers = iter(find_overlap(texts, training))
    found = []
    for score, results in scored:
        marked = [replace(result, overlap=next(answers)) for result in results]
        share = overlap_share(result.overlap for result in marked)
        found.append((replace(score, overlap=share), marked))
    return found


def _plain(result: SampleResult) -> dict[str, object]:
    sample = result.sample
    return {
        "task": result.task,
        "id": sample.id,
        "group": sample.group,
        "prompt": result.prompt,
        "choices": sample.choices,
        "logprobs": result.logprobs,
        "chosen": result.chosen,
        "gold": sample.gold,
        "right": result.right,
        "right_plain": result.chosen_plain == sample.gold,
        "tied": result.tied,
        "cut_tokens": result.cut,
        "overlap": result.overlap,
    }


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


def _result(
    task: Task, sample: Sample, prompt: str, model: tuple[Engine, Tokenizer]
) -> SampleResult:
    engine, tokenizer = model
    space = " " if prompt else ""
    try:
        pairs = [encode_pair(prompt, space + c, tokenizer, engine.config) for c in sample.choices]
    except DataError as error:
        raise DataError(
            error.what, where=f"{task.name}, {sample.id}", remedy=error.remedy
        ) from error
    found = score_pairs(engine, pairs)
    for number, continuation in enumerate(found):
        if not math.isfinite(continuation.logprob):
            raise CheckFailedError(
                f"the log-probability of choice {number} is {continuation.logprob}",
                where=f"{task.name}, {sample.id}",
                remedy="The model's weights or its context are broken; check it with `miudo show`",
            )
    return _judged(task, sample, prompt, pairs, found)


def _judged(
    task: Task,
    sample: Sample,
    prompt: str,
    pairs: Sequence[Pair],
    found: Sequence[Continuation],
) -> SampleResult:
    logprobs = tuple(continuation.logprob for continuation in found)
    plain = _best(logprobs)
    if task.kind == "greedy":
        chosen = plain = 0 if found[0].greedy else None
    elif task.metric == "acc":
        chosen = plain
    else:
        sizes = [len(choice.encode()) for choice in sample.choices]
        chosen = _best([value / size for value, size in zip(logprobs, sizes, strict=True)])
    return SampleResult(
        task=task.name,
        sample=sample,
        prompt=prompt,
        logprobs=logprobs,
        chosen=chosen,
        chosen_plain=plain,
        tied=chosen is None and task.kind != "greedy",
        cut=max(pair.cut for pair in pairs),
    )


def _best(values: Sequence[float]) -> int | None:
    """Returns where the one highest value stands, None where several share it."""
    highest = max(values)
    return values.index(highest) if values.count(highest) == 1 else None


def _score(
    task: Task, data: TaskData, results: Sequence[SampleResult], shots: int, seconds: float
) -> TaskScore:
    groups: dict[str, list[bool]] = {}
    for result in results:
        if result.sample.group:
            groups.setdefault(result.sample.group, []).append(result.right)
    by_group = {name: accuracy(answers) for name, answers in groups.items()}
    several = len(by_group) > 1
    words = [-result.logprobs[0] for result in results] if task.kind == "greedy" else []
    return TaskScore(
        task=task.name,
        metric=task.metric,
        score=accuracy(result.right for result in results),
        acc=accuracy(result.chosen_plain == result.sample.gold for result in results),
        chance=None
        if task.kind == "greedy"
        else math.fsum(1 / len(result.sample.choices) for result in results) / len(results),
        shots=shots,
        ties=sum(result.tied for result in results),
        cut=sum(result.cut > 0 for result in results),
        skipped={reason: count for reason, count in data.skipped.items() if count},
        groups=by_group,
        mean_of_groups=math.fsum(a.value for a in by_group.values()) / len(by_group)
        if several
        else None,
        perplexity=math.exp(min(math.fsum(words) / len(words), 700.0)) if words else None,
        overlap=None,
        files=data.files,
        seconds=seconds,
    )
