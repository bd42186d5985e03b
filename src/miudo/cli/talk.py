"""A model that is ready to be talked to, and how: what one answer and a conversation share.

For: the ids of a conversation, and where the chat template came from.
Not for: printing (`miudo.cli.answering`) or reading what is typed (`miudo.cli.typed`).
Read next: `miudo.cli.running`, which makes one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from miudo.cli.forms import Form
    from miudo.engine.generate import GenerateSettings
    from miudo.engine.speculate import Speculation
    from miudo.evaluate.loading import LoadedModel
    from miudo.protocol import Message

__all__ = ["NO_TEMPLATE", "Talk"]

NO_TEMPLATE = "none: a text is continued as it stands"


@dataclass(frozen=True, slots=True)
class Talk:
    """`template` None continues texts; `template_from` says in words where it came from.

    `name` is what the user calls the model. `watts` is as in `miudo.meter.Meter`, None for its
    default. `timings` None prints them where somebody looks on. Answers keep to `form`.
    """

    name: str
    loaded: LoadedModel
    settings: GenerateSettings
    template: str | None = None
    template_from: str = NO_TEMPLATE
    speculation: Speculation | None = None
    watts: float | None = None
    timings: bool | None = None
    form: Form | None = None

    def ids(self, messages: Sequence[Message]) -> list[int]:
        """Returns the ids of `messages`. Raises what `miudo.text.prompt.prompt_ids` raises."""
        from miudo.text.prompt import prompt_ids

        loaded = self.loaded
        return prompt_ids(loaded.tokenizer, messages, loaded.model.config, template=self.template)
