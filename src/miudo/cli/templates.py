"""`--chat-template`: one of miudo's own by its name, or a file's.

For: every verb that takes a chat template.
Not for: what templates say (`miudo.text.templates`).
Read next: `miudo.text.chat`.
"""

from __future__ import annotations

from pathlib import Path

import click

from miudo.errors import UsageError

__all__ = ["read_template", "template_option", "template_origin"]

template_option = click.option(
    "--chat-template",
    metavar="NAME|FILE",
    help="A chat template in place of the model's: one of ours, say chatml, or a file's.",
)


def read_template(choice: str) -> str:
    """Returns the template called `choice`, or a file's text.

    Raises UsageError where there is neither, TokenizerError for a file that is no text.
    """
    from miudo.text.templates import BUILT_IN

    if choice in BUILT_IN:
        return BUILT_IN[choice]
    if not Path(choice).exists():
        raise UsageError(
            f"{choice!r} is no template of miudo's and no file",
            where="--chat-template",
            remedy=f"Choose one of {', '.join(BUILT_IN)}, or give a file",
        )
    from miudo.errors import TokenizerError
    from miudo.files import open_regular
    from miudo.limits import LIMITS

    with open_regular(Path(choice), TokenizerError) as file:
        text = file.read(LIMITS.template_bytes + 1)
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise TokenizerError(f"is not UTF-8 ({error})", where=choice) from error


def template_origin(choice: str) -> str:
    """Returns in words where `read_template` has the template called `choice` from."""
    from miudo.text.templates import BUILT_IN

    return f"miudo's {choice}" if choice in BUILT_IN else f"the file {choice}"
