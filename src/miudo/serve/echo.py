"""What each token of a given text cost the model.

For: log-probabilities of a prompt.
Not for: answers (`miudo.serve.answering`).
Read next: `miudo.protocol.Engine.score`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from miudo.protocol import Engine
from miudo.serve.answering import TokenChance

__all__ = ["echoed"]


def echoed(
    engine: Engine, ids: Sequence[int], top: int, *, n_tokens: int, adapter: str | None = None
) -> tuple[TokenChance, ...]:
    """Returns the chances of `ids`; the first has NaN, since nothing precedes it.

    Rows of the vocabulary from `n_tokens` on are no tokens and never among the `top`.
    """
    first = TokenChance(ids[0], math.nan)
    if len(ids) == 1:
        return (first,)
    size = engine.config.vocab_size
    looked_at = min(size, top + size - n_tokens) if top else 0
    scores = engine.score(ids, top_k=looked_at, adapter=adapter)
    rows = []
    for i, token in enumerate(ids[1:]):
        best: tuple[tuple[int, float], ...] = ()
        if scores.top_ids is not None and scores.top_logprobs is not None:
            pairs = zip(scores.top_ids[i], scores.top_logprobs[i], strict=True)
            best = tuple((int(t), float(p)) for t, p in pairs if t < n_tokens)[:top]
        rows.append(TokenChance(token, float(scores.logprobs[i]), best))
    return (first, *rows)
