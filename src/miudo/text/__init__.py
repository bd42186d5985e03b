"""Text to ids and back: tokenizer, chat template, streaming.

For: everything that stands between characters and token ids.
Not for: reading corpora (`miudo.data`) or running models (`miudo.engine`).
Read next: `miudo.text.tokenizer`.
"""

__all__: list[str] = []
