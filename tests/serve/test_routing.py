"""The model auto over sockets: another server as the dear target, and every way it may fail."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from served import start_server

CHAT, TEXT, EXPLAIN = "/v1/chat/completions", "/v1/completions", "/route/explain"
HARD = "Explain why 2 + 2 = 4, compare it with 3 + 3 and prove it if you can"
HELLO: dict[str, Any] = {
    "model": "auto",
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 6,
    "temperature": 0,
}
LOCAL = '[[targets]]\nname = "small"\nmodel = "miudo-6m"\n'


def said(text: str) -> dict[str, Any]:
    return HELLO | {"messages": [{"role": "user", "content": text}]}


def headers(reply: Any) -> dict[str, str]:
    return {k.lower(): v for k, v in reply.headers.items() if k.lower().startswith("x-miudo")}


@contextmanager
def routed(folder: Path, table: str) -> Iterator[Any]:
    path = folder / "table.toml"
    path.write_text(table)
    made = start_server("--threads", "1", "--route", str(path))
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()


@pytest.fixture(scope="module")
def by_words(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Keyword rules choose between a model of this server and another server's."""
    far = f'[[targets]]\nname = "far"\nmodel = "miudo-6m"\nurl = "{server.url}/v1"\n'
    table = f'complexity = "keywords"\n{LOCAL}skip_above = 0.3\n{far}leaves = true\n'
    with routed(tmp_path_factory.mktemp("words"), table) as made:
        yield made


