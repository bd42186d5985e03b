"""Hard constraints: what forbids a target, before anything is weighed.

For: offline, data that stays, memory, deadline, licence and use, parts of the protocol.
Not for: which of the permitted is best (`miudo.route.decide`).
Read next: `miudo.route.decide`.
"""

from __future__ import annotations

from collections.abc import Callable

from miudo.route.targets import Facts, Refusal, RouteTable, Target, World

__all__ = ["refusal", "seconds_needed"]

_REMOTE_GIVES = frozenset({"chat"})


def refusal(target: Target, table: RouteTable, facts: Facts, world: World) -> Refusal | None:
    """Returns the first rule that forbids `target`, None where it may answer."""
    for rule, check in _RULES.items():
        reason = check(target, table, facts, world)
        if reason is not None:
            return Refusal(target.name, rule, reason)
    return None


def seconds_needed(target: Target, facts: Facts, world: World) -> float | None:
    """Returns how long `max_tokens` take at the measured rate, None where one is not known.

    What this server measured goes before what the table says.
    """
    rate = world.tokens_per_s.get(target.name, target.tokens_per_s)
    return None if rate is None or facts.max_tokens is None else facts.max_tokens / rate


def _offline(target: Target, table: RouteTable, facts: Facts, _: World) -> str | None:
    asked = table.offline or facts.offline
    return "it needs the network" if asked and target.remote and target.leaves else None


def _stays(target: Target, table: RouteTable, facts: Facts, _: World) -> str | None:
    asked = table.stays or facts.stays
    return "the data may not leave, and there it would" if asked and target.leaves else None


def _licence(target: Target, table: RouteTable, facts: Facts, _: World) -> str | None:
    if table.licences and target.licence not in table.licences:
        named = target.licence or "none stated"
        return f"its licence ({named}) is not among {', '.join(table.licences)}"
    if target.uses and facts.use not in target.uses:
        asked = "the request names no use" if facts.use is None else f"the use is {facts.use!r:.40}"
        return f"it may be used for {', '.join(target.uses)}; {asked}"
    return None


def _protocol(target: Target, _: RouteTable, facts: Facts, __: World) -> str | None:
    lacking = sorted(facts.needs - _REMOTE_GIVES) if target.remote else []
    return f"it does not take {', '.join(lacking)}" if lacking else None


def _memory(target: Target, _: RouteTable, __: Facts, world: World) -> str | None:
    if target.remote or target.name in world.open or target.memory_bytes <= world.free_bytes:
        return None
    return f"it takes {_mib(target.memory_bytes)}, {_mib(world.free_bytes)} are free"


def _deadline(target: Target, _: RouteTable, facts: Facts, world: World) -> str | None:
    if facts.deadline_s is None:
        return None
    needed = seconds_needed(target, facts, world)
    if needed is None:
        return "whether it keeps the deadline is not known: its speed was not measured"
    if needed <= facts.deadline_s:
        return None
    return (
        f"{facts.max_tokens} tokens take about {needed:.2f} s, {facts.deadline_s:.2f} s are given"
    )


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.0f} MiB"


_RULES: dict[str, Callable[[Target, RouteTable, Facts, World], str | None]] = {
    "offline": _offline,
    "stays": _stays,
    "licence": _licence,
    "protocol": _protocol,
    "memory": _memory,
    "deadline": _deadline,
}
