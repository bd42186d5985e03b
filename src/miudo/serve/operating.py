"""What an operator asks: does it live, is it ready, what does it do, which models are open.

For: `/health`, `/ready`, `/metrics`, and `/models` as llama.cpp's router has it.
Not for: the process's life (`miudo.serve.lifetime`).
Read next: `miudo.serve.figures`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from miudo.meter import resident_bytes
from miudo.serve.describing import Asked
from miudo.serve.fields import Fields
from miudo.serve.figures import Family, exposition
from miudo.serve.house import House
from miudo.serve.receiving import BodyLimits, received
from miudo.serve.replies import json_reply
from miudo.serve.standing import Standing

__all__ = ["operating_routes"]

_MODEL = {"model": "name"}


def operating_routes(house: House, standing: Standing, limits: BodyLimits) -> list[Route]:
    """Returns the routes for whoever runs the server; all but the first two are behind the key."""
    begun = time.monotonic()

    async def health(_: Request) -> Response:
        alive = standing.phase != "failed" and all(h.worker.alive for h in house.models)
        return json_reply({"status": "ok" if alive else "failed"}, 200 if alive else 503)

    async def ready(_: Request) -> Response:
        fine = standing.phase == "ready"
        headers = {} if fine else {"retry-after": "1"}
        return json_reply({"status": standing.phase}, 200 if fine else 503, **headers)

    async def metrics(_: Request) -> Response:
        families = (*_of_server(standing, time.monotonic() - begun), *_of_models(house))
        return Response(exposition(families), media_type="text/plain; version=0.0.4")

    async def shelf(_: Request) -> Response:
        return _shelf(house)

    async def load(request: Request) -> Response:
        await house.load(_parse_model(await received(request, limits)))
        return _shelf(house)

    async def unload(request: Request) -> Response:
        house.unload(_parse_model(await received(request, limits)))
        return _shelf(house)

    return [
        Route("/health", health),
        Route("/ready", ready),
        Route("/metrics", metrics),
        Route("/models", shelf),
        Asked(
            "/models/load", load, parse=lambda fields, _: _parse_model(fields), samples=(_MODEL,)
        ),
        Asked(
            "/models/unload",
            unload,
            parse=lambda fields, _: _parse_model(fields),
            samples=(_MODEL,),
        ),
    ]


def _parse_model(fields: Fields) -> str:
    """Returns the name that a request to open or close a model gives. Raises FieldError."""
    name = fields.text("model")
    fields.end()
    return name


def _shelf(house: House) -> Response:
    rows = [
        {"id": e.name, "object": "model", "status": e.status, "planned_bytes": e.planned_bytes}
        for e in house.shelf
    ]
    return json_reply({"object": "list", "data": rows})


def _of_server(standing: Standing, seconds: float) -> Iterator[Family]:
    open_now = Family("miudo:http_requests_open", "gauge", "Requests without an answer yet.")
    open_now.add(standing.open)
    answers = Family("miudo:http_requests_total", "counter", "Answers by path and status.")
    for (path, status), count in sorted(standing.answers.items()):
        answers.add(count, {"path": path, "status": str(status)})
    uptime = Family("miudo:uptime_seconds", "gauge", "Seconds since the start.")
    uptime.add(round(seconds, 3))
    memory = Family("process_resident_memory_bytes", "gauge", "Resident memory of the process.")
    memory.add(resident_bytes() or 0)
    yield from (open_now, answers, uptime, memory)


_OF_LOAD = (
    ("num_requests_running", "gauge", "Requests that are read or written.", "running"),
    ("num_requests_waiting", "gauge", "Requests that wait for a place.", "waiting"),
    ("prompt_tokens_total", "counter", "Ids of the prompts that were taken on.", "prompt_tokens"),
    ("generation_tokens_total", "counter", "Ids drawn.", "new_tokens"),
    ("prefix_cache_hits_total", "counter", "Ids that were not read anew.", "reused_tokens"),
    ("num_preemptions_total", "counter", "Requests that stepped back.", "preempted"),
    ("engine_steps_total", "counter", "Steps of the engine.", "steps"),
)
_OF_LATENCIES = (
    ("time_to_first_token_seconds", "From the request to its first token.", "first_token"),
    ("inter_token_latency_seconds", "From one token to the next.", "between_tokens"),
    ("e2e_request_latency_seconds", "From the request to its last token.", "whole"),
)


def _of_models(house: House) -> Iterator[Family]:
    """One worker serves a model and its adapters; its figures stand under the model's name."""
    workers = {hosted.worker: hosted.name for hosted in reversed(house.models)}
    loads = [(worker, {"model_name": name}, worker.load()) for worker, name in workers.items()]
    for name, kind, text, field in _OF_LOAD:
        family = Family(f"miudo:{name}", kind, text)
        for _, labels, load in loads:
            family.add(getattr(load, field), labels)
        yield family
    usage = Family("miudo:kv_cache_usage_perc", "gauge", "Share of the cache in use, 0 to 1.")
    energy = Family("miudo:energy_joules_total", "counter", "Energy of steps, by its method.")
    ends = Family("miudo:request_success_total", "counter", "Answers by why they ended.")
    for worker, labels, load in loads:
        usage.add(load.pages_used / load.pages, labels)
        method = "counter" if load.energy_measured else "estimate"
        energy.add(load.energy_j, {**labels, "method": method})
        for reason, count in sorted(worker.latencies.ends.items()):
            ends.add(count, {**labels, "finished_reason": reason})
    yield from (usage, energy, ends)
    for name, text, field in _OF_LATENCIES:
        family = Family(f"miudo:{name}", "histogram", text)
        for worker, labels, _ in loads:
            family.add_histogram(getattr(worker.latencies, field), labels)
        yield family
