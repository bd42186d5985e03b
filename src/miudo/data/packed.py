"""Token files in memory-mapped form, and training batches as a pure function of seed and step.

For: reading what `miudo.data.pack` wrote, checked against its manifest first.
Not for: writing it, or text.
Read next: `miudo.train.loop`, which takes its batches here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from miudo.data.mixture import MAX_WEIGHT, Part
from miudo.errors import ConfigError, DataError
from miudo.files import open_regular, resolve_under, sha256_file
from miudo.limits import LIMITS
from miudo.philox import Orders, uniform
from miudo.plain_json import read_json
from miudo.text.chat import DEFAULT_TEMPLATE
from miudo.text.tokenizer import TextTokenizer

__all__ = ["MANIFEST_FILE", "SCHEMA", "TOKENIZER_FILE", "DataSet", "PackedTokens"]

SCHEMA = 1
MANIFEST_FILE = "manifest.json"
TOKENIZER_FILE = "tokenizer.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DTYPES = {"uint16": "<u2", "uint32": "<u4"}
# Plus the part's number; far from the counters that `permutation` uses up.
_SHIFT_POSITION = 1 << 62
_SCAN = 1 << 22

_IdArray = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class DataSet:
    """A data folder: its manifest and its parts. Numbers count tokens, documents, text bytes."""

    folder: Path
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Returns the data in `folder`. Raises MissingError or DataError naming the field."""
        return cls(folder, _read_manifest(folder))

    @property
    def vocab_size(self) -> int:
        """One more than the highest id that may occur."""
        return int(self.manifest["vocab_size"])

    @property
    def end_id(self) -> int:
        """The id that follows every document."""
        return int(self.manifest["end_id"])

    def tokens(self, split: str = "train") -> int:
        """Returns how many tokens a part has, ends of documents among them."""
        return int(self.manifest["splits"][split]["tokens"])

    def parts(self, split: str = "train") -> tuple[Part, ...]:
        """Returns the runs of ids of the mixture's sources; one where there is no mixture."""
        return _parts(self.manifest["splits"][split])

    @property
    def chat_template(self) -> str | None:
        """The template that its chats were written through; None where it has none."""
        if not self.manifest.get("chats"):
            return None
        return str(self.manifest["settings"].get("template") or DEFAULT_TEMPLATE)

    def documents(self, split: str = "train") -> int:
        """Returns how many documents a part has."""
        return int(self.manifest["splits"][split]["documents"])

    def tokenizer(self) -> TextTokenizer:
        """Returns the tokenizer of the data. Raises DataError if it is another's."""
        path = self.folder / TOKENIZER_FILE
        with open_regular(path, DataError) as file:
            tokenizer = TextTokenizer.from_json(file.read(LIMITS.json_bytes + 1), where=path)
        if tokenizer.fingerprint != self.manifest["tokenizer"]:
            raise DataError(
                "is not the tokenizer that the data was made with",
                where=path,
                remedy="Prepare the data again",
            )
        return tokenizer

    def open_split(self, split: str = "train", *, verify: bool = True) -> PackedTokens:
        """Returns a part's tokens; see `PackedTokens.open`."""
        return PackedTokens.open(self.folder, split, verify=verify)


