"""JSON of other people's files: how deep it may go."""

import pytest

from miudo.errors import ModelFileError
from miudo.limits import LIMITS
from miudo.strict_json import parse_object


@pytest.mark.parametrize(("opened", "closed"), [(b'{"a":', b"}"), (b"[", b"]")])
def test_depth_is_bounded(opened: bytes, closed: bytes) -> None:
    def nested(depth: int) -> bytes:
        return b'{"a":' + opened * (depth - 1) + b"1" + closed * (depth - 1) + b"}"

    assert parse_object(nested(LIMITS.json_depth), "x")
    for depth in (LIMITS.json_depth + 1, 500, 100_000):
        with pytest.raises(ModelFileError, match=r"deeper|JSON"):
            parse_object(nested(depth), "x")


@pytest.mark.row("L5")
@pytest.mark.parametrize("value", [b"[]", b"{}", b"1", b'"x"'])
def test_values_are_counted_before_they_are_made(value: bytes) -> None:
    text = b'{"a":[' + b",".join([value] * 20) + b"]}"
    assert parse_object(text, "x", max_values=60)
    with pytest.raises(ModelFileError, match="more than 20 values"):
        parse_object(text, "x", max_values=20)
