"""What a served model does inside, for the page and for anybody who asks.

For: `/inspect/attention`, `/inspect/lens`, `/inspect/model`.
Not for: computing it (`miudo.engine.insides`).
Read next: `miudo.serve.inspect.routes`.
"""

__all__: list[str] = []
