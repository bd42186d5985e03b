"""Model files in and out: Hugging Face folders and GGUF, round-trip exact.

For: turning untrusted bytes into a checked `ModelFile`, and back.
Not for: what the tensors mean (`miudo.tensors`) or running them.
Read next: `miudo.formats.opening`.
"""

from miudo.formats.model_file import ModelFile
from miudo.formats.opening import open_model

__all__ = ["ModelFile", "open_model"]