@pytest.fixture(scope="module")
def doubtful(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The small model's answer is never sure enough."""
    far = f'[[targets]]\nname = "far"\nmodel = "miudo-6m"\nurl = "{server.url}/v1"\n'
    table = f'confidence = "margin"\n{LOCAL}accept_above = 1.0\n{far}'
    with routed(tmp_path_factory.mktemp("doubt"), table) as made:
        yield made


@pytest.fixture(scope="module")
def sure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Every answer is sure enough, and nobody listens where the other server should be."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    far = f'[[targets]]\nname = "gone"\nmodel = "m"\nurl = "http://127.0.0.1:{port}/v1"\n'
    limits = "accept_above = 0.0\nskip_above = 0.3\n"
    twin = LOCAL.replace("small", "twin")
    table = f'complexity = "keywords"\n{LOCAL}{limits}{twin}{limits}{far}'
    with routed(tmp_path_factory.mktemp("sure"), table) as made:
        yield made


def test_easy_prompts_stay_and_hard_ones_go(by_words: Any) -> None:
    easy, hard = by_words.post(CHAT, HELLO), by_words.post(CHAT, said(HARD))
    assert headers(easy)["x-miudo-model"] == easy.json["model"] == "small"
    assert headers(easy)["x-miudo-route"] == "small=answers"
    assert "x-miudo-refused" not in headers(easy)
    assert headers(hard)["x-miudo-model"] == hard.json["model"] == "far"
    assert headers(hard)["x-miudo-route"] == "far=answers"
    assert headers(hard)["x-miudo-refused"] == "small=complexity"
    told = headers(hard)["x-miudo-complexity"]
    assert float(told.split()[0]) > 0.3
    assert told.endswith("(keywords)")


def test_who_answers_changes_no_word_of_the_answer(by_words: Any, server: Any) -> None:
    for text in ("Hello", HARD):
        plain = {k: v for k, v in said(text).items() if k != "model"}
        direct = server.post(CHAT, plain).json["choices"][0]
        chosen = by_words.post(CHAT, said(text)).json["choices"][0]
        assert chosen["message"] == direct["message"]
        assert chosen["finish_reason"] == direct["finish_reason"]


@pytest.mark.parametrize(
    ("which", "text"),
    [("by_words", "Hello"), ("by_words", HARD), ("doubtful", "Hello"), ("sure", "Hello")],
)
def test_a_stream_says_what_the_whole_reply_says(
    which: str, text: str, request: pytest.FixtureRequest
) -> None:
    asked = request.getfixturevalue(which)
    whole = asked.post(CHAT, said(text))
    options = {"stream": True, "stream_options": {"include_usage": True}}
    stream = asked.post(CHAT, said(text) | options)
    parts = [e["choices"][0] for e in stream.events if e["choices"]]
    (choice,) = whole.json["choices"]
    assert parts[0]["delta"]["role"] == "assistant"
    content = "".join(p["delta"].get("content", "") for p in parts)
    assert content == choice["message"]["content"]
    assert parts[-1]["finish_reason"] == choice["finish_reason"]
    assert stream.events[-1]["usage"] == whole.json["usage"]
    assert headers(stream)["x-miudo-model"] == headers(whole)["x-miudo-model"]


def test_an_unsure_answer_goes_on_and_the_client_sees_none_of_it(doubtful: Any) -> None:
    reply = doubtful.post(CHAT, HELLO)
    assert headers(reply)["x-miudo-model"] == "far"
    steps = headers(reply)["x-miudo-route"].split("; ")
    assert steps[0].startswith("small=unsure(")
    assert steps[1] == "far=answers"
    assert len(doubtful.post(CHAT, HELLO | {"stream": True}).events) > 2


def test_a_sure_answer_stays_and_carries_no_log_probabilities_that_nobody_asked_for(
    sure: Any,
) -> None:
    reply = sure.post(CHAT, HELLO)
    assert headers(reply)["x-miudo-route"].startswith("small=answers(0.")
    assert reply.json["choices"][0]["logprobs"] is None
    asked = sure.post(CHAT, HELLO | {"logprobs": True, "top_logprobs": 1}).json
    content = asked["choices"][0]["logprobs"]["content"]
    assert all(len(token["top_logprobs"]) == 1 for token in content)
    text = {"model": "auto", "prompt": "The robot", "max_tokens": 4, "temperature": 0}
    reply = sure.post(TEXT, text)
    assert reply.json["choices"][0]["logprobs"] is None
    assert "(0." in headers(reply)["x-miudo-route"]
    stream = sure.post(TEXT, text | {"stream": True}).events
    assert "".join(e["choices"][0]["text"] for e in stream) == reply.json["choices"][0]["text"]


def test_a_call_of_a_function_is_streamed_as_it_is_replied(sure: Any) -> None:
    tool = {"type": "function", "function": {"name": "light", "parameters": {"type": "object"}}}
    asked = HELLO | {"tools": [tool], "tool_choice": "required", "max_tokens": 60}
    (choice,) = sure.post(CHAT, asked).json["choices"]
    stream = sure.post(CHAT, asked | {"stream": True}).events
    parts = [e["choices"][0]["delta"] for e in stream if e["choices"]]
    calls = [call for part in parts for call in part.get("tool_calls", ())]
    wanted = choice["message"]["tool_calls"]
    assert [c["function"] for c in calls] == [c["function"] for c in wanted]
    assert [c["index"] for c in calls] == list(range(len(wanted)))


def test_completions_go_where_completions_are_spoken(by_words: Any) -> None:
    reply = by_words.post(TEXT, {"model": "auto", "prompt": HARD, "max_tokens": 3})
    assert headers(reply)["x-miudo-model"] == "small"
    assert headers(reply)["x-miudo-refused"] == "far=protocol"
    ids = by_words.post(TEXT, {"model": "auto", "prompt": [5, 6, 7], "max_tokens": 3})
    assert headers(ids)["x-miudo-model"] == "small"
    assert "x-miudo-complexity" not in headers(ids)


def test_data_that_stays_stays(by_words: Any, server: Any) -> None:
    for demand in ("stays", "offline"):
        reply = by_words.post(CHAT, said(HARD) | {"route": {demand: True}})
        assert headers(reply)["x-miudo-model"] == "small"
        assert f"far={demand}" in headers(reply)["x-miudo-refused"]


def test_other_models_are_answered_as_before(by_words: Any) -> None:
    reply = by_words.post(CHAT, HELLO | {"model": "small"})
    assert reply.status == 200
    assert headers(reply) == {}
    assert by_words.post(CHAT, HELLO | {"model": "nobody"}).status == 404
    names = [entry["id"] for entry in by_words.ask("GET", "/v1/models").json["data"]]
    assert names == ["small", "auto"]
    assert EXPLAIN in by_words.ask("GET", "/openapi.json").json["paths"]


def test_without_a_table_there_is_no_auto(server: Any) -> None:
    assert server.post(CHAT, HELLO).status == 404
    assert server.post(EXPLAIN, HELLO).status == 404


def test_explaining_asks_nobody_unless_confidence_decides(by_words: Any, doubtful: Any) -> None:
    told = by_words.post(EXPLAIN, said(HARD)).json
    assert told["model"] == "far"
    assert told["order"] == ["far"]
    (no,) = told["refused"]
    assert (no["target"], no["rule"]) == ("small", "complexity")
    names = [name for name, _ in told["complexity"]["signals"]]
    assert {"reasons", "compares", "numbers"} <= set(names)
    assert told == by_words.post(EXPLAIN, said(HARD)).json
    unsure = doubtful.post(EXPLAIN, HELLO).json
    assert unsure["model"] == "far"
    first, second = unsure["steps"]
    assert first["outcome"] == "unsure"
    assert 0.0 <= first["confidence"] < first["accept_above"] == 1.0
    assert second == {
        "target": "far", "outcome": "answers", "confidence": None, "accept_above": None
    }  # fmt: skip


def test_explaining_a_request_that_nobody_may_answer(by_words: Any) -> None:
    demands = {"route": {"deadline_s": 0.0}}
    told = by_words.post(EXPLAIN, HELLO | demands).json
    assert told["model"] is None
    assert {no["target"] for no in told["refused"]} == {"small", "far"}
    reply = by_words.post(CHAT, HELLO | demands)
    assert reply.status == 400
    for word in ("small", "far", "deadline"):
        assert word in reply.json["error"]["message"]


@pytest.mark.row("H16")
@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"route": []}, "route"),
        ({"route": {"odd": 1}}, "route.odd"),
        ({"route": {"stays": "yes"}}, "route.stays"),
        ({"route": {"use": 5}}, "use"),
        ({"route": {"deadline_s": -1}}, "route.deadline_s"),
        ({"route": {"deadline_s": 1}, "max_tokens": None}, "route.deadline_s"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {}}, "stream_options"),
        ({"temperature": 9}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"no_such_field": 1}, "no_such_field"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ],
)
@pytest.mark.parametrize("which", ["by_words", "sure", "doubtful"])
def test_wrong_fields_are_refused_by_name_whoever_would_answer(
    which: str, wrong: dict[str, Any], param: str, request: pytest.FixtureRequest
) -> None:
    reply = request.getfixturevalue(which).post(CHAT, HELLO | wrong)
    assert reply.status == 400, reply.body
    assert reply.json["error"]["param"].endswith(param)


