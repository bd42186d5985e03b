"""Distillation: a small decoder learns from a big one.

For: losses that compare a student with its teacher.
Not for: the training loop (`miudo.train.loop`).
Read next: `miudo.compress.distill.terms`, then `miudo.compress.distill.loss`.
"""

__all__: list[str] = []
