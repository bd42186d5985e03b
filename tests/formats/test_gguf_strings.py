"""Strings of an array, found and decoded at once, against a loop over them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miudo.formats import gguf_strings as module
from miudo.formats.gguf_strings import decode_strings, find_strings

ODD = ["", "\x00", "\x00" * 9, "a" * 255, "b" * 256, "ñ" * 400, "\x01" + "\x00" * 7 + "c", "日本"]
STRINGS = st.lists(st.one_of(st.sampled_from(ODD), st.text(max_size=9)), max_size=60)


def stored(strings: list[str], before: bytes = b"", after: bytes = b"") -> np.ndarray:
    parts = [len(s.encode()).to_bytes(8, "little") + s.encode() for s in strings]
    return np.frombuffer(before + b"".join(parts) + after, np.uint8)


@given(strings=STRINGS, window=st.sampled_from([9, 64, 1 << 18]), after=st.binary(max_size=20))
@settings(deadline=None)
def test_strings_are_what_was_stored(strings: list[str], window: int, after: bytes) -> None:
    data = stored(strings, b"12345", after)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_WINDOW", window)
        offsets = find_strings(data, 5, len(strings))
    assert offsets is not None
    assert decode_strings(data, offsets) == strings
    assert offsets[-1] == len(data) - len(after)


@given(strings=STRINGS.filter(bool), cut=st.integers(1, 40))
@settings(deadline=None)
def test_a_string_past_the_end_is_seen(strings: list[str], cut: int) -> None:
    data = stored(strings)
    assert find_strings(data[: max(0, len(data) - cut)], 0, len(strings)) is None
    assert find_strings(data, 0, len(strings) + 1) is None


def test_a_length_beyond_all_is_seen() -> None:
    data = stored(["a", "b"]).copy()
    data[9:17] = 255
    assert find_strings(data, 0, 2) is None


def test_many_long_strings_take_no_look_each() -> None:
    """Each look at a window costs as much as thousands of strings walked through."""
    strings = ["x" * 300] * 20_000
    looks = []
    with pytest.MonkeyPatch.context() as patch:
        real = module._short_strings
        patch.setattr(module, "_short_strings", lambda *a: looks.append(1) or real(*a))
        offsets = find_strings(stored(strings), 0, len(strings))
    assert offsets is not None
    assert len(offsets) == 20_001
    assert len(looks) < 20


def test_what_is_no_utf8_is_named() -> None:
    data = stored(["fine", "bad", "fine"]).copy()
    data[8 + 4 + 8] = 0xFF
    offsets = find_strings(data, 0, 3)
    assert offsets is not None
    with pytest.raises(UnicodeDecodeError) as caught:
        decode_strings(data, offsets)
    assert caught.value.object == b"\xffad"


def test_bytes_of_two_strings_are_no_character() -> None:
    """The first half of é at the end of one string, the second at the start of the next."""
    data = np.frombuffer(b"\x01" + bytes(7) + b"\xc3" + b"\x01" + bytes(7) + b"\xa9", np.uint8)
    offsets = find_strings(data, 0, 2)
    assert offsets is not None
    with pytest.raises(UnicodeDecodeError):
        decode_strings(data, offsets)
