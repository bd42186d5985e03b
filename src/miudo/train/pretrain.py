"""From text and a shape to a trained model's folder, with its record.

For: `miudo train` and the demo: packs text if need be, trains, writes OUT/model.
Not for: the loop (`miudo.train.loop`) or the packing (`miudo.data.pipeline`).
Read next: `miudo.train.loop`.

    OUT/run.json     what was asked for: `resume` needs nothing else
    OUT/data/        packed text, unless a data folder was given
    OUT/model/       the model as a Hugging Face folder, with record.json
    and what `miudo.train.run_folder` draws
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from miudo.config import ModelConfig
from miudo.data.packed import MANIFEST_FILE, DataSet, PackedTokens
from miudo.data.pipeline import PrepareSettings, prepare
from miudo.decoder.decoder import Decoder
from miudo.decoder.sparsity import masks_to_keep
from miudo.decoder.torch_engine import TorchEngine
from miudo.engine.generate import GenerateSettings, generate
from miudo.errors import CheckpointError, ConfigError, DataError, MissingError
from miudo.families import for_config
from miudo.families.family import Family
from miudo.files import sha256_file
from miudo.formats import open_model
from miudo.formats.hf import write_folder
from miudo.formats.model_file import ModelFile
from miudo.formats.zeros import sparse_settings
from miudo.meter import Meter
from miudo.plain_json import read_json, write_json
from miudo.presets import load_preset
from miudo.protocol import SamplingSettings
from miudo.records import Artefact, Measurement, Record, shared_licence
from miudo.tensors import parameter_count
from miudo.text.tokenizer import TextTokenizer
from miudo.train.artefact import begun_as_used
from miudo.train.checkpoint import checkpoint_steps
from miudo.train.loop import FitResult, Sampler, fit
from miudo.train.progress import Progress, Silent
from miudo.train.run_folder import ELSEWHERE, RunFolder, locked_run_folder
from miudo.train.settings import FitSettings
from miudo.train.start import Start, open_start

__all__ = ["SCHEMA", "Pretrained", "TrainJob", "config_for", "resume", "sample_writer", "train"]

SCHEMA = 1
_RUN_FILE = "run.json"
_VOCABULARY_MULTIPLE = 64
_SAMPLE_TOKENS = 48


@dataclass(frozen=True, slots=True)
class TrainJob:
    """What to train on, into which folder, and how.

    `inputs` are texts (files, folders, globs, "-"), or one data folder; `prepare` says how
    texts become one. `shape` is a preset's name or a config; the tokenizer's vocabulary,
    padded to a multiple of 64, replaces its own. `init` is a model whose weights, shape and
    tokenizer are the start instead, its ids of begin and end kept; `keep_zeros` is for one that
    was pruned, None goes by its record. Chats are packed through `chat_template`, which goes into
    the model; without one, that which they were packed through does.
    """

    inputs: tuple[str, ...]
    out: Path
    settings: FitSettings
    shape: str | ModelConfig = "1m"
    prepare: PrepareSettings = field(default_factory=PrepareSettings)
    tokenizer: TextTokenizer | None = None
    chat_template: str | None = None
    init: Path | None = None
    keep_zeros: bool | None = None


@dataclass(frozen=True, slots=True)
class Pretrained:
    """Where the model lies, how the run ended, and its record."""

    folder: Path
    config: ModelConfig
    fit: FitResult
    record: Record


@dataclass(frozen=True, slots=True)
class _Order:
    """What run.json holds, parsed."""

    data: Path
    data_sha256: str
    shape: str | None
    config: ModelConfig
    settings: FitSettings
    chat_template: str | None
    start: Start | None
    keep_zeros: bool | None

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """Raises the errors of wrong kinds and values for what is no order."""
        if values["schema"] != SCHEMA:
            raise ValueError(f"schema {values['schema']}, this miudo reads {SCHEMA}")
        return cls(
            data=Path(values["data"]),
            data_sha256=values["data_sha256"],
            shape=values["shape"],
            config=ModelConfig.from_json(values["config"]),
            settings=FitSettings.from_json(values["settings"]),
            chat_template=values["chat_template"],
            start=Start.from_json(values["start"]) if values.get("start") else None,
            keep_zeros=values.get("keep_zeros"),
        )


def train(job: TrainJob, progress: Progress | None = None) -> Pretrained:
    """Trains a new model and writes it into `job.out`.

    Raises what `prepare` and `fit` raise, UsageError where `out` holds a run already, and
    ConfigError for a shape that no known file format can hold.
    """
    progress = progress or Silent()
    start = None
    if job.init is not None:
        start, tokenizer, template = open_start(job.init, job.settings.length)
        template = job.chat_template or template
        job = dataclasses.replace(
            job, shape=start.config, tokenizer=tokenizer, chat_template=template
        )
    # Now, not after hours of packing and training.
    _family(load_preset(job.shape) if isinstance(job.shape, str) else job.shape)
    with locked_run_folder(job.out) as folder:
        folder.check_free()
        data = _data(job, progress)
        _check_parts(data, job.settings.length)
        template = _chat_template(job, data)
        config = start.config if start else config_for(job.shape, data, job.settings.length)
        order = {
            "schema": SCHEMA,
            "data": str(data.folder.resolve()),
            "data_sha256": sha256_file(data.folder / MANIFEST_FILE),
            "shape": job.shape if isinstance(job.shape, str) else None,
            "config": config.to_json(),
            "settings": job.settings.to_json(),
            "chat_template": template,
            "start": None if start is None else start.to_json(),
            "keep_zeros": job.keep_zeros,
        }
        write_json(job.out / _RUN_FILE, order)
        return _run(folder, _Order.read(order), progress, going_on=False)


def resume(
    out: Path,
    progress: Progress | None = None,
    *,
    from_step: int | None = None,
    end: bool = False,
) -> Pretrained:
    """Goes on with the run in `out`, to the same model as if it had not been interrupted.

    With `end` its checkpoint becomes the model, without another step; the run can be gone on
    with all the same.

    Raises MissingError where there is none, and what `fit` raises.
    """
    path = out / _RUN_FILE
    if not path.exists():
        raise MissingError("holds no run", where=out, remedy="Start one without --resume")
    with locked_run_folder(out) as folder:
        values = read_json(path, CheckpointError, remedy=ELSEWHERE)
        try:
            order = _Order.read(values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"cannot be read ({error})", where=path, remedy=ELSEWHERE
            ) from error
        return _run(
            folder, order, progress or Silent(), going_on=True, from_step=from_step, end=end
        )


def config_for(shape: str | ModelConfig, data: DataSet, length: int) -> ModelConfig:
    """Returns the shape with the vocabulary and end token of `data`'s tokenizer.

    Its positions are the `length` of a row: beyond those it would be asked what it never saw.
    """
    config = load_preset(shape) if isinstance(shape, str) else shape
    tokenizer = data.tokenizer()
    return dataclasses.replace(
        config,
        vocab_size=tokenizer.padded_size(_VOCABULARY_MULTIPLE),
        max_positions=length,
        bos_id=data.end_id,
        eos_ids=(data.end_id,),
        pad_id=tokenizer.special_ids.get("<|pad|>"),
    )


def sample_writer(tokenizer: TextTokenizer, seed: int, end_id: int) -> Sampler:
    """Returns a sampler that writes one beginning, at temperature 0.8, always of one seed."""
    settings = GenerateSettings(
        max_tokens=_SAMPLE_TOKENS,
        sampling=SamplingSettings(temperature=0.8, top_p=0.95, seed=seed),
        eos_ids=(end_id,),
    )

    def write(decoder: Decoder) -> str:
        events = generate(TorchEngine(decoder), tokenizer, (end_id,), settings)
        return "".join(event.text for event in events)

    return write


def _data(job: TrainJob, progress: Progress) -> DataSet:
    if len(job.inputs) == 1 and (Path(job.inputs[0]) / MANIFEST_FILE).is_file():
        data = DataSet.open(Path(job.inputs[0]))
        wanted = job.tokenizer
        if wanted is not None and wanted.fingerprint != data.tokenizer().fingerprint:
            raise ConfigError(
                "was packed with another tokenizer",
                where=data.folder,
                remedy="Give the text itself, or train without --tokenizer",
            )
        return data
    settings = job.prepare
    if settings.pack.template is None:
        pack = dataclasses.replace(settings.pack, template=job.chat_template)
        settings = dataclasses.replace(settings, pack=pack)
    if job.init is not None and isinstance(job.shape, ModelConfig) and job.tokenizer is not None:
        settings = begun_as_used(settings, job.tokenizer, job.shape)
    if job.tokenizer is None and isinstance(job.shape, str) and settings.vocab_size is None:
        settings = dataclasses.replace(settings, vocab_size=load_preset(job.shape).vocab_size)
    return prepare(
        job.inputs,
        job.out / "data",
        tokenizer=job.tokenizer,
        settings=settings,
        progress=progress.note,
    )


def _chat_template(job: TrainJob, data: DataSet) -> str | None:
    """Returns the model's template. Raises ConfigError where the chats are of another."""
    written = data.chat_template
    if None not in (written, job.chat_template) and written != job.chat_template:
        raise ConfigError(
            "its chats were packed through another chat template than the model is to have",
            where=data.folder,
            remedy="Give --chat-template the one they were packed through, or the text itself",
        )
    return job.chat_template or written


