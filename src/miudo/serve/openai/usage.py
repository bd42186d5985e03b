"""How many tokens a request took, as chat and completions say it.

For: `usage` of whole replies and of streams.
Not for: how long it took (`miudo.serve.asking.timings`).
Read next: `miudo.serve.answering.Piece`.
"""

from __future__ import annotations

from collections.abc import Sequence

from miudo.serve.answering import Piece

__all__ = ["usage"]


def usage(prompt_tokens: int, lasts: Sequence[Piece]) -> dict[str, int]:
    """Returns the counts of all choices together; each prompt counts once."""
    new = sum(last.new_tokens for last in lasts)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": new,
        "total_tokens": prompt_tokens + new,
    }
