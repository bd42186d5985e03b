"""Ollama's protocol: generating, chatting, embedding, and what is served.

For: programs that speak to `/api/`.
Not for: the engine's side (`miudo.serve.answering`), or fetching and deleting models.
Read next: `miudo.serve.ollama.generate`.
"""

__all__: list[str] = []