@pytest.mark.row("H16")
@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": 9}, {"top_p": 2}, {"seed": "x"}, {"max_tokens": 0},
        {"messages": [{"role": "user", "content": HARD, "odd": 1}]},
        {"messages": [{"role": "user", "content": HARD}, {"role": "king", "content": "x"}]},
    ],
)  # fmt: skip
def test_wrong_fields_are_refused_before_they_leave(by_words: Any, wrong: dict[str, Any]) -> None:
    reply = by_words.post(CHAT, said(HARD) | wrong)
    assert reply.status == 400, reply.body
    assert reply.json["error"]["param"]


def test_a_server_that_is_gone_is_a_502_where_nobody_else_may_answer(sure: Any) -> None:
    for more in ({}, {"stream": True}):
        reply = sure.post(CHAT, said(HARD) | more)
        assert reply.status == 502
        assert "gone" in reply.json["error"]["message"]


def test_fields_that_another_server_does_not_take_keep_a_request_here(by_words: Any) -> None:
    reply = by_words.post(CHAT, said(HARD) | {"top_k": 5})
    assert headers(reply)["x-miudo-model"] == "small"
    assert headers(reply)["x-miudo-refused"] == "far=protocol"


class _Refuses(BaseHTTPRequestHandler):
    seen: ClassVar[list[tuple[dict[str, str], dict[str, Any]]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        _Refuses.seen.append(({k.lower(): v for k, v in self.headers.items()}, json.loads(body)))
        self.send_response(401)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def refusing() -> Iterator[str]:
    made = HTTPServer(("127.0.0.1", 0), _Refuses)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{made.server_port}/v1"
    made.shutdown()
    made.server_close()


@pytest.mark.parametrize(("on_failure", "status"), [("next", 200), ("error", 502)])
def test_a_target_that_fails_is_passed_over_or_an_error_as_the_table_says(
    refusing: str, tmp_path: Path, on_failure: str, status: int
) -> None:
    far = f'[[targets]]\nname = "far"\nmodel = "big"\nurl = "{refusing}"\n'
    with routed(tmp_path, f'on_failure = "{on_failure}"\n{far}{LOCAL}') as made:
        reply = made.post(CHAT, HELLO)
        assert reply.status == status
        if status == 200:
            assert headers(reply)["x-miudo-route"] == "far=failed; small=answers"
    told, body = _Refuses.seen[-1]
    assert body["model"] == "big"
    assert "route" not in body
    assert "authorization" not in told


def test_an_unsure_answer_is_better_than_none(refusing: str, tmp_path: Path) -> None:
    far = f'[[targets]]\nname = "far"\nmodel = "big"\nurl = "{refusing}"\n'
    with routed(tmp_path, f"{LOCAL}accept_above = 1.0\n{far}") as made:
        reply = made.post(CHAT, HELLO)
        assert reply.status == 200
        steps = headers(reply)["x-miudo-route"].split("; ")
        assert [step.partition("(")[0] for step in steps] == [
            "small=unsure", "far=failed", "small=answers"
        ]  # fmt: skip
        assert headers(reply)["x-miudo-model"] == "small"
