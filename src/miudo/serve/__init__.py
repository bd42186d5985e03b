"""HTTP: the protocols that clients already speak, and a page.

For: `miudo serve`.
Not for: batching itself (`miudo.engine.scheduler`), which is pure.
Read next: `miudo.serve.worker`, then `miudo.serve.answering`, then `miudo.serve.app`.
"""

__all__: list[str] = []
