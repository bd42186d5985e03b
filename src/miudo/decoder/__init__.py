"""The PyTorch decoder: the one module that is trained, distilled, pruned and fake-quantised.

For: the truth that the native engine must equal.
Not for: fast generation (`miudo.engine`) or files (`miudo.formats`).
Read next: `miudo.decoder.decoder`.
"""

__all__: list[str] = []
