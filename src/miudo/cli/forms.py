"""The form of an answer that `--schema` asks for.

For: a JSON Schema from a file, and the guide that holds one answer to it.
Not for: which schemas can be held to (`miudo.engine.schemas`).
Read next: `miudo.engine.grammars`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from miudo.engine.batches import Guide
    from miudo.engine.grammars import Language
    from miudo.evaluate.loading import LoadedModel
    from miudo.protocol import SamplingSettings

__all__ = ["guided", "read_schema"]


def read_schema(name: str) -> Language:
    """Returns the language of the schema in the file `name`; of any JSON where that is "json".

    Raises MissingError, ModelFileError for what is no JSON object, and RequestError for a schema
    that cannot be enforced.
    """
    from miudo.engine.grammars import json_of
    from miudo.formats.strict_json import read_object

    return json_of({} if name == "json" else read_object(Path(name)), name)


def guided(loaded: LoadedModel, language: Language, sampling: SamplingSettings) -> Guide:
    """Returns what draws one answer in `language`. Raises RequestError for an empty one."""
    from miudo.engine.grammars import Grammars
    from miudo.engine.guides import Guided

    config = loaded.model.config
    grammars = Grammars(loaded.tokenizer, loaded.engine.config.vocab_size, config.eos_ids)
    return Guided(sampling, grammar=grammars.begin(language))
