"""Anthropic's protocol: messages, and counting their tokens.

For: programs that speak to `/v1/messages`.
Not for: the engine's side (`miudo.serve.answering`).
Read next: `miudo.serve.anthropic.messages`.
"""

__all__: list[str] = []
