"""Guesses at the next ids: from the text so far, or by a smaller model.

For: `miudo.engine.speculate`, which lets the engine check them; a guess may be wrong.
Not for: deciding whether guessing pays (`miudo.engine.speculate`).
Read next: `miudo.protocol.SeqWork`, whose `n_drafted` takes a guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from miudo.errors import RequestError
from miudo.protocol import Engine, SamplingSettings, SeqWork

__all__ = ["Drafter", "ModelDrafter", "TextDrafter"]

_LONGEST_MATCH = 8
_PLACES = 8
"""Ids back that tell one place from another, and how many latest places are compared."""


class Drafter(Protocol):
    """Guesses how a text goes on. One belongs to one text, which only grows."""

    @property
    def free(self) -> bool:
        """Whether a guess costs next to nothing."""
        ...

    def evidence(self, ids: Sequence[int]) -> str | None:
        """Returns what a guess after `ids` would stand on, None where there is none to make.

        Guesses on the same evidence are about as good as one another.
        """
        ...

    def guess(self, most: int) -> Sequence[int]:
        """Returns up to `most` ids that may follow those that `evidence` was last asked about."""
        ...

    def close(self) -> None:
        """Frees what it holds."""
        ...


class TextDrafter:
    """Guesses that the text goes on as it did where its last ids stood before.

    Prompt lookup (Saxena 2023): the place is the one that agrees furthest back, the latest of
    equals; a copy may run into itself, as in LZ77.
    """

    free = True

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._places: dict[tuple[int, int], list[int]] = {}  # after each pair of ids
        self._from = 0

    def evidence(self, ids: Sequence[int]) -> str | None:
        """Returns how many ids agree with an earlier place; None for fewer than two."""
        text = self._ids
        for at in range(len(text), len(ids)):
            text.append(ids[at])
            if at >= 2:  # the pair before it: what follows the last pair is not known yet
                self._places.setdefault((text[at - 2], text[at - 1]), []).append(at)
        places = self._places.get((text[-2], text[-1]), []) if len(text) > 1 else []
        best = 0
        for place in reversed(places[-_PLACES:]):
            same = self._agreement(place)
            if same > best:
                best, self._from = same, place
            if same == _LONGEST_MATCH:
                break
        return f"{best} ids of text" if best else None

    def guess(self, most: int) -> Sequence[int]:
        """Returns the ids that followed there."""
        copied = self._ids[self._from : self._from + most]
        period = len(self._ids) - self._from
        while len(copied) < most:
            copied.append(copied[len(copied) - period])
        return copied

    def close(self) -> None:
        """Nothing is held."""

    def _agreement(self, place: int) -> int:
        text, end, same = self._ids, len(self._ids), 2
        while same < min(_LONGEST_MATCH, place) and text[place - 1 - same] == text[end - 1 - same]:
            same += 1
        return same


class ModelDrafter:
    """Guesses what a smaller model of the same vocabulary would say.

    It draws with the same settings and random numbers as the large one: where the two agree in
    what is probable, they mostly agree in what is drawn. Raises RequestError for a model of
    another vocabulary.
    """

    free = False

    def __init__(
        self,
        engine: Engine,
        vocab_size: int,
        sampling: SamplingSettings,
        mask: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        if engine.config.vocab_size != vocab_size:
            raise RequestError(
                f"the draft model has {engine.config.vocab_size} ids, the model {vocab_size}",
                remedy="Draft with a model of the same tokenizer",
            )
        self._engine, self._sampling, self._mask = engine, sampling, mask
        self._ids: Sequence[int] = ()
        self._conversation = engine.open()
        self._held: list[int] = []
        self._sure = 0  # ids held that are the text's: only a guess can have been wrong

    def evidence(self, ids: Sequence[int]) -> str | None:
        """Returns that it is the model; None where the text is too long for it."""
        self._ids = ids
        return "model" if ids and len(ids) < self._engine.config.max_positions else None

    def guess(self, most: int) -> Sequence[int]:
        """Returns ids that the model draws one after the other."""
        ids, k = self._ids, self._conversation
        same = min(self._sure, len(ids) - 1)
        while same < min(len(self._held), len(ids) - 1) and self._held[same] == ids[same]:
            same += 1
        self._engine.truncate(k, same)
        pending, guessed = list(ids[same:]), list[int]()
        for _ in range(min(most, self._engine.config.max_positions - len(ids) + 1)):
            (out,) = self._engine.step(
                [SeqWork(k, pending, sampling=self._sampling, mask=self._mask)]
            )
            pending = list(out.tokens)
            guessed += pending
        self._held, self._sure = [*ids, *guessed[:-1]], len(ids)  # the last is not taken in
        return guessed

    def close(self) -> None:
        """Frees the model's conversation."""
        self._engine.close(self._conversation)
