"""The models that are served, by name.

For: finding the model that a request names.
Not for: one model's running (`miudo.serve.hosted`).
Read next: `miudo.serve.hosted`.
"""

from __future__ import annotations

from collections.abc import Iterable

from miudo.errors import MissingError
from miudo.serve.fields import FieldError, Fields
from miudo.serve.hosted import Hosted

__all__ = ["House"]


class House:
    """Holds the models that are open; the first is taken where a request names none."""

    def __init__(self, models: Iterable[Hosted]) -> None:
        self._models = {hosted.name: hosted for hosted in models}

    @property
    def models(self) -> tuple[Hosted, ...]:
        """Returns the models, first one first."""
        return tuple(self._models.values())

    def named(self, fields: Fields) -> Hosted:
        """Returns the model of a request's field `model`.

        Raises FieldError where it is no text, MissingError naming those there are.
        """
        value = fields.take("model")
        if value is None:
            return self.models[0]
        if not isinstance(value, str):
            raise FieldError("model", f"is {value!r:.60}", remedy="Give a model's name")
        return self.get(value)

    def get(self, name: str) -> Hosted:
        """Returns the model called `name`. Raises MissingError."""
        if name not in self._models:
            raise MissingError(
                f"no model is called {name!r:.100}",
                remedy=f"Served are {', '.join(self._models)}",
            )
        return self._models[name]

    def close(self, drain_s: float) -> None:
        """Lets every model's requests end, within `drain_s` seconds."""
        for hosted in self.models:
            hosted.worker.close(drain_s)
