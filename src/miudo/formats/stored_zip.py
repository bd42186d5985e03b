"""Zip archives whose members are stored uncompressed: where each member's bytes lie.

For: weights that `torch.save` put into an archive, to be mapped where they lie.
Not for: zip files in general. Compressed and encrypted members, names that stand twice, members
that overlap, comments and foreign bytes are refused: two readers could see two archives.
Read next: `miudo.formats.tensor_pickle`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from miudo.errors import ModelFileError
from miudo.limits import LIMITS, Limits

__all__ = ["stored_members"]

_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64 = struct.Struct("<4sIQI")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF  # "see the 64-bit field"
_ENCRYPTED, _SIZES_FOLLOW = 1, 8  # flag bits
_DESCRIPTOR = 24  # the most that may follow a member: its sizes once more


@dataclass(frozen=True, slots=True)
class _Member:
    name: bytes
    flags: int
    size: int
    header: int  # offset of the local header


def stored_members(
    data: memoryview, path: Path, limits: Limits = LIMITS
) -> dict[str, tuple[int, int]]:
    """Returns for every member of the archive `data` where its bytes start and end.

    Raises ModelFileError naming the member, or the record that is damaged.
    """
    count, start, end = _directory(data, path)
    if count > limits.zip_members or count * _CENTRAL.size > end - start:
        raise ModelFileError(
            f"zip directory of {end - start} bytes with {count} members, "
            f"allowed {limits.zip_members}",
            where=path,
        )
    members: list[_Member] = []
    at = start
    for _ in range(count):
        member, at = _member(data, at, end, path, limits)
        members.append(member)
    if at != end:
        raise ModelFileError(f"zip directory has {end - at} foreign bytes", where=path)
    return _places(data, members, start, path)


def _directory(data: memoryview, path: Path) -> tuple[int, int, int]:
    """Member count, start and end of the directory, by the record that closes the file."""
    place = len(data) - _END.size
    found = _END.unpack_from(data, place) if place >= 0 else (b"",)
    if found[0] != b"PK\x05\x06" or found[-1]:
        raise ModelFileError(
            "does not end as a zip archive ends",
            where=path,
            remedy="The file is truncated or has foreign bytes; fetch it again",
        )
    disk, first, here, count, size, start, _ = found[1:]
    wide = place - _LOCATOR64.size
    if wide >= 0 and bytes(data[wide : wide + 4]) == b"PK\x06\x07":
        _, _, place, _ = _LOCATOR64.unpack_from(data, wide)
        if place + _END64.size != wide:
            raise ModelFileError("zip64 record is not where it is said to be", where=path)
        mark, length, _, _, disk, first, *values = _END64.unpack_from(data, place)
        full = (_FULL16, _FULL16, _FULL32, _FULL32)
        narrow = zip((here, count, size, start), values, full, strict=True)
        if mark != b"PK\x06\x06" or length != _END64.size - 12:
            raise ModelFileError("zip64 record is damaged", where=path)
        if any(old not in (new, unsaid) for old, new, unsaid in narrow):
            raise ModelFileError("zip and zip64 records disagree", where=path)
        here, count, size, start = values
    if disk or first or here != count:
        raise ModelFileError("is one part of several zip files", where=path)
    if start + size != place:
        raise ModelFileError(
            f"zip directory of {size} bytes at {start} does not end at {place}", where=path
        )
    return count, start, place


def _member(data: memoryview, at: int, end: int, path: Path, limits: Limits) -> tuple[_Member, int]:
    if at + _CENTRAL.size > end:
        raise ModelFileError("zip directory is truncated", where=path)
    fields = _CENTRAL.unpack_from(data, at)
    mark, _, _, flags, method, _, _, _, packed, size, n_name, n_extra, n_comment = fields[:13]
    if mark != b"PK\x01\x02" or n_name > limits.name_bytes:
        raise ModelFileError(f"zip directory is damaged at byte {at}", where=path)
    name_end = at + _CENTRAL.size + n_name
    extra_end = name_end + n_extra
    if extra_end + n_comment > end:
        raise ModelFileError("zip directory is truncated", where=path)
    name = bytes(data[at + _CENTRAL.size : name_end])
    where = f"{path}: member {name.decode(errors='replace')}"
    if method or flags & _ENCRYPTED:
        raise ModelFileError(
            "is encrypted" if flags & _ENCRYPTED else f"is compressed (method {method})",
            where=where,
            remedy="Save it with torch.save, which stores",
        )
    given = (size, packed, fields[-1])
    size, packed, header = _widened(data[name_end:extra_end], given, where)
    if size != packed:
        raise ModelFileError(f"is stored in {packed} bytes and has {size}", where=where)
    return _Member(name, flags, size, header), extra_end + n_comment


def _widened(extra: memoryview, given: tuple[int, ...], where: str) -> tuple[int, ...]:
    """Sizes and offset, from the 64-bit field where the 32-bit one is full."""
    wanted = sum(value == _FULL32 for value in given)
    at = 0
    while wanted and at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1 and length == 8 * wanted and at + 4 + length <= len(extra):
            wide = iter(struct.unpack_from(f"<{wanted}Q", extra, at + 4))
            return tuple(next(wide) if value == _FULL32 else value for value in given)
        at += 4 + length
    if wanted:
        raise ModelFileError("lacks the 64-bit sizes that it announces", where=where)
    return given


def _places(
    data: memoryview, members: list[_Member], limit: int, path: Path
) -> dict[str, tuple[int, int]]:
    """Checks local headers, and that members follow one another from the first byte."""
    places: dict[str, tuple[int, int]] = {}
    last = 0
    for member in sorted(members, key=lambda m: m.header):
        name = member.name.decode(errors="replace")
        where = f"{path}: member {name}"
        gap = member.header - last
        if not 0 <= gap <= (_DESCRIPTOR if places else 0):
            kind = "overlaps another" if gap < 0 else "leaves a hole before it"
            raise ModelFileError(f"at byte {member.header} {kind}", where=where)
        if name in places:
            raise ModelFileError("stands twice in the archive", where=where)
        start = _local(data, member, limit, where)
        last = start + member.size
        if last > limit:
            raise ModelFileError(f"of {member.size} bytes runs past the archive", where=where)
        places[name] = start, last
    if places and limit - last > _DESCRIPTOR:
        raise ModelFileError(f"{limit - last} bytes follow the last member", where=path)
    return places


def _local(data: memoryview, member: _Member, limit: int, where: str) -> int:
    """Where the bytes start, by the header before them, which must agree with the directory."""
    at = member.header
    if at + _LOCAL.size > limit:
        raise ModelFileError("has no header", where=where)
    mark, _, flags, method, _, _, _, packed, size, n_name, n_extra = _LOCAL.unpack_from(data, at)
    start: int = at + _LOCAL.size + n_name + n_extra
    name = bytes(data[at + _LOCAL.size : at + _LOCAL.size + n_name])
    sizes = (member.size, _FULL32) + ((0,) if flags & _SIZES_FOLLOW else ())
    agrees = name == member.name and flags == member.flags and not method
    if mark != b"PK\x03\x04" or not agrees or packed not in sizes or size not in sizes:
        raise ModelFileError("has a header that contradicts the directory", where=where)
    return start
