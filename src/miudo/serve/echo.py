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
    engine: Engine, ids: Sequence[int], top: int, adapter: str | None = None
) -> tuple[TokenChance, ...]:
    """Returns the chances of `ids`; the first has NaN, since nothing precedes it."""
    first = TokenChance(ids[0], math.nan)
    if len(ids) == 1:
        return (first,)
    scores = engine.score(ids, top_k=top, adapter=adapter)
    rows = []
    for i, token in enumerate(ids[1:]):
        best: tuple[tuple[int, float], ...] = ()
        if scores.top_ids is not None and scores.top_logprobs is not None:
            pairs = zip(scores.top_ids[i], scores.top_logprobs[i], strict=True)
            best = tuple((int(t), float(p)) for t, p in pairs)
        rows.append(TokenChance(token, float(scores.logprobs[i]), best))
    return (first, *rows)
