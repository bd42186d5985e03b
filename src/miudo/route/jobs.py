"""What `miudo route` does: ask the targets, train the classifier, set a threshold.

For: one function a verb, on plain values.
Not for: the command line (`miudo.cli.routing`).
Read next: `miudo.route.observing`, `miudo.route.fitting`, `miudo.route.calibrating`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from miudo.errors import DataError, UsageError
from miudo.files import sha256_file
from miudo.records import Artefact, Measurement, Record
from miudo.route.calibrating import Calibrated, Rights, for_quality, for_share
from miudo.route.complexity import read_classifier, write_classifier
from miudo.route.fitting import FitSettings, Fitted, fit_classifier
from miudo.route.keywords import keyword_complexity
from miudo.route.observing import Answered, Example, Observation, read_observations
from miudo.route.targets import Complexity, RouteTable

__all__ = ["Aim", "Ask", "Threshold", "calibrate", "complexity_of", "observe", "train"]

Ask = Callable[[Example], Answered]


@dataclass(frozen=True, slots=True)
class Aim:
    """What a threshold is for: `signal` of which target, and the `share` or the `quality`."""

    signal: Literal["complexity", "confidence"]
    target: str
    share: float | None = None
    quality: float | None = None

    def __post_init__(self) -> None:
        if (self.share is None) == (self.quality is None):
            raise UsageError("give one of --share and --quality")
        for name in ("share", "quality"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise UsageError(f"{name} is {value}, allowed 0 to 1", where=f"--{name}")


@dataclass(frozen=True, slots=True)
class Threshold:
    """A line for the route table, and what it gave on the examples."""

    target: str
    setting: str
    value: float
    found: Calibrated

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return asdict(self)


def observe(examples: Sequence[Example], askers: Mapping[str, Ask]) -> Iterator[Observation]:
    """Yields each example with every target's answer."""
    for example in examples:
        yield Observation(example, {name: ask(example) for name, ask in askers.items()})


def train(
    data: Path, target: str, settings: FitSettings, out: Path, *, beside: str | None = None
) -> Fitted:
    """Writes the classifier that tells when `target` is wrong into the folder `out`.

    With `beside` only what that target gets right is worth passing on. Raises DataError where the
    observations do not say, or say the same of all.
    """
    observations = read_observations(data)
    label = [not right for right in _rights(observations, target, data)]
    if beside is not None:
        helped = _rights(observations, beside, data)
        label = [wrong and right for wrong, right in zip(label, helped, strict=True)]
    fitted = fit_classifier([each.example.prompt for each in observations], label, settings)
    how = f"on {settings.held_out:.0%} of the examples, held out by text"
    record = Record(
        verb="route train",
        name=out.name,
        settings={**asdict(settings), "target": target, "beside": beside},
        seed=settings.seed,
        inputs=(Artefact("observations", data.name, sha256_file(data)),),
        measurements=(
            Measurement("log_loss", fitted.log_loss, "nats", how),
            Measurement("log_loss_of_guessing", fitted.guess_loss, "nats", how),
            Measurement("auroc", fitted.ranked, "", how),
        ),
    )
    write_classifier(out, fitted.classifier, record)
    return fitted


def complexity_of(table: RouteTable, beside: Path) -> Callable[[str], Complexity]:
    """Returns what tells the complexity of a prompt. Raises UsageError where nothing does."""
    folder = table.classifier(beside)
    if folder is not None:
        return read_classifier(folder).complexity
    if table.complexity == "keywords":
        return keyword_complexity
    raise UsageError(
        'the table says complexity = "none"', remedy='Say "keywords", or name a classifier'
    )


def calibrate(table: RouteTable, beside: Path, data: Path, aim: Aim) -> Threshold:
    """Returns the threshold of `aim` on the observations, or plain prompts, in `data`.

    Raises UsageError for a target that has no next one, DataError where the data lack what the
    aim needs, CheckFailedError where no threshold reaches the quality.
    """
    names = [target.name for target in table.targets]
    if aim.target not in names[:-1]:
        raise UsageError(
            f"{aim.target!r:.60} has no target after it", where="--target",
            remedy=f"Give one of {', '.join(names[:-1]) or 'none: there is one target alone'}",
        )  # fmt: skip
    observations = read_observations(data)
    if aim.signal == "complexity":
        tell, floor = complexity_of(table, beside), 0.0
        doubts = [tell(each.example.prompt).value for each in observations]
    else:
        doubts, floor = [-sure for sure in _sure(observations, table, aim.target, data)], -1.0
    after = names[names.index(aim.target) + 1]
    known = all(_known(each, (aim.target, after)) for each in observations)
    rights = None
    if known or aim.quality is not None:
        rights = Rights(_rights(observations, aim.target, data), _rights(observations, after, data))
    if aim.quality is not None and rights is not None:
        found = for_quality(doubts, aim.quality, floor=floor, rights=rights)
    else:
        found = for_share(doubts, aim.share or 0.0, floor=floor, rights=rights)
    if aim.signal == "complexity":
        return Threshold(aim.target, "skip_above", found.threshold, found)
    return Threshold(aim.target, "accept_above", -found.threshold, found)


def _known(each: Observation, names: Sequence[str]) -> bool:
    return all(n in each.answered and each.answered[n].right is not None for n in names)


def _rights(observations: Sequence[Observation], target: str, data: Path) -> list[bool]:
    for number, each in enumerate(observations, start=1):
        if not _known(each, (target,)):
            raise DataError(
                f"example {number} does not say whether {target} is right", where=data,
                remedy="Give prompts with answers to `miudo route observe`",
            )  # fmt: skip
    return [bool(each.answered[target].right) for each in observations]


def _sure(
    observations: Sequence[Observation], table: RouteTable, target: str, data: Path
) -> list[float]:
    found = []
    for number, each in enumerate(observations, start=1):
        one = each.answered.get(target)
        if one is None or one.confidence is None:
            raise DataError(
                f"example {number} has no confidence of {target}", where=data,
                remedy="Give what `miudo route observe` wrote; remote targets have none",
            )  # fmt: skip
        found.append(one.confidence.by(table.confidence))
    return found
