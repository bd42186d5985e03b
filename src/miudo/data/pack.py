"""Documents become token files, parted into training and held-out text by document.

For: writing a data folder (`train.bin`, `held_out.bin`, `tokenizer.json`, `manifest.json`).
Not for: reading it while training (`miudo.data.packed`).
Read next: `miudo.data.packed`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from miudo.data.mixture import Source
from miudo.data.packed import MANIFEST_FILE, SCHEMA, TOKENIZER_FILE, DataSet
from miudo.data.sources import Document
from miudo.errors import ConfigError, DataError
from miudo.files import atomic_folder, atomic_write, sha256_file
from miudo.plain_json import write_json
from miudo.records import Artefact, Record
from miudo.text.chat import DEFAULT_TEMPLATE, ChatTemplate, encode_chat
from miudo.text.tokenizer import DEFAULT_SPECIALS, TextTokenizer

__all__ = ["Origin", "PackSettings", "hold_out", "kept_apart", "pack"]

# What ends a document where no end token is named: the first of these that the tokenizer has.
_END_TOKENS = (
    "<|end|>", "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "<|eot_id|>",
)  # fmt: skip
_NO_BEGIN = ("begin_token", None)
_BATCH_CHARS = 1 << 21
_BATCH_DOCUMENTS = 1024


@dataclass(frozen=True, slots=True)
class PackSettings:
    """`held_out`: the share of documents kept from training; `end_token` follows each document.

    `end_token` None takes the tokenizer's own; `template` None the default chat template.
    `begin_token` stands before each text that is no chat; None is none.
    """

    held_out: float = 0.02
    seed: int = 0
    end_token: str | None = None
    template: str | None = None
    begin_token: str | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.held_out < 1.0:
            raise ConfigError(f"held_out is {self.held_out}, allowed 0 up to below 1")
        if not 0 <= self.seed < 1 << 64:
            raise ConfigError(f"seed is {self.seed}, allowed 0 to 2**64 - 1")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where documents come from: source files with hashes; whether a program wrote them.

    `mixture` are the sources that `Document.part` numbers, if there is a mixture. `record`
    makes the folder's record from the finished data; the folder appears with it.
    """

    sources: tuple[Artefact, ...] = ()
    synthetic: bool = False
    mixture: tuple[Source, ...] = ()
    record: Callable[[DataSet], Record] | None = None


@dataclass(frozen=True, slots=True)
class _Item:
    """One document in the spool: where it belongs by its source and hash, and its size."""

    part: int
    rank: float
    tokens: int
    text_bytes: int
    chat: bool


def hold_out(text: str, seed: int) -> float:
    """Returns a number in [0, 1) from the text and the seed alone; below `held_out`: held out.

    Equal texts are always on one side, and adding documents moves none.
    """
    digest = hashlib.sha256(seed.to_bytes(8, "little") + text.encode()).digest()
    return float(int.from_bytes(digest[:6], "little")) * 2.0**-48


def _held_out_limit(ranks: Iterable[float], share: float) -> float:
    """Returns the rank below which documents are held out, so that neither part is empty.

    `ranks` are those of `hold_out`, of all documents. Raises DataError where there is none, or
    where a share is to be held out of one alone.
    """
    known = sorted(set(ranks))
    if not known:
        raise DataError("there is no document", remedy="Name files that hold text")
    if share == 0.0:
        return 0.0
    if len(known) < 2:
        raise DataError(
            f"{share:.1%} of documents are to be held out, but there is only one",
            remedy="Name several files, or put lines of <|endoftext|> between documents. Only to "
            "train, hold none out: --set prepare.pack.held_out=0 (`miudo prepare`: pack.held_out)",
        )
    return known[1] if known[0] >= share else min(share, known[-1])


def kept_apart(
    ranks: Sequence[tuple[int, float]], settings: PackSettings, mixture: Sequence[Source] = ()
) -> list[bool]:
    """Returns, for each document, whether it is kept from training.

    `ranks` are (part, rank) of all documents, the rank by `hold_out`. Of one text that stands in
    two sources both are held out if one is. Raises DataError where there is no document, or
    where a share is to be held out of one alone.
    """
    limits = _limits(ranks, settings, mixture)
    kept = {rank for part, rank in ranks if rank < limits[part]}
    return [rank in kept for _, rank in ranks]


