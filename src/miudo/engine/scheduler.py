"""Which ids the next step takes in, for requests that come and go: continuous batching.

For: many requests on one engine (Yu et al. 2022, Orca; Kwon et al. 2023, vLLM): every running
sequence gets a token a step, prompts are read in chunks beside them, in equal shares. Pure: no
threads, no clock, no engine; the same calls give the same plans.
Not for: running them (`miudo.engine.batches.carry_out`) or text.
Read next: `miudo.engine.pages`, for what a step costs.
"""

from __future__ import annotations

from bisect import insort
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from miudo.engine.batches import Close, Limits, Open, Plan, Progress, Request
from miudo.engine.pages import PageBook
from miudo.errors import BusyError, RequestError
from miudo.protocol import SeqWork, StepOut, Want

__all__ = ["Scheduler"]


@dataclass(eq=False)
class _Sequence:
    """A request on its way. `ids` are all that are known, `held` those that the engine has."""

    request: Request
    arrival: int
    limit: int  # of tokens to draw
    ids: list[int]
    drawn: int = 0
    slot: int = 0
    reused: int | None = None  # ids of the prompt that it began with
    held: list[int] = field(default_factory=list)
    stopped: bool = False

    @property
    def pending(self) -> int:
        """How many ids the engine has not taken in: one of a sequence that draws every step."""
        return len(self.ids) - len(self.held)

    @property
    def kin(self) -> tuple[str | None, str]:
        """Adapter and scope: among equals positions are shared."""
        return self.request.adapter, self.request.scope


@dataclass(frozen=True)
class _Kept:
    ids: list[int]
    kin: tuple[str | None, str]


