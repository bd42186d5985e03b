"""Runs tasks on a model: log-probabilities of choices, scores, intervals.

For: one score a task, and every sample's log-probabilities to look at.
Not for: what a task asks (`miudo.evaluate.prepared`) or how scores are shown (`task_table`).
Read next: `miudo.evaluate.prepared`, `miudo.evaluate.continuations`.

The method is that of lm-evaluation-harness (Gao et al. 2024): the choice with the highest
log-probability is the model's answer ("acc"), or the highest after division by the choice's UTF-8
bytes ("acc_norm"; theirs divides by characters, and calls this one "acc_bytes"). Here, other than
there, a right choice that shares the highest place is a wrong answer.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from miudo.errors import CheckFailedError
from miudo.evaluate.accuracy import Accuracy, accuracy
from miudo.evaluate.continuations import Continuation, Pair, score_pairs
from miudo.evaluate.overlap import Overlap, overlap_share
from miudo.evaluate.prepared import Asked, PreparedTask, choice_pairs
from miudo.evaluate.tasks.task import Sample, Task
from miudo.files import atomic_write
from miudo.protocol import Engine, Tokenizer

__all__ = ["SampleResult", "TaskScore", "run_tasks", "write_samples"]


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


def run_tasks(
    prepared: Sequence[PreparedTask],
    model: tuple[Engine, Tokenizer],
    *,
    adapter: str | None = None,
    progress: Callable[[int], None] = lambda samples: None,
) -> list[tuple[TaskScore, list[SampleResult]]]:
    """Returns the score of each task and the result of each of its samples, in the files' order.

    A sample with a choice that the model cannot be asked is counted under `skipped`. `adapter`
    names one that the engine was given. Raises CheckFailedError where a log-probability is no
    finite number.
    """
    scored: list[tuple[TaskScore, list[SampleResult]]] = []
    done = 0

    def tell(samples: int) -> None:
        progress(done + samples)

    for task in prepared:
        scored.append(_run(task, model, adapter, tell))
        done += len(task.asked)
    return scored


def write_samples(path: Path, results: Iterable[SampleResult]) -> None:
    """Writes a JSON object a line for every sample, atomically."""

    def write(file: IO[bytes]) -> None:
        for result in results:
            file.write(json.dumps(_plain(result), ensure_ascii=False).encode() + b"\n")

    atomic_write(path, write)


def _run(
    prepared: PreparedTask,
    model: tuple[Engine, Tokenizer],
    adapter: str | None,
    progress: Callable[[int], None],
) -> tuple[TaskScore, list[SampleResult]]:
    start = time.perf_counter()
    engine, tokenizer = model
    skipped = Counter(prepared.data.skipped)
    results: list[SampleResult] = []
    for number, asked in enumerate(prepared.asked, start=1):
        pairs = choice_pairs(asked, tokenizer, engine.config)
        if isinstance(pairs, str):
            skipped[pairs] += 1
        else:
            found = score_pairs(engine, pairs, adapter=adapter)
            results.append(_judged(prepared.task, asked, pairs, found))
        progress(number)
    seconds = time.perf_counter() - start
    return _score(prepared, skipped, results, seconds), results


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


def _judged(
    task: Task, asked: Asked, pairs: Sequence[Pair], found: Sequence[Continuation]
) -> SampleResult:
    sample = asked.sample
    for number, continuation in enumerate(found):
        if not math.isfinite(continuation.logprob):
            raise CheckFailedError(
                f"the log-probability of choice {number} is {continuation.logprob}",
                where=f"{task.name}, {sample.id}",
                remedy="The model's weights or its context are broken; check it with `miudo show`",
            )
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
        prompt=asked.prompt,
        logprobs=logprobs,
        chosen=chosen,
        chosen_plain=plain,
        tied=chosen is None and task.kind != "greedy",
        cut=max(pair.cut for pair in pairs),
        overlap=asked.overlap,
    )


def _best(values: Sequence[float]) -> int | None:
    """Returns where the one highest value stands, None where several share it."""
    highest = max(values)
    return values.index(highest) if values.count(highest) == 1 else None


def _score(
    prepared: PreparedTask,
    skipped: Mapping[str, int],
    results: Sequence[SampleResult],
    seconds: float,
) -> TaskScore:
    task = prepared.task
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
        shots=prepared.shots,
        ties=sum(result.tied for result in results),
        cut=sum(result.cut > 0 for result in results),
        skipped={reason: count for reason, count in skipped.items() if count},
        groups=by_group,
        mean_of_groups=math.fsum(a.value for a in by_group.values()) / len(by_group)
        if several
        else None,
        perplexity=math.exp(min(math.fsum(words) / len(words), 700.0)) if words else None,
        overlap=overlap_share(result.overlap for result in results)
        if prepared.overlap_sought
        else None,
        files=prepared.data.files,
        seconds=seconds,
    )
