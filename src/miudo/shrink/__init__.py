"""From a budget to a small model: plans over the methods of `miudo.compress`.

For: the search for a model within a budget, and the demo's whole way in one call.
Not for: the methods themselves, or training.
Read next: `miudo.shrink.search`; for the demo, `miudo.shrink.demo`.
"""

__all__: list[str] = []