class PackedTokens:
    """One part of a data folder as a memory-mapped row of ids. Build it with `open`."""

    def __init__(
        self,
        ids: npt.NDArray[np.unsignedinteger],
        *,
        sha256: str,
        where: str,
        parts: tuple[Part, ...] = (),
    ) -> None:
        self.sha256 = sha256
        self._parts = parts or (Part("text", 0, len(ids)),)
        self._ids = ids
        self._where = where
        self._orders = Orders()

    @classmethod
    def open(cls, folder: Path, split: str = "train", *, verify: bool = True) -> Self:
        """Returns the tokens of `split` ("train" or "held_out").

        The size is always checked; `verify` checks SHA-256 and that every id is below the
        vocabulary's size. Raises DataError naming the file.
        """
        manifest = _read_manifest(folder)
        if split not in manifest["splits"]:
            raise DataError(f"has no part {split!r}", where=folder, remedy="Name train or held_out")
        part = manifest["splits"][split]
        path = resolve_under(folder, part["file"])
        dtype = np.dtype(_DTYPES[manifest["dtype"]])
        with open_regular(path, DataError) as file:
            size = file.seek(0, 2)
            if size != part["tokens"] * dtype.itemsize:
                raise DataError(
                    f"has {size} bytes, {part['tokens'] * dtype.itemsize} were written",
                    where=path,
                    remedy="Prepare the data again",
                )
            ids = np.memmap(file, dtype=dtype, mode="r") if size else np.zeros(0, dtype=dtype)
        if verify:
            _verify(path, part["sha256"], ids, manifest["vocab_size"])
        return cls(ids, sha256=part["sha256"], where=str(path), parts=_parts(part))

    @property
    def n_tokens(self) -> int:
        """How many ids there are."""
        return len(self._ids)

    def n_blocks(self, length: int) -> int:
        """Returns how many blocks of `length` there are; each has one id more as target."""
        if length < 1:
            raise ConfigError(f"the block length is {length}", remedy="Give at least 1")
        return max(0, (self.n_tokens - 1) // length)

    def ids(self, begin: int, end: int) -> _IdArray:
        """Returns the ids `begin:end` in their order, fewer where the data ends before."""
        return self._ids[begin:end].astype(np.int32)

    def epoch_rows(self, length: int) -> int:
        """Returns how many rows of `length` an epoch is: of a mixture, by the weights."""
        return sum(part.rows(length) for part in self._parts)

    def block(self, index: int, length: int) -> _IdArray:
        """Returns block `index` as int32 [length + 1]: the last id is only a target."""
        n = self.n_blocks(length)
        if not 0 <= index < n:
            raise DataError(f"has {n} blocks of {length}, not number {index}", where=self._where)
        return self._window(index * length, length)

    def batch(self, seed: int, step: int, batch_size: int, length: int) -> _IdArray:
        """Returns int32 [batch_size, length + 1]: a pure function of its arguments.

        Blocks come in a new order each epoch, with starts shifted by a number drawn for the
        pass; the text is taken as a ring, so that a pass shows every token once, but for
        fewer than `length` + 1. In a mixture each part is a ring of its own, and an epoch
        takes `weight` passes over it. Raises DataError where a batch needs more than there is.
        """
        rows_of = [part.rows(length) for part in self._parts]
        n = sum(rows_of)
        if batch_size < 1 or step < 0:
            raise ConfigError(f"batch_size is {batch_size} and step {step}")
        if n < batch_size:
            raise DataError(
                f"has {self.n_tokens} tokens; a batch of {batch_size} x {length} needs "
                f"{batch_size * length + 1}",
                where=self._where,
                remedy="Give more text, a smaller batch or shorter blocks",
            )
        rows = np.empty((batch_size, length + 1), dtype=np.int32)
        for row, place in enumerate(range(step * batch_size, (step + 1) * batch_size)):
            epoch, index = divmod(place, n)
            number, taken = 0, int(self._orders.of(seed, epoch, n)[index])
            while taken >= rows_of[number]:
                taken -= rows_of[number]
                number += 1
            part = self._parts[number]
            done, block = divmod(epoch * rows_of[number] + taken, part.blocks(length))
            shift = int(uniform(seed, done, _SHIFT_POSITION + number) * part.tokens)
            rows[row] = self._window((block * length + shift) % part.tokens, length, part)
        return rows

    def _window(self, start: int, length: int, part: Part | None = None) -> _IdArray:
        """Returns ids from `start` of the part, which is a ring; of all without one."""
        first, tokens = (part.start, part.tokens) if part else (0, self.n_tokens)
        ids = self._ids[first + start : first + min(start + length + 1, tokens)]
        if len(ids) <= length:
            ids = np.concatenate([ids, self._ids[first : first + length + 1 - len(ids)]])
        return ids.astype(np.int32)


def _verify(path: Path, sha256: str, ids: npt.NDArray[np.unsignedinteger], vocab_size: int) -> None:
    if sha256_file(path) != sha256:
        raise DataError(
            "has changed since it was written (SHA-256 differs)",
            where=path,
            remedy="Prepare the data again",
        )
    for start in range(0, len(ids), _SCAN):
        highest = int(ids[start : start + _SCAN].max())
        if highest >= vocab_size:
            raise DataError(f"holds the id {highest}, the vocabulary has {vocab_size}", where=path)


def _parts(split: Mapping[str, Any]) -> tuple[Part, ...]:
    found, start = [], 0
    for part in split.get("parts", ()):
        found.append(Part(part["name"], start, part["tokens"], part["weight"]))
        start += part["tokens"]
    return tuple(found) or (Part("text", 0, split["tokens"]),)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST_FILE
    values = read_json(path)
    if values.get("schema") != SCHEMA:
        raise DataError(
            f"is no data manifest of schema {SCHEMA}", where=path, remedy="Prepare the data again"
        )
    _check_manifest(values, path)
    return values


def _check_manifest(values: Mapping[str, Any], path: Path) -> None:
    def need(holds: bool, field: str, value: object) -> None:
        if not holds:
            raise DataError(f"{field} is {value!r:.60}", where=path, remedy="Prepare it again")

    def count(field: str, value: object, low: int, high: int) -> None:
        need(type(value) is int and low <= value <= high, field, value)

    need(values.get("dtype") in _DTYPES, "dtype", values.get("dtype"))
    count("vocab_size", values.get("vocab_size"), 1, LIMITS.vocab_size)
    count("end_id", values.get("end_id"), 0, values["vocab_size"] - 1)
    need(isinstance(values.get("tokenizer"), str), "tokenizer", values.get("tokenizer"))
    count("chats", values.get("chats", 0), 0, 1 << 48)
    if values.get("chats"):  # whose template the settings name
        settings = values.get("settings")
        need(isinstance(settings, dict), "settings", settings)
        template = settings.get("template") if isinstance(settings, dict) else None
        need(template is None or isinstance(template, str), "settings.template", template)
    splits = values.get("splits")
    if not isinstance(splits, dict) or not {"train", "held_out"} <= set(splits):
        raise DataError("splits has no train or no held_out", where=path)
    for name, part in splits.items():
        if not isinstance(part, dict):
            raise DataError(f"splits.{name} is no object", where=path)
        for field in ("tokens", "documents", "text_bytes"):
            count(f"splits.{name}.{field}", part.get(field), 0, 1 << 48)
        _check_parts(part, f"splits.{name}.parts", need)
        need(isinstance(part.get("file"), str), f"splits.{name}.file", part.get("file"))
        digest = part.get("sha256")
        need(
            isinstance(digest, str) and _SHA256.fullmatch(digest) is not None,
            f"splits.{name}.sha256",
            digest,
        )


def _check_parts(
    split: Mapping[str, Any], field: str, need: Callable[[bool, str, object], None]
) -> None:
    """Checks a mixture's parts; a folder without a mixture lists none."""
    parts = split.get("parts", [])
    need(isinstance(parts, list), field, parts)
    for part in parts:
        weight = part.get("weight") if isinstance(part, dict) else None
        need(
            isinstance(weight, int | float)
            and 0 < weight <= MAX_WEIGHT
            and isinstance(part.get("name"), str)
            and type(part.get("tokens")) is int
            and part["tokens"] >= 0,
            field,
            part,
        )
    if parts:
        need(sum(part["tokens"] for part in parts) == split["tokens"], field, "not all tokens")