def _limits(
    ranks: Sequence[tuple[int, float]], settings: PackSettings, mixture: Sequence[Source]
) -> dict[int, float]:
    limits = {}
    for part in sorted({part for part, _ in ranks}) or [0]:
        source = mixture[part] if mixture else None
        own = source.held_out if source is not None else None
        share = settings.held_out if own is None else own
        try:
            limits[part] = _held_out_limit((rank for p, rank in ranks if p == part), share)
        except DataError as error:
            if source is None:
                raise
            raise DataError(
                error.what,
                where=f"source {source.name!r}",
                remedy="Give the source held_out = 0, or a read.split that parts it",
            ) from error
    return limits


def pack(
    documents: Iterable[Document],
    tokenizer: TextTokenizer,
    out: Path,
    *,
    held_out: float | None = None,
    seed: int | None = None,
    settings: PackSettings | None = None,
    origin: Origin | None = None,
) -> DataSet:
    """Writes a data folder and returns it; an older data folder at `out` is replaced whole.

    `held_out` and `seed` stand above those of `settings`. Raises DataError where there is no
    document, where a share is to be held out of one document alone, or where `out` is a
    folder of another kind.
    """
    origin = origin or Origin()
    settings = settings or PackSettings()
    if held_out is not None:
        settings = replace(settings, held_out=held_out)
    if seed is not None:
        settings = replace(settings, seed=seed)
    _check_free(out)
    end_id = _end_id(tokenizer, settings)
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    with atomic_folder(out) as folder:
        spool = folder / "spool.bin"
        items: list[_Item] = []
        encoded = _encoded(documents, tokenizer, settings, items)
        atomic_write(
            spool, lambda f: f.writelines(np.asarray(ids, dtype).tobytes() for ids in encoded)
        )
        held = kept_apart([(i.part, i.rank) for i in items], settings, origin.mixture)
        splits = {}
        for name in ("train", "held_out"):
            wanted = [kept == (name == "held_out") for kept in held]
            path = folder / f"{name}.bin"
            atomic_write(path, _copier(spool, items, wanted, dtype.itemsize))
            splits[name] = _split(path, items, wanted, origin.mixture)
        spool.unlink()
        atomic_write(folder / TOKENIZER_FILE, lambda f: f.write(tokenizer.to_json()))
        manifest = {
            "schema": SCHEMA,
            "dtype": "uint16" if dtype.itemsize == 2 else "uint32",
            "vocab_size": tokenizer.vocab_size,
            "tokenizer": tokenizer.fingerprint,
            "end_id": end_id,
            # Without a begin no key of it: such a manifest's hash is what it always was.
            "settings": {k: v for k, v in asdict(settings).items() if (k, v) != _NO_BEGIN},
            "synthetic": origin.synthetic,
            "sources": [asdict(s) for s in origin.sources],
            "splits": splits,
            **({"chats": chats} if (chats := sum(item.chat for item in items)) else {}),
        }
        write_json(folder / MANIFEST_FILE, manifest)
        if origin.record is not None:
            origin.record(DataSet.open(folder)).write(folder)
    return DataSet.open(out)


def _check_free(out: Path) -> None:
    if out.exists() and not (
        out.is_dir() and ((out / MANIFEST_FILE).is_file() or not any(out.iterdir()))
    ):
        raise DataError(
            "is there already and is no data folder",
            where=out,
            remedy="Choose another folder with --out",
        )


def _begin_ids(tokenizer: TextTokenizer, settings: PackSettings) -> list[int]:
    if settings.begin_token is None:
        return []
    if settings.begin_token not in tokenizer.special_ids:
        raise DataError(
            f"the tokenizer has no begin token {settings.begin_token!r}",
            remedy=f"Choose begin_token among {sorted(tokenizer.special_ids)[:20]}",
        )
    return [tokenizer.special_ids[settings.begin_token]]


