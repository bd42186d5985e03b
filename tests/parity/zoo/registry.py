"""All cases of all families. A new family adds its file here."""

from __future__ import annotations

from zoo import composites, gemma, llama_kin, plain
from zoo.case import Case

__all__ = ["CASES"]

CASES: dict[str, Case] = {
    **llama_kin.CASES,
    **plain.CASES,
    **gemma.CASES,
    **composites.CASES,
}
