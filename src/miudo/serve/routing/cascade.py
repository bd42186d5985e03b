"""Targets in their order, until one answers and is sure enough; every step is told.

For: `auto`: the answer, its headers, and the same without an answer for `/route/explain`.
Not for: who is in the order (`miudo.route.decide`).
Read next: `miudo.serve.routing.near`, `miudo.serve.routing.far`.

A target whose answer must be sure is waited for whole: a client sees no word of an answer that is
not taken.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from miudo.errors import MiudoError
from miudo.route.constraints import seconds_needed
from miudo.route.decide import no_target
from miudo.route.targets import Decision
from miudo.serve.errand import current_errand
from miudo.serve.fields import FieldError
from miudo.serve.replies import events, json_reply, unless_gone
from miudo.serve.routing.asked import Asked
from miudo.serve.routing.far import Distant, far_reply
from miudo.serve.routing.near import Endpoint, passed_to, whole_answer
from miudo.serve.routing.router import Router
from miudo.serve.routing.streams import far_stream, replayed

__all__ = ["Cascade"]


@dataclass(frozen=True, slots=True)
class _Step:
    """What became of one target: "answers", "unsure", "failed" or "late"."""

    target: str
    outcome: str
    confidence: float | None = None

    def __str__(self) -> str:
        sure = "" if self.confidence is None else f"({self.confidence:.4f})"
        return f"{self.target}={self.outcome}{sure}"


@dataclass
class Cascade:
    """One request on its way; `endpoint` is the route of this server that answers its path."""

    router: Router
    endpoint: Endpoint
    request: Request
    asked: Asked
    steps: list[_Step] = field(default_factory=list)

    async def answered(self) -> Response:
        """Returns the reply of the first target that is sure, with headers that say who and why.

        Raises RequestError where no target may answer, and what the last target raised.
        """
        decision, began = self.router.decide(self.asked.facts), time.monotonic()
        if not decision.order:
            raise no_target(decision)
        kept: tuple[str, Response | dict[str, Any]] | None = None
        for i, name in enumerate(decision.order):
            last = i == len(decision.order) - 1
            if kept is not None and self._too_late(name, time.monotonic() - began):
                self.steps.append(_Step(name, "late"))
                continue
            try:
                reply, sure = await self._ask(name, self._threshold(name, last=last))
            except (MiudoError, ExceptionGroup) as error:
                told = _first(error)
                if not self._goes_on(told, last=last and kept is None):
                    raise self._outward(name, told) from error
                self.steps.append(_Step(name, "failed"))
                continue
            if sure:
                return self._told(reply, decision, name)
            kept = (name, reply)
        if kept is None:  # the last one answers or raises; this is for the reader of types
            raise no_target(decision)
        self.steps.append(_Step(kept[0], "answers"))
        return self._told(kept[1], decision, kept[0])

    async def explained(self) -> dict[str, Any]:
        """Returns the decision; a target is asked only where its confidence decides."""
        decision = self.router.decide(self.asked.facts)
        who = None
        for i, name in enumerate(decision.order):
            threshold = self._threshold(name, last=i == len(decision.order) - 1)
            if threshold is None:
                self.steps.append(_Step(name, "answers"))
            else:
                await self._ask(name, threshold)
            if self.steps[-1].outcome == "answers":
                who = name
                break
        steps = [
            {"target": s.target, "outcome": s.outcome, "confidence": s.confidence,
             "accept_above": self.router.target(s.target).accept_above}
            for s in self.steps
        ]  # fmt: skip
        return {"schema": 1, "model": who, "steps": steps, **decision.to_json()}

    async def _ask(
        self, name: str, threshold: float | None
    ) -> tuple[Response | dict[str, Any], bool]:
        """Returns a reply, and whether it is taken."""
        if self.router.target(name).remote:
            reply = await self._ask_far(name)
        elif self.asked.stream and threshold is None:
            body = self.asked.for_target(name, stream=True)
            reply = await passed_to(self.endpoint, self.request, body)
        else:
            measure = None if threshold is None else self.router.table.confidence
            whole, sure = await whole_answer(self.endpoint, self.request, self.asked, name, measure)
            self._measure(name, whole)
            if threshold is not None and sure is not None:
                taken = sure >= threshold
                self.steps.append(_Step(name, "answers" if taken else "unsure", sure))
                return whole, taken
            reply = whole
        self.steps.append(_Step(name, "answers"))
        return reply, True

    async def _ask_far(self, name: str) -> Response | dict[str, Any]:
        def connect(**drawing: Any) -> Any:
            return self.router.generator(name, **drawing)

        current_errand().model = name
        distant, began = Distant(connect, self.asked), time.monotonic()
        if self.asked.stream:
            rest = distant.events()
            first = await unless_gone(self.request, anext(rest))
            return events(far_stream(self.asked, name, first, rest))
        reply = await unless_gone(self.request, far_reply(distant, name))
        made = reply.get("usage", {}).get("completion_tokens", 0)
        if made > 1:
            self.router.measured(name, made / max(time.monotonic() - began, 1e-6))
        return reply

    def _measure(self, name: str, reply: Mapping[str, Any]) -> None:
        timings = reply.get("timings", {})
        if timings.get("predicted_n", 0) > 1:
            whole_s = (timings["prompt_ms"] + timings["predicted_ms"]) / 1e3
            self.router.measured(name, timings["predicted_n"] / max(whole_s, 1e-6))

    def _threshold(self, name: str, *, last: bool) -> float | None:
        """The last one's answer is final, and so is one whose confidence would be the prompt's."""
        if last or self.asked.body.get("echo"):
            return None
        return self.router.target(name).accept_above

    def _too_late(self, name: str, spent_s: float) -> bool:
        deadline_s = self.asked.facts.deadline_s
        needed = seconds_needed(self.router.target(name), self.asked.facts, self.router.world())
        return deadline_s is not None and needed is not None and spent_s + needed > deadline_s

    def _goes_on(self, error: MiudoError, *, last: bool) -> bool:
        """A field that the client wrote wrong is wrong for every target."""
        clients = isinstance(error, FieldError) and error.param is not None
        return self.router.table.on_failure == "next" and not last and not clients

    def _outward(self, name: str, error: MiudoError) -> Exception:
        """What another server did is no fault of the client's, whatever its kind."""
        clients = isinstance(error, FieldError)
        if self.router.target(name).remote and not clients:
            return HTTPException(502, f"{name} did not answer ({error.what})")
        return error

    def _told(self, reply: Response | dict[str, Any], decision: Decision, name: str) -> Response:
        if isinstance(reply, Response):
            response = reply
        elif self.asked.stream:
            response = events(replayed(self.asked, reply))
        else:
            response = json_reply(reply)
        headers = {"x-miudo-model": name, "x-miudo-route": "; ".join(map(str, self.steps))}
        if decision.refused:
            headers["x-miudo-refused"] = "; ".join(f"{n.target}={n.rule}" for n in decision.refused)
        if decision.complexity is not None:
            told = decision.complexity
            headers["x-miudo-complexity"] = f"{told.value:.4f} ({told.method})"
        return _WithHeaders(response, headers)


class _WithHeaders(Response):
    """Another reply, with more headers, however it sends itself."""

    def __init__(self, inner: Response, headers: Mapping[str, str]) -> None:
        super().__init__(status_code=inner.status_code)
        self._inner = inner
        self._more = [(name.encode(), value.encode("ascii")) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the other reply."""

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *self._more]}
            await send(message)

        await self._inner(scope, receive, told)


def _first(error: MiudoError | ExceptionGroup) -> MiudoError:
    """Of answers made beside each other the first that failed speaks for all."""
    found: Exception = error
    while isinstance(found, ExceptionGroup):
        found = found.exceptions[0]
    if isinstance(found, MiudoError):
        return found
    raise error
