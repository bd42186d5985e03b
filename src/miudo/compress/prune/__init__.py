"""Pruning: parts of a decoder that matter least are removed, and the tensors shrink.

For: dropping blocks, narrowing feed-forward layers, recovering quality.
Not for: zeros inside full-size tensors.
Read next: `miudo.compress.prune.depth`.
"""

__all__: list[str] = []
