"""Small model or large one: which of several targets answers, and why.

For: `model: "auto"` in `miudo serve`, and `miudo route`.
Not for: HTTP (`miudo.serve.routing`) or making models smaller (`miudo.shrink`).
Read next: `miudo.route.targets`, then `miudo.route.decide`.
"""

__all__: list[str] = []
