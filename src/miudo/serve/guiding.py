"""Grammars made beside the event loop, so that nobody's tokens wait for somebody's schema.

For: one thread for each model that compiles, a bound on how many wait for it, and what every
protocol refuses of a form.
Not for: languages (`miudo.engine.grammars`), or what a request says (`miudo.serve.openai.formats`).
Read next: `miudo.engine.grammars`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from miudo.engine.grammars import Grammars, Language
from miudo.engine.guides import Grammar
from miudo.errors import BusyError, MissingError, RequestError
from miudo.serve.fields import FieldError

__all__ = ["Compiler", "checked", "no_stop_inside"]

_MOST_WAITING = 16


class Compiler:
    """Compiles languages one after the other. Its methods belong to the event loop's thread."""

    def __init__(self, grammars: Grammars) -> None:
        self._grammars = grammars
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        self._waiting = 0

    async def begin(self, language: Language | None, choices: int) -> list[Grammar | None]:
        """Returns the language at its start, for each choice; None for none.

        Raises FieldError for a language that cannot be followed, BusyError where many wait.
        """
        if language is None:
            return [None] * choices
        if self._waiting >= _MOST_WAITING:
            raise BusyError(
                f"{self._waiting} grammars wait to be made", remedy="Try again in a moment"
            )
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._thread, lambda: [self._grammars.begin(language) for _ in range(choices)]
            )
        except (RequestError, MissingError) as error:
            raise FieldError(language.where, error.what, remedy=error.remedy) from error
        finally:
            self._waiting -= 1


def checked(make: Callable[[], Language]) -> Language:
    """Returns what `make` gives; what it refuses becomes the error of the field it names."""
    try:
        return make()
    except RequestError as error:
        raise FieldError(error.where, error.what, remedy=error.remedy) from error


def no_stop_inside(language: Language | None, stop: Sequence[str], field: str = "stop") -> None:
    """Raises FieldError for stop strings, which could end a form before it is whole."""
    if language is not None and stop:
        raise FieldError(field, "could cut the form short", remedy="Leave stop out, or the form")
