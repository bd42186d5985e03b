"""What a fine-tuning run learns from: chats as packed samples, or running text as tokens.

For: opening base model and data, template and held-out part; the same for a run, a preview and
an estimate, of which only the run writes.
Not for: training (`miudo.train.finetune`) or reading files (`miudo.data.chats`).
Read next: `miudo.data.samples`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from miudo.data.chats import ChatSettings, Conversation, holds_chats, read_chats
from miudo.data.pack import PackSettings, hold_out, kept_apart
from miudo.data.packed import MANIFEST_FILE, PackedTokens
from miudo.data.pipeline import PrepareSettings
from miudo.data.samples import PackedSamples, SampleReport, make_samples, pack_samples
from miudo.data.sources import find_files
from miudo.decoder.lora import LoraSettings
from miudo.errors import ConfigError, DataError, TokenizerError
from miudo.files import sha256_file
from miudo.records import Artefact, Measurement, Record
from miudo.text.answers import Sample
from miudo.text.chat import DEFAULT_TEMPLATE
from miudo.text.prompt import model_template
from miudo.text.tokenizer import DEFAULT_SPECIALS
from miudo.train.artefact import Opened, text_data
from miudo.train.progress import Progress
from miudo.train.settings import FitSettings
from miudo.train.stepper import Tokens

__all__ = ["FinetuneJob", "Lesson", "chat_samples", "learns_chats", "open_lesson"]

_FEW_STEPS = 20
"""Where the warm-up and the fall of the learning rate leave next to nothing between them."""


@dataclass(frozen=True, slots=True)
class FinetuneJob:
    """Which model learns from what, into which folder, and how.

    `inputs` are chats (JSONL, CSV, TSV, Parquet), texts, or one data folder. `lora` None trains
    all weights. `epochs`, if given, is the run's length instead of the one in `fit`.
    `chat_template` replaces the model's own. `keep_zeros` is for a pruned model that is
    trained whole: None goes by its record (`miudo.decoder.sparsity`).
    """

    model: Path
    inputs: tuple[str, ...]
    out: Path
    fit: FitSettings
    lora: LoraSettings | None = field(default_factory=LoraSettings)
    epochs: float | None = None
    chat: ChatSettings = field(default_factory=ChatSettings)
    chat_template: str | None = None
    prepare: PrepareSettings = field(default_factory=PrepareSettings)
    keep_zeros: bool | None = None

    def __post_init__(self) -> None:
        if self.epochs is not None and not 0.0 < self.epochs <= 1e6:
            raise ConfigError(f"epochs is {self.epochs}, allowed above 0 up to 1e6")


@dataclass(frozen=True, slots=True)
class Lesson:
    """The data, the settings that it leads to, and what a record says of it.

    `fit` has the number of steps that `epochs` stands for, and no more rows in a batch than
    there are.
    """

    train: Tokens
    held_out: Tokens | None
    fit: FitSettings
    inputs: tuple[Artefact, ...]
    chat_template: str | None
    parents: tuple[Record, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    notes: tuple[str, ...] = ()


def open_lesson(
    job: FinetuneJob, base: Opened, folder: Path, progress: Progress, *, resume: bool = False
) -> Lesson:
    """Returns the data of `job` for the model `base`; running text is packed into `folder`.

    Raises what `read_chats`, `make_samples` and `text_data` raise, ConfigError for rows longer
    than the model's positions, DataError where no conversation fits a row, and TokenizerError
    for chats without a template.
    """
    positions = base.file.config.max_positions
    if job.fit.length > positions:
        raise ConfigError(
            f"length is {job.fit.length}, the model has {positions} positions",
            remedy=f"Give --length {positions} or less",
        )
    if learns_chats(job):
        return _chats(job, base, progress)
    return _text(job, base, folder, progress, resume=resume)


def learns_chats(job: FinetuneJob) -> bool:
    """Whether the data is conversations, of which the answers alone are learned.

    Raises what `holds_chats` raises.
    """
    packed = (Path(job.inputs[0]) / MANIFEST_FILE).is_file()
    return not packed and holds_chats(job.inputs, job.chat, job.prepare.read.field)


def chat_samples(
    job: FinetuneJob, base: Opened, conversations: Sequence[Conversation]
) -> tuple[list[Sample], SampleReport]:
    """Returns `conversations` as samples through the job's template."""
    template = _template(job, base)
    tokenizer, config = base.tokenizer(), base.file.config
    chat = model_template(tokenizer, config, template)
    return make_samples(conversations, tokenizer, chat, config, job.fit.length)


