"""Complexity by rules: words, numbers, length. The baseline that a classifier has to beat.

For: routing without examples to learn from.
Not for: what the user's own prompts tell (`miudo.route.complexity`).
Read next: `miudo.route.complexity`.

Rules of this kind stand in several gateways; these are ours, and were set before anything was
measured with them.
"""

from __future__ import annotations

import re

from miudo.route.targets import Complexity

__all__ = ["keyword_complexity"]

_RULES: tuple[tuple[str, float, re.Pattern[str]], ...] = tuple(
    (name, weight, re.compile(pattern, re.IGNORECASE))
    for name, weight, pattern in (
        ("reasons", 0.25, r"\b(why|explain|prove|derive|justify|reason|step by step)\b"),
        ("compares", 0.2, r"\b(compare|difference|versus|vs|better|worse|instead|trade-?off)\b"),
        ("computes", 0.25, r"\b(calculate|compute|solve|total|percent|average|how (much|many))\b"),
        ("writes", 0.2, r"\b(write|draft|summari[sz]e|translate|rewrite|essay|story|poem)\b"),
        ("codes", 0.25, r"```|\b(function|code|python|sql|regex|bug|compile|algorithm)\b"),
        ("conditions", 0.15, r"\b(if|unless|although|however|but|except|while|without)\b"),
        ("numbers", 0.15, r"\d+\D+\d+"),
    )
)
_LENGTH_WEIGHT, _LONG_WORDS = 0.3, 60


def keyword_complexity(text: str) -> Complexity:
    """Returns the sum of the rules that fire, and of length, at most 1."""
    fired = [(name, weight) for name, weight, rule in _RULES if rule.search(text)]
    length = _LENGTH_WEIGHT * min(1.0, len(text.split()) / _LONG_WORDS)
    signals = sorted([*fired, ("length", round(length, 4))], key=lambda s: (-s[1], s[0]))
    value = min(1.0, sum(weight for _, weight in fired) + length)
    return Complexity(value, "keywords", tuple(signals))
