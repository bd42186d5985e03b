"""From files of text to a data folder: read, clean, drop duplicates, train a tokenizer, pack.

For: `miudo prepare` and the demo; each step is also a function of its own.
Not for: choosing what to train on.
Read next: `miudo.data.sources`, then the steps in the order they are called here.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from miudo.data.clean import CleanReport, clean_documents
from miudo.data.dedupe import DedupeReport, DedupeSettings, drop_duplicates
from miudo.data.lines import STDIN
from miudo.data.mixture import Source, read_mixture, source_files, stated_licence
from miudo.data.pack import Origin, PackSettings, hold_out, kept_apart, pack
from miudo.data.packed import MANIFEST_FILE, TOKENIZER_FILE, DataSet
from miudo.data.sources import RECORD_SUFFIX, Document, ReadSettings, find_files, read_documents
from miudo.errors import MissingError, UsageError
from miudo.files import sha256_file
from miudo.plain_json import read_json
from miudo.records import Artefact, Measurement, Record, shared_licence
from miudo.text.tokenizer import TextTokenizer, train_bpe

__all__ = ["PrepareSettings", "prepare"]

_VOCAB_SIZE = 8192
_KEPT_IN_RECORD = 20  # dropped documents named in the record; the counts are whole


@dataclass(frozen=True, slots=True)
class PrepareSettings:
    """The settings of every step.

    `vocab_size` counts where a tokenizer is trained; None is that of the shape to be trained,
    8192 where there is none. `sources` are a mixture, their paths under `root`; each has its
    own `read`.
    """

    vocab_size: int | None = None
    root: str = ""
    sources: tuple[Source, ...] = ()
    read: ReadSettings = field(default_factory=ReadSettings)
    dedupe: DedupeSettings | None = field(default_factory=DedupeSettings)
    pack: PackSettings = field(default_factory=PackSettings)


def prepare(
    inputs: Sequence[str | Path],
    out: Path,
    *,
    tokenizer: TextTokenizer | None = None,
    settings: PrepareSettings | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> DataSet:
    """Writes a data folder with its record and returns it.

    The text is that of `inputs`, or of `settings.sources`. Without `tokenizer`, a byte-level
    BPE of `settings.vocab_size` is trained on the documents that are not held out. The text of
    all documents is held in memory. Raises MissingError and DataError as its steps do; nothing
    is written then.
    """
    settings = settings or PrepareSettings()
    started = time.monotonic()
    files, read = _texts(inputs, settings)
    cleaned, doubles = CleanReport(), DedupeReport()
    kept = clean_documents(read, cleaned)
    if settings.dedupe is not None:
        kept = drop_duplicates(kept, doubles, settings.dedupe)
    documents = list(kept)
    progress(
        f"{cleaned.documents} documents read, {len(doubles.exact)} exact and "
        f"{len(doubles.near)} near duplicates dropped"
    )
    if tokenizer is None:
        tokenizer = _trained(documents, settings)
        progress(f"tokenizer of {tokenizer.vocab_size} tokens trained")
    sources = [_artefact(path, documents) for path in files]
    parents = tuple(r for path in files if (r := _record_of(path)) is not None)
    synthetic = bool(parents) and all(r.settings.get("synthetic") is True for r in parents)

    def record(data: DataSet) -> Record:
        counts = _counts(cleaned, doubles, data, time.monotonic() - started)
        made = _record(data, settings, parents, counts, _notes(doubles, data))
        shared = shared_licence(parents) if len(parents) == len(files) else None
        return replace(made, name=out.name, licence=stated_licence(settings.sources) or shared)

    synthetic = synthetic and len(parents) == len(files)
    origin = Origin(tuple(sources), synthetic, settings.sources, record)
    data = pack(documents, tokenizer, out, settings=settings.pack, origin=origin)
    progress(f"{data.tokens('train')} tokens to train on, {data.tokens('held_out')} held out")
    return data


def _texts(
    inputs: Sequence[str | Path], settings: PrepareSettings
) -> tuple[list[Path], Iterable[Document]]:
    """Returns the files of `inputs` or of the mixture, and their documents."""
    if not settings.sources:
        files = find_files(inputs)
        return files, read_documents(list(files), settings.read)
    if inputs:
        raise UsageError(
            "text is named twice, by the settings' sources too",
            where=", ".join(map(str, inputs)),
            remedy="Leave out one of them",
        )
    root = Path(settings.root)
    files = [path for _, path in source_files(settings.sources, root)]
    return files, read_mixture(settings.sources, root)


def _trained(documents: Sequence[Document], settings: PrepareSettings) -> TextTokenizer:
    """Held-out text must not shape the vocabulary that measures it."""
    ranks = [(d.part, hold_out(d.text, settings.pack.seed)) for d in documents]
    held = kept_apart(ranks, settings.pack, settings.sources)
    seen = [d for d, kept in zip(documents, held, strict=True) if not kept]
    texts = (part for d in seen for part in ([m.content for m in d.messages] or [d.text]))
    return train_bpe(texts, vocab_size=settings.vocab_size or _VOCAB_SIZE)


def _artefact(path: Path, documents: Sequence[Document]) -> Artefact:
    if path != STDIN:
        return Artefact("source", path.name, sha256_file(path))
    digest = hashlib.sha256()  # of the cleaned text: the stream itself is gone
    for document in documents:
        if document.source == str(STDIN):
            digest.update(document.text.encode() + b"\0")
    return Artefact("source", "stdin", digest.hexdigest())


def _record_of(path: Path) -> Record | None:
    """Returns the record beside a source file, if there is one."""
    beside = path.with_name(path.name + RECORD_SUFFIX)
    try:
        return Record.from_json(read_json(beside), where=beside)
    except MissingError:
        return None


def _counts(
    cleaned: CleanReport, doubles: DedupeReport, data: DataSet, seconds: float
) -> list[Measurement]:
    counted: dict[str, float] = {f"clean.{k}": v for k, v in asdict(cleaned).items()}
    counted |= {"duplicates.exact": len(doubles.exact), "duplicates.near": len(doubles.near)}
    for split in ("train", "held_out"):
        part: dict[str, Any] = data.manifest["splits"][split]
        counted |= {f"{split}.{k}": part[k] for k in ("documents", "tokens", "text_bytes")}
    found = [Measurement(name, value, "1", "counted") for name, value in counted.items()]
    return [*found, Measurement("time", seconds, "s", "monotonic clock")]


def _notes(doubles: DedupeReport, data: DataSet) -> list[str]:
    notes = [
        f"dropped {d.source} document {d.index}: {d.similarity:.2f} like "
        f"{d.kept_source} document {d.kept_index}"
        for d in [*doubles.exact, *doubles.near][:_KEPT_IN_RECORD]
    ]
    if data.manifest["synthetic"]:
        notes.insert(0, "synthetic text: written by a program, not by people")
    return notes


def _record(
    data: DataSet,
    settings: PrepareSettings,
    parents: tuple[Record, ...],
    measurements: Sequence[Measurement],
    notes: Sequence[str],
) -> Record:
    files = ("train.bin", "held_out.bin", TOKENIZER_FILE, MANIFEST_FILE)
    return Record(
        verb="prepare",
        name=data.folder.name,
        settings=_plain(settings) | {"synthetic": data.manifest["synthetic"]},
        seed=settings.pack.seed,
        inputs=tuple(Artefact(**source) for source in data.manifest["sources"]),
        outputs={name: sha256_file(data.folder / name) for name in files},
        measurements=tuple(measurements),
        parents=parents,
        notes=tuple(notes),
    )


def _plain(settings: PrepareSettings) -> dict[str, Any]:
    # The root is a place on one machine; records travel.
    return {name: value for name, value in asdict(settings).items() if name != "root"}