def _chats(job: FinetuneJob, base: Opened, progress: Progress) -> Lesson:
    conversations = list(read_chats(job.inputs, job.chat))
    kept, apart = _parted(conversations, job.chat.held_out, job.fit.seed)
    samples, report = chat_samples(job, base, kept)
    apart_samples, apart_report = chat_samples(job, base, apart)
    if not samples:
        raise DataError(
            f"no exchange fits a row of {job.fit.length} tokens ({len(kept)} conversations)",
            remedy="Give a larger --length",
        )
    if not report.counted:
        raise DataError(
            "the chat template writes nothing of the answers: there is nothing to learn",
            where=kept[0].where,
            remedy="Give --chat-template one that writes message.content for every role",
        )
    if not all(_stops(sample, base.file.config.eos_ids) for sample in samples):
        progress.note(
            "answers end otherwise than where the model stops: it will go on and on; let the chat "
            "template close them with the model's own end"
        )
    pad = base.file.config.pad_id or 0
    train = pack_samples(samples, job.fit.length, pad)
    rows = train.n_blocks(job.fit.length)
    progress.note(f"{report.text()}; {rows:,} rows, {train.filled:.0%} filled")
    held_out = pack_samples(apart_samples, job.fit.length, pad) if apart_samples else None
    progress.note(
        f"held out: {apart_report.text()}" if apart else "too few conversations to hold any out"
    )
    dropped = [*report.dropped, *apart_report.dropped]
    counted: dict[str, float] = {
        "conversations": report.conversations,
        "conversations_held_out": len(apart),
        "samples": report.samples,
        "conversations_cut": report.parted + apart_report.parted,
        "exchanges_left_out": len(dropped),
        "sample_tokens": report.ids,
        "answer_tokens": report.counted,
        "rows": rows,
    }
    return Lesson(
        train=train,
        held_out=held_out,
        fit=_fitted(job, train, progress),
        inputs=tuple(
            Artefact("data", path.name, sha256_file(path)) for path in find_files(job.inputs)
        ),
        chat_template=_template(job, base),
        measurements=tuple(Measurement(n, v, "1", "counted") for n, v in counted.items()),
        notes=tuple(f"left out, longer than a row: {where}" for where in dropped[:20]),
    )


def _text(
    job: FinetuneJob, base: Opened, folder: Path, progress: Progress, *, resume: bool
) -> Lesson:
    data = text_data(job.inputs, base, folder, job.prepare, progress, resume=resume)
    train, held_out = data.open_split("train"), data.open_split("held_out")
    record = Record.read(data.folder)
    digest = sha256_file(data.folder / MANIFEST_FILE)
    return Lesson(
        train=train,
        held_out=held_out if held_out.n_blocks(job.fit.length) else None,
        fit=_fitted(job, train, progress),
        inputs=(Artefact("data", data.folder.name, digest),),
        chat_template=job.chat_template or base.file.chat_template,
        parents=() if record is None else (record,),
    )


def _fitted(
    job: FinetuneJob, train: PackedTokens | PackedSamples, progress: Progress
) -> FitSettings:
    rows = train.epoch_rows(job.fit.length)
    fit = job.fit
    if 0 < rows < fit.batch_size:
        progress.note(f"batch_size is {rows}, not {fit.batch_size}: there are no more rows")
        fit = dataclasses.replace(fit, batch_size=rows)
    if 0 < rows < fit.batch_size * fit.accumulate:
        fewer = rows // fit.batch_size
        progress.note(f"accumulate is {fewer}, not {fit.accumulate}: there are no more rows")
        fit = dataclasses.replace(fit, accumulate=fewer)
    if job.epochs is None:
        return fit
    steps = max(1, math.ceil(job.epochs * rows / (fit.batch_size * fit.accumulate)))
    if steps < _FEW_STEPS and fit.batch_size > 1:
        progress.note(
            f"{steps} steps are few to learn by: a smaller --batch-size makes more of an epoch"
        )
    return dataclasses.replace(fit, steps=steps, tokens=None, minutes=None)


def _stops(sample: Sample, eos_ids: Sequence[int]) -> bool:
    """Whether the last that is learned is an id at which generation ends."""
    learned = [i for i, counted in zip(sample.ids, sample.counted, strict=True) if counted]
    return not learned or learned[-1] in eos_ids


def _parted(
    conversations: list[Conversation], share: float, seed: int
) -> tuple[list[Conversation], list[Conversation]]:
    """Parts by content, as `miudo.data.pack.hold_out` does; too few are not parted."""
    ranks = [hold_out("\n".join(m.content for m in c.messages), seed) for c in conversations]
    if len(conversations) * share < 1.0 or len(set(ranks)) < 2:
        return conversations, []
    kept = kept_apart([(0, rank) for rank in ranks], PackSettings(held_out=share))
    pairs = list(zip(conversations, kept, strict=True))
    return [c for c, apart in pairs if not apart], [c for c, apart in pairs if apart]


def _template(job: FinetuneJob, base: Opened) -> str:
    template = job.chat_template or base.file.chat_template
    if template is None:
        raise TokenizerError(
            "the model has no chat template",
            where=job.model,
            remedy="Give --chat-template default to talk, plain for prompts and answers alone, "
            "or a file with one",
        )
    absent = set(DEFAULT_SPECIALS[:4]) - set(base.tokenizer().special_ids)
    if template == DEFAULT_TEMPLATE and absent:
        raise TokenizerError(
            f"the tokenizer has no token {', '.join(sorted(absent))}, which the default template "
            "writes",
            where=job.model,
            remedy="Give --chat-template a file that uses the tokenizer's own special tokens",
        )
    return template
