"""`miudo pull`: a model from the Hugging Face hub.

For: the one verb that goes to the network, and the licence that it states first.
Not for: what is fetched and how (`miudo.hub.pull`).
Read next: `miudo.hub.pull`; `miudo.cli.keeping` for what is here.
"""

from __future__ import annotations

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
                    progress=lambda here, total: counter.show(
                        here // 1_000_000, total // 1_000_000
                    ),
                )
            except KeyboardInterrupt as stop:
                raise KeyboardInterrupt(
                    f"interrupted: miudo pull {model} goes on where this stopped"
                ) from stop
    record = pulled.record
    commit = str(record.settings.get("commit", ""))
    news = f"{pulled.fetched_bytes / 1e6:,.1f} MB fetched" if pulled.fetched_bytes else "was here"
    text = "\n".join(
        [
            f"model    {reference}, {news}",
            f"commit   {commit or 'not known: another program fetched it'}",
            f"licence  {record.licence or 'not known'}",
            f"path     {pulled.path}",
        ]
    )
    value = {
        "schema": 1,
        "reference": str(reference),
        "path": str(pulled.path),
        "fetched_bytes": pulled.fetched_bytes,
        "record": record.to_json(),
    }
    emit(value, text, as_json=as_json)
