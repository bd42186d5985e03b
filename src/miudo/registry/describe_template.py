"""A model's chat template told: its source, and a short conversation in it.

For: `miudo show --template`.
Not for: conversations of a user's (`miudo.text.prompt`).
Read next: `miudo.text.templates`.
"""

from __future__ import annotations

from typing import Any

from miudo.errors import RequestError
from miudo.formats import ModelFile
from miudo.text.prompt import model_template
from miudo.text.templates import BUILT_IN, rendered_sample
from miudo.text.tokenizer import TextTokenizer

__all__ = ["describe_template", "template_text"]


def describe_template(model: ModelFile, source: str | None) -> dict[str, Any]:
    """Returns template `source` and a sample of it as plain JSON values.

    `sample` is None where there is no template, no tokenizer whose tokens it could name, or it
    refuses the sample; `refusal` says then why. Raises TokenizerError for a template that cannot
    be compiled.
    """
    sample = refusal = None
    if source is None:
        refusal = f"the model has no chat template; miudo's own are {', '.join(BUILT_IN)}"
    elif model.tokenizer is None:
        refusal = "the model has no tokenizer"
    else:
        tokenizer = TextTokenizer(model.tokenizer)
        try:
            sample = rendered_sample(model_template(tokenizer, model.config, source))
        except RequestError as error:
            refusal = str(error)
    path = None if model.path is None else str(model.path)
    return {
        "schema": 1,
        "path": path,
        "chat_template": source,
        "sample": sample,
        "refusal": refusal,
    }


def template_text(told: dict[str, Any]) -> str:
    """Returns `describe_template` for people."""
    source = [] if told["chat_template"] is None else ["template", told["chat_template"], ""]
    if told["sample"] is None:
        return "\n".join([*source, f"no sample: {told['refusal']}"])
    return "\n".join([*source, "sample", told["sample"]])
