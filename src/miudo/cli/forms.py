"""The form of an answer that `--schema` asks for.

For: a JSON Schema from a file, and what holds answers to it.
Not for: which schemas can be held to (`miudo.engine.schemas`).
Read next: `miudo.engine.grammars`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from miudo.errors import UsageError

if TYPE_CHECKING:
    from miudo.engine.batches import Guide
    from miudo.engine.generate import GenerateSettings
    from miudo.engine.grammars import Language
    from miudo.evaluate.loading import LoadedModel

__all__ = ["Form", "read_schema"]


def read_schema(name: str) -> Language:
    """Returns the language of the schema in the file `name`; of any JSON where that is "json".

    Raises MissingError, ModelFileError for what is no JSON object, and RequestError for a schema
    that cannot be enforced.
    """
    from miudo.engine.grammars import json_of
    from miudo.strict_json import read_object

    return json_of({} if name == "json" else read_object(Path(name)), name)


class Form:
    """What holds each answer of a model to `language`."""

    def __init__(self, loaded: LoadedModel, language: Language) -> None:
        from miudo.engine.grammars import Grammars

        config = loaded.model.config
        size = loaded.engine.config.vocab_size
        self._grammars = Grammars(loaded.tokenizer, size, config.eos_ids)
        self._language = language

    def begin(self, settings: GenerateSettings) -> Guide:
        """Returns what draws one answer.

        Raises RequestError for an empty language, and UsageError for stop strings, which could
        cut the answer short.
        """
        from miudo.engine.guides import Guided

        if settings.stop:
            raise UsageError("--schema takes no --stop", remedy="It could cut the JSON short")
        return Guided(settings.sampling, grammar=self._grammars.begin(self._language))
