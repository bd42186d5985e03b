"""The model that a run starts from, where it does not start from nothing.

For: `miudo train --init`: shape, tokenizer and ids of the model stay; its weights are the first.
Not for: fine-tuning (`miudo.train.finetune`), which keeps a base and its template.
Read next: `miudo.train.pretrain`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from miudo.config import ModelConfig, Position
from miudo.decoder.decoder import Decoder
from miudo.errors import ConfigError
from miudo.formats import open_model
from miudo.formats.export import weights_sha256
from miudo.records import Artefact, Record
from miudo.text.tokenizer import TextTokenizer

__all__ = ["Start", "open_start"]


@dataclass(frozen=True, slots=True)
class Start:
    """Where the model lies and what its weights hash to, its config for the run, its record.

    Kept in run.json: a resumed run needs the model itself only before its first checkpoint.
    """

    path: Path
    sha256: str
    config: ModelConfig
    record: Record | None

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values; `from_json` gives back an equal start."""
        return {
            "path": str(self.path.resolve()),
            "sha256": self.sha256,
            "config": self.config.to_json(),
            "record": None if self.record is None else self.record.to_json(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Raises the errors of wrong kinds and values for what is no start."""
        record = values["record"]
        return cls(
            Path(values["path"]),
            values["sha256"],
            ModelConfig.from_json(values["config"]),
            None if record is None else Record.from_json(record),
        )

    @property
    def artefact(self) -> Artefact:
        """The model as a record names what went in."""
        return Artefact("model", self.path.name, self.sha256)

    def decoder(self) -> Decoder:
        """Returns the model's weights. Raises ConfigError where they changed meanwhile."""
        if weights_sha256(self.path) != self.sha256:
            raise ConfigError(
                "has changed since the run began",
                where=self.path,
                remedy="Put the model back, or start a new run in another folder",
            )
        return Decoder.from_weights(self.config, open_model(self.path).weights)


def open_start(path: Path, length: int) -> tuple[Start, TextTokenizer, str | None]:
    """Returns the model at `path` for rows of `length`, its tokenizer and chat template.

    With rotary positions a longer row widens the model's positions; a shorter one leaves them.
    Raises ConfigError for a model without a tokenizer, or too few learned positions.
    """
    model = open_model(path)
    if model.tokenizer is None:
        raise ConfigError("the model to start from has no tokenizer", where=path)
    tokenizer = TextTokenizer(model.tokenizer)
    config = model.config
    if tokenizer.vocab_size > config.vocab_size:
        raise ConfigError(
            f"its tokenizer has {tokenizer.vocab_size} ids, the model {config.vocab_size}",
            where=path,
            remedy="Start from a model whose tokenizer is its own",
        )
    if length > config.max_positions:
        if config.position is Position.LEARNED:
            raise ConfigError(
                f"length is {length}, the model has {config.max_positions} learned positions",
                where=path,
                remedy=f"Give --length {config.max_positions} or less",
            )
        config = replace(config, max_positions=length)
    start = Start(path, weights_sha256(path), config, model.record)
    return start, tokenizer, model.chat_template
