"""Quantisation: the same tensors in fewer bits.

For: deciding each tensor's type, and the decoder that equals the file.
Not for: the bytes themselves (`miudo.formats.blocks`).
Read next: `miudo.compress.quantize.nearest`.
"""

__all__: list[str] = []
