"""What a search wrote down, read back.

For: the JSON files of `miudo.shrink`.
Not for: models (`miudo.formats`).
Read next: `miudo.shrink.search`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from miudo.errors import DataError
from miudo.files import open_regular
from miudo.limits import LIMITS

__all__ = ["read_json"]


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in `path`. Raises DataError for anything else."""
    with open_regular(path, DataError) as file:
        text = file.read(LIMITS.json_bytes)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON ({error})", where=path, remedy="Delete the folder") from error
    if not isinstance(values, dict):
        raise DataError("not a JSON object", where=path, remedy="Delete the folder")
    return values
