"""Which conversation has which page of the cache: the native core's rules, in plain numbers.

For: knowing before a step how many pages it would take (`miudo.engine.scheduler`), and the fake
engine's own budget.
Not for: keys and values themselves.
Read next: `native/core/engine.cc`, whose `reserve` this mirrors.
"""

from __future__ import annotations

from collections.abc import Sequence

from miudo.errors import RequestError

__all__ = ["PageBook"]


class PageBook:
    """Counts the pages of conversations that may begin alike, `budget` of them at most.

    A page holds `page_positions` positions of one conversation, and belongs to several where they
    were forked from one another; one that is written while shared is copied first.
    """

    def __init__(self, budget: int, page_positions: int = 32) -> None:
        self.budget, self.page_positions = budget, page_positions
        self._pages: dict[int, list[int]] = {}
        self._lengths: dict[int, int] = {}
        self._owners: dict[int, int] = {}
        self._next = 0

    @property
    def used(self) -> int:
        """Pages that somebody has."""
        return len(self._owners)

    @property
    def free(self) -> int:
        """Pages that nobody has."""
        return self.budget - self.used

    def pages_for(self, positions: int) -> int:
        """Returns how many pages `positions` positions fill or begin."""
        return -(-positions // self.page_positions)

    def length(self, conversation: int) -> int:
        """Returns how many positions a conversation holds."""
        return self._lengths[conversation]

    def held(self, conversations: Sequence[int]) -> int:
        """Returns how many pages these conversations have between them."""
        return len({page for k in conversations for page in self._pages[k]})

    def open(self, conversation: int) -> None:
        """Notes an empty conversation."""
        self._pages[conversation], self._lengths[conversation] = [], 0

    def fork(self, conversation: int, forked: int, length: int) -> None:
        """Notes that `forked` begins with `length` positions of `conversation`."""
        shared = self._pages[conversation][: self.pages_for(length)]
        self._pages[forked], self._lengths[forked] = shared, length
        for page in shared:
            self._owners[page] += 1

    def truncate(self, conversation: int, length: int) -> None:
        """Gives back what lies beyond `length` positions."""
        pages = self._pages[conversation]
        while len(pages) > self.pages_for(length):
            self._give_back(pages.pop())
        self._lengths[conversation] = length

    def close(self, conversation: int) -> None:
        """Gives everything back."""
        self.truncate(conversation, 0)
        del self._pages[conversation], self._lengths[conversation]

    def wanted(self, takes: Sequence[tuple[int, int]]) -> int:
        """Returns the pages that a step takes: (conversation, positions to take in) each."""
        wanted = 0
        before: dict[int, int] = {}  # of a shared page: writers that have taken their copy
        for conversation, n in takes:
            pages = self._pages[conversation]
            wanted += self.pages_for(self._lengths[conversation] + n) - len(pages)
            if self._begun(conversation) and self._owners[pages[-1]] > 1:
                wanted += self._owners[pages[-1]] - before.get(pages[-1], 0) > 1
                before[pages[-1]] = before.get(pages[-1], 0) + 1
        return wanted

    def take(self, conversation: int, n: int) -> None:
        """Notes that `n` more positions were written. Raises RequestError beyond the budget."""
        if (wanted := self.wanted([(conversation, n)])) > self.free:
            raise RequestError(
                f"the cache is full: {wanted} pages are wanted, {self.free} are free"
            )
        self.own(conversation)
        pages = self._pages[conversation]
        self._lengths[conversation] += n
        while len(pages) < self.pages_for(self._lengths[conversation]):
            pages.append(self._made())

    def own(self, conversation: int) -> None:
        """Notes that the last page was copied if it was shared and can be written."""
        pages = self._pages[conversation]
        if self._begun(conversation) and self._owners[pages[-1]] > 1:
            self._give_back(pages[-1])
            pages[-1] = self._made()

    def _begun(self, conversation: int) -> bool:
        return self._lengths[conversation] % self.page_positions != 0

    def _made(self) -> int:
        self._next += 1
        self._owners[self._next] = 1
        return self._next

    def _give_back(self, page: int) -> None:
        self._owners[page] -= 1
        if not self._owners[page]:
            del self._owners[page]