def _check_parts(data: DataSet, length: int) -> None:
    """Raises ConfigError for a source of a mixture that no row would be taken from."""
    parts = data.parts()
    for part in parts if len(parts) > 1 else ():
        if not part.rows(length):
            raise ConfigError(
                f"gives no row of {length} tokens: it has {part.tokens:,} at weight "
                f"{part.weight:g}",
                where=f"source {part.name!r}",
                remedy="Raise its weight, shorten the rows, or take it out of the recipe",
            )


def _run(
    folder: RunFolder,
    order: _Order,
    progress: Progress,
    *,
    going_on: bool,
    from_step: int | None = None,
    end: bool = False,
) -> Pretrained:
    out, settings, config = folder.path, order.settings, order.config
    data = DataSet.open(order.data)
    if sha256_file(order.data / MANIFEST_FILE) != order.data_sha256:
        # The tokens may be the same and a mixture's weights not: other batches.
        raise DataError(
            "is not the data that the run began with",
            where=order.data,
            remedy="Prepare it again as it was, or start a new run in another folder",
        )
    tokenizer = data.tokenizer()
    masks = None
    if order.start is not None and not (going_on and checkpoint_steps(folder.checkpoints)):
        decoder = order.start.decoder()
        masks = masks_to_keep(
            decoder,
            order.start.record,
            weights=open_model(order.start.path).weights,
            keep=order.keep_zeros,
            where=order.start.path,
        )
    else:
        decoder = Decoder(config)
        decoder.initialise(settings.seed)
    with Meter() as meter:
        result = fit(
            decoder,
            data.open_split("train"),
            settings,
            folder,
            masks=masks,
            held_out=_held_out(data, settings),
            progress=progress,
            sampler=sample_writer(tokenizer, settings.seed, data.end_id),
            resume=going_on,
            from_step=from_step,
            end=end,
        )
    record = _record(out, order, data, result, meter.measurements())
    model = ModelFile(
        config=config,
        weights=decoder.to_weights(),
        tokenizer=tokenizer.spec,
        chat_template=order.chat_template,
        record=record,
        architecture=_family(config).architectures[0],
        path=None,
    )
    write_folder(out / "model", model)
    progress.note(f"model written to {out / 'model'}")
    return Pretrained(out / "model", config, result, Record.read(out / "model") or record)


