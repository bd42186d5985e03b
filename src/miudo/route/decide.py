"""From constraints and complexity to an order of targets, every other one with its reason.

For: the whole decision as a pure function.
Not for: asking the targets (`miudo.serve.routing`).
Read next: `miudo.route.constraints`, then `miudo.route.complexity`.
"""

from __future__ import annotations

from miudo.errors import RequestError
from miudo.route.constraints import refusal
from miudo.route.targets import Complexity, Decision, Facts, Refusal, RouteTable, World

__all__ = ["decide", "no_target"]


def decide(
    table: RouteTable, facts: Facts, world: World, complexity: Complexity | None
) -> Decision:
    """Returns who is asked: the permitted targets in the table's order, too small ones left out.

    `complexity` None: nothing is known of it, and nobody is too small. The last permitted target
    is never too small: somebody answers, if constraints let anybody.
    """
    refused = [refusal(target, table, facts, world) for target in table.targets]
    permitted = [t for t, no in zip(table.targets, refused, strict=True) if no is None]
    no = [each for each in refused if each is not None]
    order = []
    for target in permitted:
        limit, last = target.skip_above, target is permitted[-1]
        if complexity is not None and limit is not None and complexity.value > limit and not last:
            reason = f"complexity {complexity.value:.3f} is above {limit:.3f}"
            no.append(Refusal(target.name, "complexity", reason))
        else:
            order.append(target.name)
    return Decision(tuple(order), tuple(no), complexity)


def no_target(decision: Decision) -> RequestError:
    """Returns the error of a request that no target may answer; it names every rule."""
    why = "; ".join(f"{no.target}, {no.rule}: {no.reason}" for no in decision.refused)
    return RequestError(
        f"no target may answer this ({why})",
        where="route",
        remedy="Ask for less, or add a target that may",
    )
