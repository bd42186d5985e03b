"""`miudo pull`: a model from the Hugging Face hub.

For: the one verb that goes to the network, and the licence that it states first.
Not for: what is fetched and how (`miudo.hub.pull`).
Read next: `miudo.hub.pull`; `miudo.cli.keeping` for what is here.
"""

from __future__ import annotations

import functools

import click

from miudo.cli.counter import Counter
from miudo.cli.licensing import state_licence
from miudo.cli.options import emit, verb

__all__ = ["pull"]


@verb("pull")
@click.argument("model")
@click.option("--offline", is_flag=True, help="No network: only look whether it is here, whole.")
def pull(model: str, *, offline: bool, as_json: bool) -> None:
    """Fetch MODEL from the Hugging Face hub into its cache on this machine.

    MODEL is a name of `miudo catalog`, or hf://org/repo[:file.gguf][@revision]. Only the files
    that a model needs come, each checked by its hash. Stopped, it goes on where it was.
    """
    from huggingface_hub import constants

    from miudo.hub.pull import pull as pull_model
    from miudo.hub.pull import pulled_offline
    from miudo.hub.resolve import hub_reference
    from miudo.names import parse_reference

    reference = hub_reference(parse_reference(model))
    if offline or constants.is_offline_mode():
        pulled = pulled_offline(reference)
    else:
        with Counter("MB") as counter:
            try:
                pulled = pull_model(
                    reference,
                    tell=lambda licence: state_licence(licence, reference.repo_id),
                    progress=functools.partial(_show, counter),
                    waiting=lambda name: click.echo(
                        f"waiting: another program is fetching {name}", err=True
                    ),
                )
            except KeyboardInterrupt as stop:
                raise KeyboardInterrupt(
                    f"interrupted: miudo pull {model} goes on where this stopped"
                ) from stop
    record = pulled.record
    news = f"{pulled.fetched_bytes / 1e6:,.1f} MB fetched" if pulled.fetched_bytes else "was here"
    lines = [f"model    {reference}, {news}"]
    if record is None:
        lines.append("record   none: another program fetched it")
    else:
        lines.append(f"commit   {record.settings['commit']}")
        lines.append(f"licence  {record.licence}")
    value = {
        "schema": 1,
        "reference": str(reference),
        "path": str(pulled.path),
        "fetched_bytes": pulled.fetched_bytes,
        "record": None if record is None else record.to_json(),
    }
    emit(value, "\n".join([*lines, f"path     {pulled.path}"]), as_json=as_json)


def _show(counter: Counter, here: int, total: int) -> None:
    counter.show(here // 1_000_000, total // 1_000_000)
