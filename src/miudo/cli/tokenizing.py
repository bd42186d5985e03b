"""`miudo tokenize`: a text as a model's tokens, and back.

For: seeing where a text is cut, what it costs of a context, and what a template makes of it.
Not for: tokenizers themselves (`miudo.text.tokenizer`), or training one (`miudo prepare`).
Read next: `miudo.text.tokenizer`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from miudo.cli.options import aside, complete_model, emit, printable, verb
from miudo.cli.prompting import choose, prompt_text
from miudo.errors import RequestError, UsageError
from miudo.hub.resolve import model_path

if TYPE_CHECKING:
    from miudo.text.tokenizer import TextTokenizer

__all__ = ["tokenize"]

_BORDER = "│"
_SEEN = str.maketrans({" ": "·", "\t": "⇥", "\n": "⏎\n"})


@verb("tokenize")
@click.argument("model_and_text", nargs=-1, metavar="[MODEL] [TEXT]", shell_complete=complete_model)
@click.option("--text", help="The text, whatever it looks like; - reads standard input.")
@click.option("--decode", is_flag=True, help="The text is ids: print what they stand for.")
@click.option("--special", is_flag=True, help="Take special tokens in the text for what they are.")
@click.option("--chat", is_flag=True, help="As a user's turn, in the model's chat template.")
@click.option(
    "--as",
    "form",
    type=click.Choice(["pieces", "lines", "ids", "count"]),
    help="pieces: with borders, as a rule on a terminal. lines: an id and its piece each. "
    "ids: on one line. count: how many.",
)
def tokenize(
    model_and_text: tuple[str, ...],
    *,
    text: str | None,
    decode: bool,
    special: bool,
    chat: bool,
    form: str | None,
    as_json: bool,
) -> None:
    """Show the tokens of TEXT in MODEL: ids, pieces, how many.

    Without MODEL the model inside the package says; without TEXT, what is piped in. A single
    argument with white space, ! or ? is a text. On a terminal a dot is a space, and a bar stands
    between tokens.
    """
    from miudo.evaluate.loading import tokenizer_spec
    from miudo.formats import open_model
    from miudo.text.tokenizer import TextTokenizer

    if special + chat + decode > 1:
        raise UsageError("--special, --chat and --decode exclude each other", remedy="Give one")
    name, given = choose(model_and_text, text)
    content = prompt_text(given, exact=True)
    if content is None:
        raise UsageError("no text is given", remedy="Give one, or pipe it in")
    path = model_path(name)
    model = open_model(path)
    tokenizer = TextTokenizer(tokenizer_spec(model, path))
    if decode:
        ids = _ids(content)
        back = tokenizer.decode(ids)
        shown = printable(back) if sys.stdout.isatty() else back
        emit({"schema": 1, "model": str(path), "ids": ids, "text": back}, shown, as_json=as_json)
        return
    if chat:
        from miudo.protocol import Message
        from miudo.text.prompt import prompt_ids

        if model.chat_template is None:
            raise UsageError("the model has no chat template", remedy="Leave --chat out")
        turn, template = [Message("user", content)], model.chat_template
        ids = prompt_ids(tokenizer, turn, model.config, template=template)
    else:
        ids = tokenizer.encode(content, allow_special=special)
    pieces = [_piece(tokenizer, number) for number in ids]
    value: dict[str, Any] = {"schema": 1, "model": str(path), "count": len(ids), "ids": ids}
    form = form or ("pieces" if sys.stdout.isatty() else "lines")
    emit({**value, "pieces": pieces}, _shown(form, ids, pieces), as_json=as_json)
    if form == "pieces" and not as_json:
        aside(f"{len(ids)} tokens, {len(content)} characters, {len(content.encode())} bytes")


def _ids(text: str) -> list[int]:
    """Returns the numbers in `text`, with or without commas and brackets."""
    words = text.translate(str.maketrans(",[]", "   ")).split()
    for word in words:
        if not (word.isascii() and word.isdigit() and len(word) < 10):
            raise RequestError(f"{word[:40]!r} is no token id", remedy="Give whole numbers")
    return [int(word) for word in words]


def _piece(tokenizer: TextTokenizer, number: int) -> str:
    """Returns a token as text: a special one by its name, bytes that are no text escaped."""
    content = tokenizer.token_bytes(number)
    return content.decode("utf-8", "backslashreplace") if content else tokenizer.tokens[number]


def _shown(form: str, ids: Sequence[int], pieces: Sequence[str]) -> str:
    if form == "ids":
        return " ".join(map(str, ids))
    if form == "count":
        return str(len(ids))
    if form == "pieces":
        return printable(_BORDER.join(piece.translate(_SEEN) for piece in pieces))
    rows = zip(ids, pieces, strict=True)
    return "\n".join(f"{number}\t{json.dumps(piece, ensure_ascii=False)}" for number, piece in rows)
