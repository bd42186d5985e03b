"""Long work in stages that are done once, whatever interrupts it.

For: running stages in order, skipping those whose product stands, telling the time of each.
Not for: what happens inside a stage; training resumes from its own checkpoints.
Read next: `miudo.shrink.demo`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miudo.errors import DataError, UsageError
from miudo.plain_json import read_json, write_json

__all__ = ["DELETE", "STATE_FILE", "Stage", "run_stages"]

STATE_FILE = "stages.json"

DELETE = "Delete the folder"
"""What to do where a file of a product is damaged: it is made again then."""


@dataclass(frozen=True, slots=True)
class Stage:
    """`run` makes `product`, a file or folder that appears whole or not at all."""

    name: str
    title: str
    product: Path
    run: Callable[[], None]


def run_stages(
    stages: Sequence[Stage],
    folder: Path,
    settings: Mapping[str, Any],
    say: Callable[[str], None],
) -> dict[str, float]:
    """Runs what is not done yet and returns the seconds of every stage, earlier ones too.

    What was done is kept in `folder` with `settings`. Raises UsageError if the folder holds
    work of other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    seconds = _seconds_so_far(folder / STATE_FILE, settings)
    for number, stage in enumerate(stages, start=1):
        title = f"[{number}/{len(stages)}] {stage.title}"
        if stage.name in seconds and stage.product.exists():
            say(f"{title}: done before, in {seconds[stage.name]:.0f} s")
            continue
        say(title)
        start = time.perf_counter()
        stage.run()
        seconds[stage.name] = round(time.perf_counter() - start, 3)
        write_json(folder / STATE_FILE, {"settings": dict(settings), "seconds": seconds})
        say(f"      {seconds[stage.name]:.0f} s -> {stage.product}")
    return {stage.name: seconds[stage.name] for stage in stages}


def _seconds_so_far(path: Path, settings: Mapping[str, Any]) -> dict[str, float]:
    if not path.exists():
        return {}
    state = read_json(path, remedy=DELETE)
    try:
        seconds = {str(name): float(value) for name, value in state["seconds"].items()}
        held = state["settings"]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"not a state of stages ({error})", where=path, remedy=DELETE) from error
    if held != json.loads(json.dumps(dict(settings))):
        raise UsageError(
            f"the folder holds work with other settings ({held})",
            where=path.parent,
            remedy="Choose another --out, or delete the folder",
        )
    return seconds