class Scheduler:
    """Plans steps for requests under `limits`.

    In a loop: `submit` and `stop` as wanted, `plan`, carry it out, `settle` with what came back;
    if the step raised, `plan` again, without the request that is to blame. Requests are admitted
    in order of arrival while the cache holds what all need next; when it becomes too small,
    finished conversations are forgotten first, then the youngest request steps back, to be read
    anew later: its tokens are the same, since each has a random number of its own.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._book = PageBook(limits.pages, limits.page_positions)
        self._waiting: list[_Sequence] = []  # both by arrival
        self._running: list[_Sequence] = []
        self._by_number: dict[int, _Sequence] = {}
        self._kept: OrderedDict[int, _Kept] = OrderedDict()  # by slot, latest used last
        self._changes: list[Open | Close] = []
        self._planned: list[tuple[_Sequence, SeqWork]] = []
        self._arrivals = self._slots = 0
        self.reused = self.preempted = 0

    @property
    def waiting(self) -> int:
        """Requests that nothing is computed for."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests that are read or written."""
        return len(self._running)

    @property
    def pages_used(self) -> int:
        """Pages that conversations have, finished ones included."""
        return self._book.used

    def submit(self, request: Request) -> None:
        """Takes a request in. Raises RequestError for one that could never be run to its end."""
        n, limits = len(request.prompt), self._limits
        if request.number in self._by_number:
            raise RequestError(f"request {request.number} is there already")
        if not 0 < n <= limits.context or request.max_tokens < 1:
            raise RequestError(
                f"request {request.number} has {n} ids and wants {request.max_tokens} tokens, the "
                f"model has {limits.context} positions"
            )
        limit = min(request.max_tokens, limits.context - n + 1)  # the last is not taken in
        if (pages := self._book.pages_for(n + limit - 1)) > limits.pages:
            raise RequestError(
                f"request {request.number} needs {pages} pages, the cache has {limits.pages}",
                remedy="Ask for fewer tokens, or give the engine a larger cache_bytes",
            )
        self._arrivals += 1
        sequence = _Sequence(request, self._arrivals, limit, list(request.prompt))
        self._by_number[request.number] = sequence
        self._waiting.append(sequence)

    def stop(self, number: int) -> None:
        """Ends a request now, whether cancelled or complete; unknown ones are over already.

        One whose step is under way is forgotten when that has ended.
        """
        if (sequence := self._by_number.get(number)) is None:
            return
        sequence.stopped = True
        if not any(sequence is planned for planned, _ in self._planned):
            self._retire(sequence)

    def plan(self, drafts: Mapping[int, Sequence[int]] | None = None) -> Plan:
        """Returns the next step; it has no work where nothing is waiting or running.

        `drafts` are guesses by request number; they fill what space is left.
        """
        self._forget_failed()
        self._admit()
        takes = self._fitted()
        failed = self._planned_for(takes)
        for at, (sequence, work) in enumerate(self._planned):
            request = sequence.request
            if not drafts or request.guide is not None or request.logits:
                continue
            if request.number in drafts and sequence.pending == 1:
                draft = drafts[request.number]
                self._planned[at] = (sequence, self._drafted(sequence, work, draft))
        changes, self._changes = tuple(self._changes), []
        works = tuple(work for _, work in self._planned)
        numbers = tuple(s.request.number for s, _ in self._planned)
        return Plan(changes, works, numbers, failed)

    def make_room(self, positions: int) -> tuple[Open | Close, ...]:
        """Forgets finished conversations until so many positions fit that no request has.

        Returns the changes, to be carried out at once. Raises RequestError for more than the
        cache holds, BusyError where requests that run have it.
        """
        wanted, total = self._book.pages_for(positions), self._limits.pages
        if wanted > total:
            raise RequestError(
                f"{positions} positions need {wanted} pages, the cache has {total}",
                remedy="Shorten the text, or give the engine a larger cache_bytes",
            )
        self._forget_failed()
        while self._kept and self._book.free < wanted:
            self._close(self._kept.popitem(last=False)[0])
        if self._book.free < wanted:
            raise BusyError(
                f"{wanted} pages of the cache are wanted, the requests that run leave "
                f"{self._book.free}",
                remedy="Try again in a moment",
            )
        changes, self._changes = tuple(self._changes), []
        return changes

    def settle(self, outs: Sequence[StepOut]) -> list[Progress]:
        """Takes in what the planned step gave, in its order; returns the new tokens."""
        planned, self._planned = self._planned, []
        news = []
        for (sequence, work), out in zip(planned, outs, strict=True):
            lost = work.n_drafted - (len(out.tokens) - 1) if work.n_drafted else 0
            self._book.take(sequence.slot, len(work.ids))
            sequence.held += work.ids[: len(work.ids) - lost]
            self._book.truncate(sequence.slot, len(sequence.held))
            if sequence.stopped:
                self._retire(sequence)
            elif out.tokens:
                news.append(self._written(sequence, out))
        return news

    def _forget_failed(self) -> None:
        """A step that was planned and never settled failed, perhaps after pages were copied."""
        planned, self._planned = self._planned, []
        for sequence, _ in planned:
            self._book.own(sequence.slot)
            if sequence.stopped:
                self._retire(sequence)

    def _written(self, sequence: _Sequence, out: StepOut) -> Progress:
        tokens, reason, guide = [], None, sequence.request.guide
        for token in out.tokens:
            tokens.append(token)
            sequence.drawn += 1
            ended = guide is not None and guide.take(token)
            if ended or token in sequence.request.eos_ids:
                reason = "stop"
            elif sequence.drawn == sequence.limit:
                reason = "length"
            if reason:
                break
        sequence.ids += tokens
        if reason:
            self._retire(sequence)
        logprobs = out.logprobs[: len(tokens)]
        return Progress(
            sequence.request.number,
            tuple(tokens),
            reason,
            logprobs,
            out.logits,
            reused=sequence.reused or 0,
        )

    # Requests come in.

    def _admit(self) -> None:
        for sequence in self._waiting[: self._limits.max_sequences]:
            if len(self._running) == self._limits.max_sequences:
                return
            source, length = self._longest_held(sequence)
            if self._is_coming(sequence, length):
                continue
            slot = self._slots + 1
            self._book.open(slot) if source is None else self._book.fork(source, slot, length)
            if not self._have_room([*self._running, sequence], slot):
                self._book.close(slot)
                return
            self._slots, sequence.slot = slot, slot
            sequence.held = sequence.ids[:length]
            if sequence.reused is None:  # after a step back it may be more than the prompt
                sequence.reused = length
            self._changes.append(Open(slot, source, length))
            if source is not None and source in self._kept:
                self._kept.move_to_end(source)
            self._waiting.remove(sequence)
            insort(self._running, sequence, key=lambda s: s.arrival)
            self.reused += length

    def _longest_held(self, sequence: _Sequence) -> tuple[int | None, int]:
        """Returns the slot that begins as the sequence does, and how far: not to its last id."""
        wanted, kin = sequence.ids[:-1], sequence.kin
        found = [(_common(k.ids, wanted), s) for s, k in self._kept.items() if k.kin == kin]
        for other in self._running:
            if other.kin == kin:
                found.append((_common(other.held, wanted), other.slot))
        length, slot = max(found, default=(0, 0))
        return (slot, length) if length else (None, 0)

    def _is_coming(self, sequence: _Sequence, length: int) -> bool:
        """Whether another is just reading at least a page more of the same."""
        wanted = sequence.ids[:-1]
        return any(
            len(other.held) < (common := _common(other.ids, wanted))
            and common >= length + self._limits.page_positions
            for other in self._running
            if other.kin == sequence.kin
        )

    def _have_room(self, sequences: Sequence[_Sequence], slot: int) -> bool:
        """Whether all known ids, and a page more of each sequence, fit without kept ones.

        The last of the sequences has `slot`. One alone fits: `submit` saw to that.
        """
        slots = [s.slot for s in sequences[:-1]] + [slot]
        takes = []
        for sequence, at in zip(sequences, slots, strict=True):
            left = sequence.limit - sequence.drawn - 1
            ahead = len(sequence.ids) + min(self._limits.page_positions, left)
            takes.append((at, ahead - self._book.length(at)))
        needed = self._book.held(slots) + self._book.wanted(takes)
        return len(slots) == 1 or needed <= self._limits.pages

    # A step is put together.

    def _fitted(self) -> dict[_Sequence, int]:
        """Returns ids to take in by sequence, after making room for them."""
        while True:
            takes = self._shares()
            if self._wanted(takes) <= self._book.free:
                return takes
            if self._kept:
                self._close(self._kept.popitem(last=False)[0])
            else:
                self._step_back(self._running[-1])

    def _shares(self) -> dict[_Sequence, int]:
        """Splits the positions: what is left of one share is for those who need more."""
        left, takes = self._limits.max_positions, {}
        shortest_first = sorted(self._running, key=lambda s: s.pending)
        for at, sequence in enumerate(shortest_first):
            takes[sequence] = min(sequence.pending, left // (len(shortest_first) - at))
            left -= takes[sequence]
        return {sequence: takes[sequence] for sequence in self._running}

    def _wanted(self, takes: Mapping[_Sequence, int]) -> int:
        return self._book.wanted([(s.slot, n) for s, n in takes.items()])

    def _planned_for(self, takes: Mapping[_Sequence, int]) -> tuple[tuple[int, RequestError], ...]:
        """Sets what each sequence takes in; returns those whose guides refused to choose."""
        self._planned, failed = [], []
        for sequence, n in takes.items():
            try:
                self._planned.append((sequence, self._work(sequence, n)))
            except RequestError as error:
                failed.append((sequence.request.number, error))
        return tuple(failed)

    def _work(self, sequence: _Sequence, n: int) -> SeqWork:
        start, request = len(sequence.held), sequence.request
        ids = sequence.ids[start : start + n]
        if n < sequence.pending:
            return SeqWork(
                sequence.slot, ids, Want.NOTHING, request.sampling, None, request.adapter
            )
        want = Want.SAMPLE | Want.LAST_LOGITS if request.logits else Want.SAMPLE
        sampling, mask = request.sampling, request.mask
        if request.guide is not None:
            sampling, mask = request.guide.choice()
        return SeqWork(sequence.slot, ids, want, sampling, mask, request.adapter)

    def _drafted(self, sequence: _Sequence, work: SeqWork, draft: Sequence[int]) -> SeqWork:
        taken = sum(len(other.ids) for _, other in self._planned)
        space = min(
            len(draft),
            self._limits.max_positions - taken,
            sequence.limit - sequence.drawn - 1,
        )
        takes = {s: len(other.ids) for s, other in self._planned}
        takes[sequence] += space
        if space < 1 or self._wanted(takes) > self._book.free:
            return work
        ids = [*work.ids, *draft[:space]]
        return SeqWork(
            work.conversation, ids, work.want, work.sampling, work.mask, work.adapter, space
        )

    # Requests go.

    def _step_back(self, sequence: _Sequence) -> None:
        self._running.remove(sequence)
        self._close(sequence.slot)
        sequence.held = []
        insort(self._waiting, sequence, key=lambda s: s.arrival)
        self.preempted += 1

    def _retire(self, sequence: _Sequence) -> None:
        """Ends a sequence; its conversation is kept if others could begin with it."""
        del self._by_number[sequence.request.number]
        if sequence not in self._running:
            self._waiting.remove(sequence)
            return
        self._running.remove(sequence)
        if not sequence.held:
            self._close(sequence.slot)
            return
        mine = _Kept(sequence.held, sequence.kin)
        for slot, other in list(self._kept.items()):
            if other.kin != mine.kin:
                continue
            common = _common(other.ids, mine.ids)
            if common == len(mine.ids):  # the other has it all
                self._close(sequence.slot)
                return
            if common == len(other.ids):
                del self._kept[slot]
                self._close(slot)
        self._kept[sequence.slot] = mine
        while len(self._kept) > self._limits.max_kept:
            self._close(self._kept.popitem(last=False)[0])

    def _close(self, slot: int) -> None:
        self._book.close(slot)
        self._changes.append(Close(slot))


def _common(a: list[int], b: list[int]) -> int:
    """Returns how many ids two lists begin with alike; slices compare faster than a loop."""
    same, end = 0, min(len(a), len(b))
    while same < end and a[same : same + 64] == b[same : same + 64]:
        same = min(same + 64, end)
    while same < end and a[same] == b[same]:
        same += 1
    return same
