"""Every task by name.

For: choosing tasks from what a user typed; a new task is a new file and a row here.
Not for: running them (`miudo.evaluate.harness`).
Read next: `miudo.evaluate.tasks.task`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from miudo.errors import UsageError
from miudo.evaluate.tasks.blimp import BLIMP
from miudo.evaluate.tasks.enem import ENEM
from miudo.evaluate.tasks.hellaswag import HELLASWAG
from miudo.evaluate.tasks.labels import LABELS
from miudo.evaluate.tasks.last_word import LAST_WORD
from miudo.evaluate.tasks.questions import QUESTION_TASKS
from miudo.evaluate.tasks.task import Task

__all__ = ["TASKS", "find_tasks"]

TASKS = {t.name: t for t in (BLIMP, HELLASWAG, *QUESTION_TASKS, ENEM, LAST_WORD, LABELS)}


def find_tasks(names: Iterable[str]) -> list[Task]:
    """Returns the tasks called `names`, once each. Raises UsageError with the nearest name."""
    found: dict[str, Task] = {}
    for name in names:
        if name not in TASKS:
            near = difflib.get_close_matches(name, TASKS, n=1)
            cure = f"Did you mean {near[0]!r}?" if near else f"Known are {', '.join(TASKS)}"
            raise UsageError(f"no task is called {name!r:.60}", remedy=cure)
        found[name] = TASKS[name]
    return list(found.values())
