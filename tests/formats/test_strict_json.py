"""JSON of other people's files: how deep it may go."""

import pytest

from miudo.errors import ModelFileError
from miudo.formats.strict_json import parse_object
from miudo.limits import LIMITS


@pytest.mark.parametrize(("opened", "closed"), [(b'{"a":', b"}"), (b"[", b"]")])
def test_depth_is_bounded(opened: bytes, closed: bytes) -> None:
    def nested(depth: int) -> bytes:
        return b'{"a":' + opened * (depth - 1) + b"1" + closed * (depth - 1) + b"}"

    assert parse_object(nested(LIMITS.json_depth), "x")
    for depth in (LIMITS.json_depth + 1, 500, 100_000):
        with pytest.raises(ModelFileError, match=r"deeper|JSON"):
            parse_object(nested(depth), "x")
