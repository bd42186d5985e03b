"""The ways in which a teacher is asked, other than over the text, beside the student.

For: which loss and which batches a distillation takes when answers come from a cache, the text
is the student's own, or the tokenizers differ.
Not for: the losses themselves, or the plain way (`miudo.compress.distill.lesson`).
Read next: `miudo.compress.distill.cached`, `miudo.compress.distill.onpolicy`,
`miudo.compress.distill.cross`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miudo.compress.distill.cached import CachePlan, make_cache
from miudo.compress.distill.cached_loss import CachedLoss, CachedSettings, FixedBlocks
from miudo.compress.distill.codes import DrawCodes, TopCodes
from miudo.compress.distill.cross import CrossLoss, CrossSettings
from miudo.compress.distill.divergence import Divergence
from miudo.compress.distill.lesson import Lesson, check_positions
from miudo.compress.distill.loss import DistillLoss
from miudo.compress.distill.onpolicy import OnPolicyLoss, OnPolicySettings
from miudo.compress.distill.spans import Aligner
from miudo.compress.distill.terms import DistillSettings, ResponseTerm, Schedule, TextTerm
from miudo.compress.method import in_range
from miudo.compress.settings import settings_to_json
from miudo.data.packed import DataSet
from miudo.decoder.decoder import Decoder
from miudo.errors import ConfigError, DataError, UsageError
from miudo.text.tokenizer import TextTokenizer
from miudo.train.artefact import Opened
from miudo.train.loss import Loss
from miudo.train.progress import Progress
from miudo.train.settings import FitSettings
from miudo.train.stepper import Tokens

__all__ = [
    "Cached",
    "Way",
    "cached_lesson",
    "crossing_loss",
    "lesson_by",
    "own_text_loss",
    "way_to_json",
]


@dataclass(frozen=True, slots=True)
class Cached:
    """The teacher's answers lie in `folder`; what is missing there is asked first.

    Of each token the `k` most probable ids are kept, and `draws` ids drawn from the rest; with k 0
    from all.
    `shard_blocks` blocks go into one file. Raises ConfigError for a value out of range.
    """

    folder: Path
    k: int = 8
    draws: int = 12
    seed: int = 0
    shard_blocks: int = 1024

    def __post_init__(self) -> None:
        in_range("draws", self.draws, 0, 4096, whole=True)
        in_range("shard_blocks", self.shard_blocks, 1, 1 << 24, whole=True)
        self.codes(1.0)

    def codes(self, temperature: float) -> TopCodes | DrawCodes:
        """Returns what is kept of a token, for a loss at `temperature`."""
        if self.k == 0:
            return DrawCodes(self.draws, temperature, self.seed)
        return TopCodes(self.k, temperature, self.draws, self.seed)


Way = Cached | OnPolicySettings | CrossSettings


def way_to_json(way: Way | None) -> dict[str, Any] | None:
    """Returns what a record says of a way; where a cache lies is no part of it."""
    if way is None:
        return None
    values = {k: v for k, v in settings_to_json(way).items() if k != "folder"}
    return {"kind": type(way).__name__, **values}


def lesson_by(
    way: Way,
    teachers: Sequence[Opened],
    student: Decoder,
    data: DataSet,
    lesson: Lesson,
    surviving: Sequence[int] | None,
    progress: Progress,
) -> Lesson:
    """Returns the lesson with the loss, and perhaps the batches, of `way`.

    Raises UsageError for more teachers than the way has room for, and what the other functions
    here raise.
    """
    settings, fit = lesson.loss, lesson.fit
    if not isinstance(settings, DistillSettings):
        raise UsageError("the lesson has a loss already", where="loss")
    if isinstance(way, OnPolicySettings):
        known = min(data.tokenizer().vocab_size, student.config.vocab_size)
        everyone = [opened.decoder for opened in teachers]
        loss = own_text_loss(
            way, everyone, student, settings, fit, n_ids=known, surviving=surviving
        )
        return dataclasses.replace(lesson, loss=loss)
    if len(teachers) > 1:
        raise UsageError("takes one teacher", where="--cache, --cross")
    if isinstance(way, Cached):
        loss, blocks = cached_lesson(way, teachers[0], settings, data, fit, progress)
        return dataclasses.replace(lesson, loss=loss, data=blocks)
    loss = crossing_loss(way, teachers[0], data.tokenizer(), data.end_id)
    return dataclasses.replace(lesson, loss=loss)


def cached_lesson(
    way: Cached,
    teacher: Opened,
    settings: DistillSettings,
    data: DataSet,
    fit: FitSettings,
    progress: Progress,
) -> tuple[Loss, Tokens]:
    """Returns the loss over cached answers and the blocks that they are of, making the cache.

    Raises ConfigError for terms that a cache cannot give and for a mixture of unequal weights,
    and what `make_cache` raises.
    """
    learned = _cached_settings(settings)
    weights = {part.weight for part in data.parts("train")}
    if weights != {1.0}:
        raise ConfigError(
            f"the sources of the text weigh {sorted(weights)}; a cache is passed over evenly",
            where="--cache",
            remedy="Prepare the text with equal weights, or distil without --cache",
        )
    check_positions([teacher.decoder], fit)
    tokens = data.open_split("train")
    plan = CachePlan(
        teacher=teacher.artefact.sha256,
        tokenizer=teacher.tokenizer().fingerprint,
        data=tokens.sha256,
        vocab_size=teacher.decoder.config.vocab_size,
        length=fit.length,
        n_blocks=tokens.n_blocks(fit.length),
        codes=way.codes(learned.temperature),
        shard_blocks=way.shard_blocks,
    )
    size = f"{plan.bytes_per_token} bytes a token, {plan.size_bytes / 1e6:,.1f} MB"
    progress.note(f"the teacher's answers take {size}")
    cache = make_cache(way.folder, plan, teacher.decoder, tokens, progress.note)
    return CachedLoss(cache, learned), FixedBlocks(tokens)


def own_text_loss(
    way: OnPolicySettings,
    teachers: Sequence[Decoder],
    student: Decoder,
    settings: DistillSettings,
    fit: FitSettings,
    *,
    n_ids: int,
    surviving: Sequence[int] | None = None,
) -> Loss:
    """Returns the loss of `settings`, which in `way.share` of the batches sees the student's text.

    There the response terms alone count, of weights that sum to 1: a student that learns its
    own text by heart grows sure of its mistakes. Ids from `n_ids` on are not drawn. Raises
    ConfigError where there are no response terms.
    """
    terms = [term for term in settings.terms if isinstance(term, ResponseTerm)]
    total = sum(term.weight for term in terms)
    if total <= 0.0:
        raise ConfigError("no term asks the teacher", where="--on-policy", remedy="Give alpha > 0")
    scored = dataclasses.replace(
        settings,
        terms=tuple(dataclasses.replace(t, weight=t.weight / total) for t in terms),
    )
    check_positions(teachers, fit)
    on_samples = DistillLoss(teachers, student.config, scored, seed=fit.seed)
    on_text = DistillLoss(teachers, student.config, settings, seed=fit.seed, surviving=surviving)
    return OnPolicyLoss(on_samples, on_text, way, n_ids=n_ids)


def crossing_loss(
    way: CrossSettings, teacher: Opened, tokenizer: TextTokenizer, end_id: int
) -> Loss:
    """Returns the loss across tokenizers; `tokenizer` and `end_id` are the student's data's.

    Raises ConfigError where the tokenizers are one, DataError for a teacher without an end.
    """
    theirs = teacher.tokenizer()
    if theirs.fingerprint == tokenizer.fingerprint:
        raise ConfigError(
            "teacher and student have one tokenizer",
            where="--cross",
            remedy="Leave --cross out: the plain loss is exact",
        )
    if not teacher.file.config.eos_ids:
        raise DataError("the teacher has no token that ends a text", where=teacher.file.path)
    aligner = Aligner(tokenizer, theirs, (end_id, teacher.file.config.eos_ids[0]))
    return CrossLoss(teacher.decoder, aligner, way)


def _cached_settings(settings: DistillSettings) -> CachedSettings:
    """The two terms that a cache can give. Raises ConfigError for any other."""
    taught = [t for t in settings.terms if isinstance(t, ResponseTerm)]
    text = [t for t in settings.terms if isinstance(t, TextTerm)]
    plain = all(t.schedule is Schedule.CONSTANT and not t.normalise for t in settings.terms)
    weights = sum(term.weight for term in settings.terms)
    known = len(taught) == 1 and len(text) <= 1 and len(taught) + len(text) == len(settings.terms)
    if not (known and plain and abs(weights - 1.0) < 1e-9) or (
        taught[0].kind is not Divergence.FORWARD_KL
    ):
        raise ConfigError(
            "a cache gives forward-kl and cross-entropy alone, of constant weights that sum to 1",
            where="--cache",
            remedy="Set --temperature and --alpha, and no other term",
        )
    return CachedSettings(taught[0].temperature, taught[0].weight)
