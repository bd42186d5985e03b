"""The protocol that most clients speak: OpenAI's.

For: chat, completions, embeddings, models.
Not for: the engine's side (`miudo.serve.answering`).
Read next: `miudo.serve.openai.chat`.
"""

__all__: list[str] = []
