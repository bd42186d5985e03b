"""The page at `/`: static files that speak to the public routes alone, and how they are sent.

For: people who look at a model with a browser, without any network beyond this server.
Not for: anything that a program could not ask too: the page has no routes of its own.
Read next: `miudo.serve.page.routes`, then `main.js` beside it.
"""

__all__: list[str] = []
