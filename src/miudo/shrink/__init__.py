"""From a budget to a small model: plans over the methods of `miudo.compress`.

For: the whole way in one call.
Not for: the methods themselves, or training.
Read next: `miudo.shrink.demo`.
"""

__all__: list[str] = []
