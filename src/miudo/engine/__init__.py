"""Engines that run a decoder without PyTorch, and the loop that generates with any of them.

For: the native engine (C++), a scripted fake for tests, generation in ids and text.
Not for: the PyTorch engine (`miudo.decoder.torch_engine`) or files (`miudo.formats`).
Read next: `miudo.engine.generate`, then `miudo.engine.native`.
"""

__all__: list[str] = []
