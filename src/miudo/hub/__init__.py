"""From a model reference to a path on this machine; fetching, keeping and choosing models.

For: `cli` and `serve`, which get references from users; below them there are only paths.
Not for: parsing references (`miudo.names`) or opening files (`miudo.formats`).
Read next: `miudo.hub.resolve`, then `miudo.hub.pull` and `miudo.hub.catalogue`.
"""

__all__: list[str] = []
