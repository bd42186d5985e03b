"""`model: "auto"`: the server chooses who answers, and says why.

For: OpenAI's chat and completions in front of several targets, local ones and other servers.
Not for: the rules of the choice (`miudo.route`), or one model's answer (`miudo.serve.openai`).
Read next: `miudo.serve.routing.routes`, then `miudo.serve.routing.cascade`.
"""

__all__: list[str] = []