def _end_id(tokenizer: TextTokenizer, settings: PackSettings) -> int:
    special = tokenizer.special_ids
    names = (settings.end_token,) if settings.end_token is not None else _END_TOKENS
    for name in names:
        if name in special:
            return special[name]
    raise DataError(
        f"the tokenizer has no end token (looked for {', '.join(map(str, names))})",
        remedy=f"Choose end_token among {sorted(special)[:20]}",
    )


def _encoded(
    documents: Iterable[Document],
    tokenizer: TextTokenizer,
    settings: PackSettings,
    items: list[_Item],
) -> Iterator[list[int]]:
    """Yields every document's ids, noting it in `items`.

    Each is encoded once and spooled, because which part it goes to may need all to be known.
    """
    end_id = _end_id(tokenizer, settings)
    begin, template = _begin_ids(tokenizer, settings), _template(tokenizer, settings)
    for batch in _batches(documents):
        for document, ids in zip(batch, _encode(batch, tokenizer, template), strict=True):
            if not document.messages:  # a chat begins as its template says
                ids = begin + ids
            # A chat template ends a turn with the same token: one is enough.
            if not ids or ids[-1] != end_id:
                ids.append(end_id)
            rank = hold_out(document.text, settings.seed)
            if items and items[-1].part > document.part:  # a part is one run of ids in the file
                raise DataError("documents of one source do not follow one another")
            size, chat = len(document.text.encode()), bool(document.messages)
            items.append(_Item(document.part, rank, len(ids), size, chat))
            yield ids


def _encode(
    batch: Sequence[Document], tokenizer: TextTokenizer, template: ChatTemplate | None
) -> Iterator[list[int]]:
    plain = iter(tokenizer.encode_batch([d.text for d in batch if not d.messages]))
    for document in batch:
        if not document.messages:
            yield next(plain)
        elif template is not None:
            yield encode_chat(tokenizer, template, document.messages, add_generation_prompt=False)
        else:
            raise DataError(
                "is a chat, and the tokenizer has not the default template's tokens",
                where=f"{document.source}, document {document.index}",
                remedy="Name a chat template",
            )


def _template(tokenizer: TextTokenizer, settings: PackSettings) -> ChatTemplate | None:
    if settings.template is not None:
        return ChatTemplate(settings.template)
    has_tokens = set(DEFAULT_SPECIALS[:4]) <= set(tokenizer.special_ids)
    return ChatTemplate(DEFAULT_TEMPLATE) if has_tokens else None


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    rest = iter(documents)
    while batch := list(islice(rest, 1)):
        size = len(batch[0].text)
        while size < _BATCH_CHARS and len(batch) < _BATCH_DOCUMENTS:
            document = next(rest, None)
            if document is None:
                break
            batch.append(document)
            size += len(document.text)
        yield batch


def _copier(
    spool: Path, items: Sequence[_Item], wanted: Sequence[bool], id_bytes: int
) -> Callable[[IO[bytes]], None]:
    def copy(target: IO[bytes]) -> None:
        with spool.open("rb") as source:
            for item, take in zip(items, wanted, strict=True):
                raw = source.read(item.tokens * id_bytes)
                if take:
                    target.write(raw)

    return copy


def _split(
    path: Path, items: Sequence[_Item], wanted: Sequence[bool], mixture: Sequence[Source]
) -> dict[str, Any]:
    taken = [item for item, take in zip(items, wanted, strict=True) if take]
    found = {"file": path.name, **_counts(taken), "sha256": sha256_file(path)}
    if mixture:
        found["parts"] = [
            {
                "name": source.name,
                "licence": source.licence,
                "weight": source.weight,
                **_counts([item for item in taken if item.part == number]),
            }
            for number, source in enumerate(mixture)
        ]
    return found


def _counts(items: Sequence[_Item]) -> dict[str, int]:
    return {
        "documents": len(items),
        "tokens": sum(item.tokens for item in items),
        "text_bytes": sum(item.text_bytes for item in items),
    }
