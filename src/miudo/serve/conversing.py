"""From a conversation, its functions and a form to what is asked of the engine.

For: every protocol's chats.
Not for: plain texts, or what a request says (`miudo.serve.openai.chat`).
Read next: `miudo.serve.toolbox`.
"""

from __future__ import annotations

from collections.abc import Sequence

from miudo.engine.grammars import Language
from miudo.protocol import Message
from miudo.serve.answering import Ask
from miudo.serve.asking import Drawing, asks
from miudo.serve.fields import FieldError
from miudo.serve.hosted import Hosted
from miudo.serve.toolbox import Toolbox
from miudo.text.tools import CallForm

__all__ = ["chat_asks"]


async def chat_asks(
    hosted: Hosted,
    messages: Sequence[Message],
    drawing: Drawing,
    toolbox: Toolbox,
    language: Language | None,
    *,
    scope: str,
    top: int | None = None,
) -> tuple[tuple[Ask, ...], CallForm | None]:
    """Returns an ask for each choice, and the form of calls where the model may make some.

    `language` is what another field asks of the answer. Raises FieldError where that stands
    beside functions or cannot be followed, RequestError for messages a template refuses.
    """
    form = toolbox.form("" if hosted.template is None else hosted.template.source)
    if form is not None and language is not None:
        field = language.where.partition(".")[0]
        raise FieldError(field, "is given beside tools", remedy="Leave out one of them")
    prompt = hosted.chat_ids(messages, toolbox.told)
    special = _markers(hosted, form)
    if form is not None:
        language = toolbox.language(form, special)
    asked = asks(
        hosted,
        prompt,
        drawing,
        top=top,
        scope=scope,
        grammars=await hosted.compiler.begin(language, drawing.n),
        shown={number: token.encode() for token, number in special.items()},
    )
    return asked, form


def _markers(hosted: Hosted, form: CallForm | None) -> dict[str, int]:
    """Special tokens that stand around calls; their text is what calls are read by."""
    if form is None:
        return {}
    around = form.open + form.between + form.close
    known = hosted.loaded.tokenizer.special_ids.items()
    return {token: number for token, number in known if token in around}
