"""What a model makes of a text: its tokens, its template, its next words.

For: programs that count, look inside, or complete words, in the forms of llama.cpp's server.
Not for: answers (`miudo.serve.openai`).
Read next: `miudo.serve.text.tools`.
"""

__all__: list[str] = []
