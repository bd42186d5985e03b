"""Text becomes training data: read, clean, drop duplicates, pack into token files.

For: everything between files of text and blocks of token ids.
Not for: the tokenizer itself (`miudo.text`) or training (`miudo.train`).
Read next: `miudo.data.pipeline`, the whole way in one function.
"""

__all__: list[str] = []
