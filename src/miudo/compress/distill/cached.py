"""A teacher's answers on disk: asked once, learned from by many students and in many epochs.

For: making a cache shard by shard, going on after `kill -9`, and refusing another teacher's,
tokenizer's or text's.
Not for: what is stored of a token (`miudo.compress.distill.codes`), or learning from it.
Read next: `miudo.compress.distill.cached_loss`.

    FOLDER/cache.json         the plan: teacher, tokenizer, text, codes, and how many blocks
    FOLDER/shard-00000.bin    "MIUDOKD1", the plan's hash, the shard's number and blocks (u32),
                              SHA-256 of the rest: a digest of each block's ids, then its codes

`write_shard` is a function of its arguments alone, so that Ray Data can map it over
`range(plan.n_shards)`; one machine calls it in turn (`make_cache`).

Shapes: T length, n blocks of a shard.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from miudo.compress.distill.codes import Codes, DrawCodes, TopCodes, coarse_kl
from miudo.compress.method import check_finite, in_range
from miudo.compress.settings import settings_to_json
from miudo.decoder.decoder import Decoder
from miudo.errors import CheckFailedError, ConfigError, DataError, ResourceError
from miudo.files import atomic_write, open_regular, translated_disk_errors
from miudo.plain_json import read_json, write_json
from miudo.train.evaluation import as_it_runs
from miudo.train.stepper import Tokens

__all__ = ["CachePlan", "TeacherCache", "make_cache", "write_shard"]

_SCHEMA = 1
_PLAN_FILE = "cache.json"
_HEAD = struct.Struct("<8s32sII32s")
_MAGIC = b"MIUDOKD1"
_DIGEST = 16
_SPARE_BYTES = 64 << 20
_CHUNK_LOGITS = 1 << 22
_MOST_LOST = 0.01
"""Nats a token that coding may lose; more means that the codes do not hold what was said."""

_IdArray = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class CachePlan:
    """What is asked of whom: two caches of equal plans hold the same.

    `teacher` is the hash of its weights, `tokenizer` a fingerprint, `data` the hash of the ids,
    which lie in `n_blocks` blocks of `length` tokens.
    """

    teacher: str
    tokenizer: str
    data: str
    vocab_size: int
    length: int
    n_blocks: int
    codes: TopCodes | DrawCodes = field(default_factory=TopCodes)
    shard_blocks: int = 1024

    def __post_init__(self) -> None:
        in_range("shard_blocks", self.shard_blocks, 1, 1 << 24, whole=True)
        if self.n_blocks < 1:
            raise DataError(
                f"the text has no block of {self.length} tokens",
                remedy="Give more text, or a smaller --length",
            )
        self.codes.dtype(self.vocab_size)

    @property
    def n_shards(self) -> int:
        """How many files there are."""
        return -(-self.n_blocks // self.shard_blocks)

    @property
    def bytes_per_token(self) -> int:
        """Bytes that the codes of a token take; a block has 16 more, a file 80."""
        return self.codes.dtype(self.vocab_size).itemsize

    @property
    def size_bytes(self) -> int:
        """Bytes of all shards."""
        block = _DIGEST + self.length * self.bytes_per_token
        return self.n_shards * _HEAD.size + self.n_blocks * block

    def blocks(self, index: int) -> range:
        """Returns the numbers of a shard's blocks."""
        first = index * self.shard_blocks
        return range(first, min(first + self.shard_blocks, self.n_blocks))

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        values = settings_to_json(self) | {"schema": _SCHEMA}
        return values | {"codes": {"kind": self.codes.kind, **settings_to_json(self.codes)}}

    def fingerprint(self) -> bytes:
        """Returns the SHA-256 of the plan, which every shard carries."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).digest()


class TeacherCache:
    """A whole cache, open for reading. Build it with `open`."""

    def __init__(self, plan: CachePlan, shards: list[tuple[npt.NDArray[np.bytes_], Codes]]) -> None:
        self.plan = plan
        self._codes = [codes for _, codes in shards]
        self._places = {
            digest.tobytes(): (shard, row)
            for shard, (digests, _) in enumerate(shards)
            for row, digest in enumerate(digests)
        }

    @classmethod
    def open(cls, folder: Path, plan: CachePlan) -> Self:
        """Returns the cache in `folder`, every byte of it checked.

        Raises ConfigError naming what differs if it is of another plan, MissingError for a shard
        that is not there, DataError for one that is damaged or belongs elsewhere.
        """
        _check_plan(folder, plan)
        return cls(plan, [_read_shard(folder, plan, i) for i in range(plan.n_shards)])

    def codes(self, ids: _IdArray) -> Codes:
        """Returns the codes [B, T] of blocks of ids [B, T + 1], found by what is in them.

        Any order of blocks will do, and a block that the teacher was not asked about cannot be
        taken for one that it was: DataError.
        """
        found = []
        for row in ids:
            place = self._places.get(_digest(row))
            if place is None:
                raise DataError(
                    f"a block that begins with ids {row[:4].tolist()} is not in the cache",
                    remedy="Learn from the blocks that it was made of (`FixedBlocks`)",
                )
            shard, number = place
            found.append(self._codes[shard][number])
        return np.stack(found)


def make_cache(
    folder: Path,
    plan: CachePlan,
    teacher: Decoder,
    data: Tokens,
    note: Callable[[str], None] = lambda _: None,
) -> TeacherCache:
    """Asks `teacher` about every block of `data`, and returns the cache in `folder`.

    Shards that lie there already are kept, so that a broken run goes on where it was. Raises
    ConfigError where `folder` holds a cache of another plan, ResourceError for too little room,
    and what `write_shard` raises.
    """
    check_finite(teacher)
    with translated_disk_errors(folder, "Free some space, or name another folder"):
        folder.mkdir(parents=True, exist_ok=True)
    if (folder / _PLAN_FILE).exists():
        _check_plan(folder, plan)
    _check_room(folder, plan)
    write_json(folder / _PLAN_FILE, plan.to_json())
    for left in folder.glob(f".shard-*.bin.{'[0-9a-f]' * 8}.tmp"):
        left.unlink(missing_ok=True)
    for index in range(plan.n_shards):
        write_shard(folder, plan, teacher, data, index)
        note(f"teacher's answers: shard {index + 1} of {plan.n_shards}")
    return TeacherCache.open(folder, plan)


def write_shard(folder: Path, plan: CachePlan, teacher: Decoder, data: Tokens, index: int) -> Path:
    """Writes one shard, atomically, and returns its path; one that lies there whole is kept.

    Raises ConfigError for a teacher or data that is not the plan's, ResourceError for a full
    disk, CheckFailedError if the codes do not give back what the teacher said.
    """
    vocab = teacher.config.vocab_size
    if vocab != plan.vocab_size:
        raise ConfigError(f"the teacher has {vocab} tokens, the plan {plan.vocab_size}")
    if (data.sha256, data.n_blocks(plan.length)) != (plan.data, plan.n_blocks):
        raise ConfigError("the text is not that of the plan", where=folder)
    path = _path(folder, index)
    if path.exists():
        try:
            _read_shard(folder, plan, index)
            return path
        except DataError:  # torn or another's: written again
            path.unlink()
    blocks = plan.blocks(index)
    digests, parts = [], []
    with as_it_runs(teacher):
        for number in blocks:
            row = data.block(number, plan.length)
            if row.min() < 0 or row.max() >= vocab:
                raise DataError(f"holds an id outside the {vocab}", where=f"block {number}")
            digests.append(_digest(row))
            parts.append(_asked(teacher, plan, row, number, check=number == blocks.start))
    body = b"".join(digests) + b"".join(part.tobytes() for part in parts)
    head = _HEAD.pack(_MAGIC, plan.fingerprint(), index, len(blocks), hashlib.sha256(body).digest())

    atomic_write(path, lambda file: file.writelines((head, body)))
    return path


def _asked(teacher: Decoder, plan: CachePlan, row: _IdArray, number: int, *, check: bool) -> Codes:
    """Returns the codes [T] of one block."""
    ids = torch.from_numpy(row[None, :-1]).to(teacher.embed.weight.device)  # 1 T
    hidden = teacher(ids)[0]  # T D
    if isinstance(plan.codes, DrawCodes):
        return plan.codes.encode(teacher.logits(hidden), number)
    # One stream of draws a block: it is not cut into pieces then.
    rows = len(hidden) if plan.codes.draws else max(1, _CHUNK_LOGITS // plan.vocab_size)
    parts = []
    for at in range(0, len(hidden), rows):
        logits = teacher.logits(hidden[at : at + rows])
        parts.append(plan.codes.encode(logits, number))
        if check and at == 0:
            read = plan.codes.decode(parts[0], plan.vocab_size, plan.codes.temperature)
            lost = float(coarse_kl(logits.cpu(), read, plan.codes.temperature).mean())
            if not lost <= _MOST_LOST:  # NaN fails too
                raise CheckFailedError(
                    f"coding lost {lost:.4f} nats a token, allowed {_MOST_LOST}",
                    where=f"block {number}",
                    remedy="Choose another k or temperature",
                )
    return np.concatenate(parts)


def _read_shard(folder: Path, plan: CachePlan, index: int) -> tuple[npt.NDArray[np.bytes_], Codes]:
    """Returns the digests [n] and codes [n, T] of a shard, the latter mapped from disk."""
    path, blocks = _path(folder, index), plan.blocks(index)
    dtype, n = plan.codes.dtype(plan.vocab_size), len(blocks)
    size = _HEAD.size + n * (_DIGEST + plan.length * dtype.itemsize)
    remedy = "Delete it; making the cache again fills the gap"
    with open_regular(path, DataError) as file:
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size or file.seek(0, 2) != size:
            raise DataError("is cut short", where=path, remedy=remedy)
        magic, plan_hash, number, count, body = _HEAD.unpack(head)
        if (magic, plan_hash, number, count) != (_MAGIC, plan.fingerprint(), index, n):
            raise DataError("belongs to another cache", where=path, remedy=remedy)
        file.seek(_HEAD.size)
        digest = hashlib.sha256()
        while piece := file.read(1 << 20):
            digest.update(piece)
        if digest.digest() != body:
            raise DataError("has changed since it was written", where=path, remedy=remedy)
        begin = _HEAD.size
        digests = np.memmap(file, "V16", "r", begin, (n,))
        codes = np.memmap(file, dtype, "r", begin + n * _DIGEST, (n, plan.length))
    return digests, codes


def _check_plan(folder: Path, plan: CachePlan) -> None:
    path = folder / _PLAN_FILE
    found = read_json(path)
    wanted = json.loads(json.dumps(plan.to_json()))
    for name, value in wanted.items():
        if found.get(name) != value:
            raise ConfigError(
                f"{name} is {found.get(name)!r:.90}, this run's is {value!r:.90}",
                where=path,
                remedy="Name another folder for this teacher, text and these settings",
            )


def _check_room(folder: Path, plan: CachePlan) -> None:
    had = sum(file.stat().st_size for file in folder.glob("shard-*.bin"))
    needed = plan.size_bytes - had + _SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ResourceError(
            f"has {free / 1e6:,.0f} MB free, the cache needs {needed / 1e6:,.0f} MB more",
            where=folder,
            remedy="Free some space, take a smaller k, or distil without --cache",
        )


def _path(folder: Path, index: int) -> Path:
    return folder / f"shard-{index:05d}.bin"


def _digest(row: _IdArray) -> bytes:
    return hashlib.blake2b(row.astype("<i4").tobytes(), digest_size=_DIGEST).digest()
