"""Making a decoder smaller: distillation, pruning, quantisation.

For: methods under one contract (`miudo.compress.method`), and the verbs' functions.
Not for: choosing methods for a budget (`miudo.shrink`).
Read next: `miudo.compress.method`.
"""

__all__: list[str] = []
