"""What an operator has: metrics, deadlines, rates, models that come and go, a description."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from served import CHAT, ENDLESS, ROBOT, TEXT, Server, start_server

from miudo.adapter import Adapter, LowRank
from miudo.config import ModelConfig
from miudo.formats import open_model
from miudo.formats.peft import write_peft
from miudo.hub.resolve import embedded_path
from miudo.records import Record
from miudo.serve.app import route_table
from miudo.serve.figures import Family, Histogram, exposition
from miudo.serve.house import House
from miudo.serve.rates import Rates
from miudo.serve.receiving import BodyLimits
from miudo.serve.standing import Standing

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "data" / "tiny"


def samples(text: str) -> dict[str, Any]:
    """Returns Prometheus's reading of its text form: samples by name."""
    found: dict[str, Any] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample)
    return found


def test_metrics_are_read_by_prometheus_and_count_what_was_done(server: Server) -> None:
    before = {
        n: server.figure(f"miudo:{n}") for n in ("prompt_tokens_total", "generation_tokens_total")
    }
    usage = server.post(TEXT, ROBOT | {"prompt": [9, 8, 7]} | ENDLESS).json["usage"]
    page = server.ask("GET", "/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = samples(page.body.decode())
    labels = {"model_name": "miudo-6m"}
    (drawn,) = found["miudo:generation_tokens_total"]
    assert drawn.labels == labels
    assert drawn.value - before["generation_tokens_total"] == usage["completion_tokens"] == 6
    (read,) = found["miudo:prompt_tokens_total"]
    assert read.value - before["prompt_tokens_total"] == 3
    assert found["miudo:num_requests_running"][0].value == 0
    assert 0 < found["miudo:kv_cache_usage_perc"][0].value < 1
    for name in ("time_to_first_token", "inter_token_latency", "e2e_request_latency"):
        buckets = [s.value for s in found[f"miudo:{name}_seconds_bucket"]]
        assert buckets == sorted(buckets)
        assert buckets[-1] == found[f"miudo:{name}_seconds_count"][0].value > 0
        assert found[f"miudo:{name}_seconds_sum"][0].value > 0
    posts = [s for s in found["miudo:http_requests_total"] if s.labels["path"] == TEXT]
    assert sum(s.value for s in posts if s.labels["status"] == "200") >= 1


def test_labels_may_hold_anything() -> None:
    family = Family("miudo:x_total", "counter", "Anything.")
    name = 'a"b\\c\nd'
    family.add(3, {"name": name})
    times = Family("miudo:t", "histogram", "Seconds.")
    histogram = Histogram((0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 9.0):
        histogram.add(seconds)
    times.add_histogram(histogram, {"name": name})
    found = samples(exposition([family, times]).decode())
    (sample,) = found["miudo:x_total"]
    assert sample.labels == {"name": name}
    assert [s.value for s in found["miudo:t_bucket"]] == [2, 3, 4]
    assert found["miudo:t_sum"][0].value == pytest.approx(9.65)


def test_a_reply_says_what_it_cost_and_how_that_is_known(server: Server) -> None:
    energy = [
        server.post(TEXT, ROBOT | {"max_tokens": n} | ENDLESS).json["timings"]["energy"]
        for n in (1, 100)
    ]
    assert 0 < energy[0]["joules"] < energy[1]["joules"]
    assert energy[0]["estimate"] == energy[0]["method"].startswith("estimate")
    assert "shared by ids taken in" in energy[0]["method"]


def test_every_reply_has_an_id_the_clients_own_if_it_is_one(server: Server) -> None:
    made = server.ask("GET", "/health").headers["x-request-id"]
    assert re.fullmatch(r"req-[0-9a-f]{16}", made)
    assert server.ask("GET", "/nowhere", x_request_id="a.b-1").headers["x-request-id"] == "a.b-1"
    for wrong in ("a" * 65, "a b", "{}", "\xe9"):
        assert server.ask("GET", "/health", x_request_id=wrong).headers["x-request-id"] != wrong


def test_a_deadline_ends_an_answer(server: Server) -> None:
    long = {"prompt": "Once", "max_tokens": 480, "n": 4} | ENDLESS
    begun = time.monotonic()
    late = server.post(TEXT, long, x_request_timeout="0.05")
    assert late.status == 504
    assert late.json["error"]["code"] == "deadline_exceeded"
    stream = server.post(TEXT, long | {"stream": True}, x_request_timeout="0.2")
    assert stream.status in (200, 504)  # by whether the first piece was in time
    assert b"deadline_exceeded" in stream.body
    assert b"[DONE]" not in stream.body
    assert time.monotonic() - begun < 10
    assert server.post(TEXT, ROBOT, x_request_timeout="30").status == 200


@pytest.mark.parametrize("wrong", ["0", "-1", "nan", "inf", "soon", "", "1e999"])
def test_a_deadline_that_is_none_is_refused(server: Server, wrong: str) -> None:
    assert server.post(TEXT, ROBOT, x_request_timeout=wrong).status == 400


def test_a_bucket_fills_with_time_and_each_key_has_one() -> None:
    now = 0.0
    rates = Rates(6, clock=lambda: now)
    assert [rates.take("a") for _ in range(7)] == [None] * 6 + [10]
    assert rates.take("b") is None
    now = 9.9
    assert rates.take("a") == 1
    now = 10.0
    assert rates.take("a") is None
    now = 1e6
    assert [rates.take("a") for _ in range(7)] == [None] * 6 + [10]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a store, an adapter, a rate, and room for the first model and one more."""
    home = tmp_path_factory.mktemp("home")
    for name in ("one", "two"):
        shutil.copytree(TINY, home / "models" / name / "latest")
    config = open_model(embedded_path()).config
    write_peft(home / "loud", loud_adapter(config), config, record=Record(verb="test", name="loud"))
    budget = embedded_path().stat().st_size + 2 * 20_000_000 + 3_000_000
    made = start_server(
        "--on-demand", "--cache-mb", "20", "--memory", f"{budget}", "--keep-alive", "2s",
        "--adapter", f"loud={home / 'loud'}", "--threads", "1", "--log", "none",
        "--rate", "2000", MIUDO_HOME=str(home), MIUDO_API_KEY="k",
    )  # fmt: skip
    yield made
    made.end()


def loud_adapter(config: ModelConfig) -> Adapter:
    rng = np.random.default_rng(0)
    width, d_ff = config.d_model, config.layers[0].d_ff
    down = rng.normal(size=(4, d_ff)).astype(np.float32)
    up = rng.normal(size=(width, 4)).astype(np.float32)
    return Adapter({"layers.0.mlp.down.weight": LowRank(down, up, 1.0)})


def ask(server: Server, method: str, path: str, body: Any = None) -> Any:
    return server.ask(method, path, body, authorization="Bearer k")


def shelf(server: Server) -> dict[str, str]:
    return {row["id"]: row["status"] for row in ask(server, "GET", "/models").json["data"]}


def test_models_open_when_they_are_named_and_close_when_they_idle(tuned: Server) -> None:
    assert shelf(tuned) == {"miudo-6m": "loaded"}
    for name in ("one", "two"):  # there is room for one beside the first
        assert ask(tuned, "POST", TEXT, {"prompt": "a", "model": name}).json["model"] == name
        assert shelf(tuned) == {"miudo-6m": "loaded", name: "loaded"}
    listed = ask(tuned, "GET", "/api/ps").json["models"]
    ends = {row["name"]: datetime.fromisoformat(row["expires_at"]) for row in listed}
    assert ends["miudo-6m"].year == 9999
    assert -5 < (ends["two"] - datetime.now(UTC)).total_seconds() <= 2  # --keep-alive
    deadline = time.monotonic() + 20
    while "two" in shelf(tuned):
        assert time.monotonic() < deadline, "it does not close"
        time.sleep(0.1)
    assert shelf(tuned) == {"miudo-6m": "loaded"}


def test_models_open_and_close_by_hand(tuned: Server) -> None:
    assert ask(tuned, "POST", "/models/load", {"model": "one"}).status == 200
    assert shelf(tuned)["one"] == "loaded"
    assert ask(tuned, "POST", "/models/unload", {"model": "one"}).status == 200
    assert ask(tuned, "POST", "/models/unload", {"model": "one"}).status == 404
    assert "one" not in shelf(tuned)


@pytest.mark.row("H32")
@pytest.mark.parametrize(
    "name",
    ["../../x", "/etc/passwd", str(TINY), "hf://org/repo", "sha256:../", "three", "", "one:", "\0"],
)
def test_only_names_of_the_store_are_opened(tuned: Server, name: str) -> None:
    reply = ask(tuned, "POST", "/models/load", {"model": name})
    assert reply.status == 404
    assert shelf(tuned) == {"miudo-6m": "loaded"}


def test_what_does_not_fit_is_refused_before_it_is_opened() -> None:
    with pytest.raises(AssertionError, match="did not start: 5"):
        start_server("--memory", "10MB", "--log", "none")


def test_an_adapter_is_a_model_of_its_own(tuned: Server) -> None:
    def text(**more: Any) -> Any:
        body = {"prompt": "The little robot", "max_tokens": 12, "temperature": 0, **more}
        return ask(tuned, "POST", TEXT, body).json

    plain, loud = text(), text(model="miudo-6m:loud")
    assert loud["model"] == "miudo-6m:loud"
    assert loud["choices"][0]["text"] != plain["choices"][0]["text"]
    assert text(model="loud")["choices"] == loud["choices"]
    assert text()["choices"] == plain["choices"]
    listed = [row["id"] for row in ask(tuned, "GET", "/v1/models").json["data"]]
    assert listed[:2] == ["miudo-6m", "miudo-6m:loud"]
    echo = {"echo": True, "max_tokens": 0, "logprobs": 1}
    costs = [text(model=m, **echo)["choices"][0]["logprobs"] for m in ("miudo-6m", "loud")]
    assert costs[0]["token_logprobs"] != costs[1]["token_logprobs"]


def test_operating_routes_are_behind_the_key(tuned: Server) -> None:
    for path in ("/metrics", "/models", "/openapi.json"):
        assert tuned.ask("GET", path).status == 401
    for path in ("/models/load", "/models/unload"):
        assert tuned.post(path, {"model": "one"}).status == 401
    assert tuned.ask("GET", "/ready").status == 200


def test_a_rate_is_kept() -> None:
    server = start_server("--rate", "3", "--threads", "1", "--log", "none")
    try:
        replies = [server.ask("GET", "/v1/models") for _ in range(4)]
        assert [reply.status for reply in replies] == [200, 200, 200, 429]
        assert 1 <= int(replies[3].headers["retry-after"]) <= 20
        assert server.ask("GET", "/health").status == 200
    finally:
        server.end()


def body_schema(described: Any, path: str) -> Any:
    content = described["paths"][path]["post"]["requestBody"]["content"]
    return content["application/json"]["schema"]


def test_the_description_is_that_of_the_table(server: Server) -> None:
    described = server.ask("GET", "/openapi.json").json
    house = House({}, free_bytes=lambda: 0)
    table = {
        (re.sub(r":\w+(?=})", "", route.path), method.lower())
        for route in route_table(house, Standing(), BodyLimits())
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert {(path, m) for path, methods in described["paths"].items() for m in methods} == table
    chat = body_schema(described, CHAT)
    assert chat["required"] == ["messages"]
    assert chat["properties"]["n"] == {"type": "integer", "minimum": 1, "maximum": 4}
    message = chat["properties"]["messages"]["items"]["properties"]
    assert "assistant" in message["role"]["enum"]
    assert body_schema(described, "/models/load")["required"] == ["model"]
    for path, called in ((CHAT, "function"), ("/api/chat", "function"), ("/v1/messages", "name")):
        tool = body_schema(described, path)["properties"]["tools"]["items"]["properties"]
        assert called in tool, path
    assert "format" in body_schema(described, "/api/generate")["properties"]


@pytest.mark.parametrize("path", [CHAT, TEXT, "/api/chat", "/v1/messages", "/v1/responses"])
def test_every_sample_is_taken(server: Server, path: str) -> None:
    described = server.ask("GET", "/openapi.json").json
    content = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    for sample in content["examples"].values():
        short = {} if path != CHAT else {"max_tokens": 4}
        asked = {"model": "miudo-6m"} | sample["value"] | short
        assert server.post(path, asked).status == 200, sample


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_every_field_that_is_described_is_taken_and_no_other(server: Server, path: str) -> None:
    described = server.ask("GET", "/openapi.json").json
    base = ROBOT if path == TEXT else {"messages": [{"role": "user", "content": "a"}]}
    base = base | {"max_tokens": 1}
    for name, schema in body_schema(described, path)["properties"].items():
        reply = server.post(path, base | {name: {"no": "such value"}})
        assert reply.status != 500
        if reply.status == 400:  # known: its value is wrong, not its name
            error = reply.json["error"]  # of a table a field within may be unknown
            assert error["param"] != name or "is no field" not in error["message"], name
        assert isinstance(schema, dict)
    assert "is no field" in server.post(path, base | {"other": 1}).json["error"]["message"]
