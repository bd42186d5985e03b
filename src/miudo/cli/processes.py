"""`miudo ps`: the servers that run on this machine.

For: which models are up, where, since when, and what memory they take.
Not for: starting or stopping one (`miudo serve`; Ctrl-C or SIGTERM ends it).
Read next: `miudo.serve.registered`.
"""

from __future__ import annotations

import dataclasses

from miudo.cli.options import emit, printable, verb

__all__ = ["ps"]


@verb("ps")
def ps(*, as_json: bool) -> None:
    """List the servers that you have running on this machine, and the models they began with.

    Those of `miudo serve`; one that was killed is no longer listed.
    """
    import psutil

    from miudo.serve.registered import running_servers

    rows = []
    for server in running_servers():
        try:
            memory = int(psutil.Process(server.pid).memory_info().rss)
        except psutil.Error:  # of another container, which shares the folder alone
            memory = None
        rows.append({**dataclasses.asdict(server), "memory_bytes": memory})
    lines = []
    for row in rows:
        size = "" if row["memory_bytes"] is None else f"{row['memory_bytes'] / 1e6:>8,.1f} MB"
        names = ", ".join(row["models"])
        lines.append(f"{row['pid']:>7}  {row['url']:<28} {size:>11}  since {row['since']}  {names}")
    text = printable("\n".join(lines)) or "no server runs here; miudo serve MODEL starts one"
    emit({"schema": 1, "servers": rows}, text, as_json=as_json)