def _family(config: ModelConfig) -> Family:
    family = for_config(config)
    if family is None:
        raise ConfigError(
            "no Hugging Face architecture that miudo writes can hold this shape",
            where="shape",
            remedy="Start from a preset, or change one switch at a time",
        )
    return family


def _held_out(data: DataSet, settings: FitSettings) -> PackedTokens | None:
    held_out = data.open_split("held_out")
    return held_out if held_out.n_blocks(settings.length) else None


def _exposure(config: ModelConfig, data: DataSet, length: int, tokens: int) -> dict[str, float]:
    """Returns how much text was seen and how often, in all and for each part of a mixture."""
    parts = data.parts()
    rows = [part.rows(length) for part in parts]
    shares = [row / max(1, sum(rows)) for row in rows]
    bare = parameter_count(config, embeddings=False)
    found = {
        "unique_tokens": data.tokens("train"),
        "epochs": tokens / max(1, data.tokens("train")),
        "tokens_per_parameter": tokens / parameter_count(config),
        "tokens_per_parameter_without_embeddings": tokens / max(1, bare),
    }
    for part, share in zip(parts if len(parts) > 1 else (), shares, strict=False):
        found[f"epochs.{part.name}"] = tokens * share / max(1, part.tokens)
    return found


def _record(
    out: Path,
    order: _Order,
    data: DataSet,
    result: FitResult,
    metered: Sequence[Measurement],
) -> Record:
    settings, config, start = order.settings, order.config, order.start
    parents = (Record.read(data.folder), None if start is None else start.record)
    known = tuple(record for record in parents if record is not None)
    counted: dict[str, float] = {
        "parameters": parameter_count(config),
        "parameters_without_embeddings": parameter_count(config, embeddings=False),
        **_exposure(config, data, settings.length, result.tokens),
    }
    found = [Measurement(name, value, "1", "counted") for name, value in counted.items()]
    found += result.measurements(settings)
    plan = dataclasses.asdict(result.plan)
    return Record(
        verb="train",
        name=out.name,
        settings={
            **settings.to_json(),
            "shape": order.shape,
            "plan": plan,
            **sparse_settings(result.zeros),
        },
        seed=settings.seed,
        inputs=(
            Artefact("data", data.folder.name, order.data_sha256),
            *(() if start is None else (start.artefact,)),
        ),
        measurements=(*found, *metered),
        parents=known,
        licence=shared_licence(known),
        notes=("synthetic text: written by a program, not by people",)
        if data.manifest["synthetic"]
        else (),
    )
