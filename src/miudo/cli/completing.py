"""`miudo completion`: what makes a shell complete verbs, options and names of models.

For: the script that a shell reads once.
Not for: what is then offered at every Tab: verbs by `miudo.cli.main.LazyGroup`, models by
`complete_model` in `miudo.cli.options`. Nothing there may import NumPy: an answer to Tab that takes
a second is none.
Read next: `miudo.cli.main`.
"""

from __future__ import annotations

import click

from miudo.cli.options import emit, verb

__all__ = ["completion"]

_VARIABLE = "_MIUDO_COMPLETE"
_FILES = {"bash": "~/.bashrc", "zsh": "~/.zshrc", "fish": "~/.config/fish/config.fish"}


@verb("completion")
@click.argument("shell", type=click.Choice(list(_FILES)))
def completion(shell: str, *, as_json: bool) -> None:
    """Print the script that makes SHELL complete miudo's verbs, options and models.

    For bash and zsh add  eval "$(miudo completion bash)"  to ~/.bashrc or ~/.zshrc; for fish add
    miudo completion fish | source  to ~/.config/fish/config.fish.
    """
    from click.shell_completion import ShellComplete, get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 - the three are click's own
    whole = click.get_current_context().find_root().command
    # Not bash's own `source`: it starts bash to ask for its version.
    script = ShellComplete.source(kind(whole, {}, "miudo", _VARIABLE))
    value = {"schema": 1, "shell": shell, "file": _FILES[shell], "script": script}
    emit(value, script, as_json=as_json)
