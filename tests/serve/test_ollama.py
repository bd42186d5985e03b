"""Ollama's protocol: JSON lines, options, what is served, and every wrong field by name."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import pytest

from miudo.hub.resolve import embedded_path

TEXT, CHAT = "/api/generate", "/api/chat"
MODEL = "miudo-6m"
GREEDY = {"temperature": 0, "num_predict": 6}
ROBOT: dict[str, Any] = {"model": MODEL, "prompt": "The little robot", "options": GREEDY}
HELLO: dict[str, Any] = {
    "model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "options": GREEDY,
}  # fmt: skip
WHOLE = {"stream": False}
DURATIONS = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")


def lines(body: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in body.decode().removesuffix("\n").split("\n")]


def test_a_chat_is_answered_as_openais_is(server: Any) -> None:
    reply = server.post(CHAT, HELLO | WHOLE).json
    asked = {"messages": HELLO["messages"], "temperature": 0, "top_p": 0.9, "max_tokens": 6}
    theirs = server.post("/v1/chat/completions", asked).json
    assert reply["message"] == {
        "role": "assistant", "content": theirs["choices"][0]["message"]["content"],
    }  # fmt: skip
    assert reply["done"] is True
    assert reply["done_reason"] == theirs["choices"][0]["finish_reason"]
    assert reply["prompt_eval_count"] == theirs["usage"]["prompt_tokens"]
    assert reply["eval_count"] == theirs["usage"]["completion_tokens"]
    assert all(type(reply[name]) is int and reply[name] >= 0 for name in DURATIONS)
    assert reply["total_duration"] >= reply["prompt_eval_duration"] + reply["eval_duration"] > 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", reply["created_at"])


def test_streams_of_lines_are_what_comes_unasked(server: Any) -> None:
    for path, asked, said in (
        (TEXT, ROBOT, lambda line: line["response"]),
        (CHAT, HELLO, lambda line: line["message"]["content"]),
    ):
        whole = server.post(path, asked | WHOLE).json
        streamed = server.post(path, asked)
        assert streamed.headers["content-type"] == "application/x-ndjson"
        told = lines(streamed.body)
        assert len(told) > 2
        assert "".join(map(said, told)) == said(whole)
        assert [line["done"] for line in told] == [False] * (len(told) - 1) + [True]
        assert told[-1]["eval_count"] == whole["eval_count"]


def test_raw_text_is_gone_on_from_and_a_prompt_is_a_message(server: Any) -> None:
    raw = server.post(TEXT, ROBOT | WHOLE | {"raw": True}).json
    asked = {"prompt": ROBOT["prompt"], "temperature": 0, "max_tokens": 6}
    assert raw["response"] == server.post("/v1/completions", asked).json["choices"][0]["text"]
    through = server.post(TEXT, ROBOT | WHOLE | {"system": "Be kind."}).json
    turns = [
        {"role": "system", "content": "Be kind."}, {"role": "user", "content": ROBOT["prompt"]},
    ]  # fmt: skip
    chat = server.post(CHAT, HELLO | WHOLE | {"messages": turns}).json
    assert through["response"] == chat["message"]["content"]
    assert through["prompt_eval_count"] == chat["prompt_eval_count"] > raw["prompt_eval_count"]


def test_options_shape_the_answer(server: Any) -> None:
    free = {"temperature": 1.0, "num_predict": 12, "top_k": 0, "top_p": 1.0}
    texts = [
        server.post(TEXT, ROBOT | WHOLE | {"options": free | {"seed": seed}}).json["response"]
        for seed in (7, 7, 8)
    ]
    assert texts[0] == texts[1] != texts[2]
    greedy = server.post(TEXT, ROBOT | WHOLE).json["response"]
    one = server.post(TEXT, ROBOT | WHOLE | {"options": GREEDY | {"temperature": 2, "top_k": 1}})
    assert one.json["response"] == greedy
    stop = greedy[len(greedy) // 2 :][:3]
    cut = server.post(TEXT, ROBOT | WHOLE | {"options": GREEDY | {"stop": stop}}).json
    assert cut["response"] == greedy[: greedy.index(stop)]
    long = server.post(TEXT, ROBOT | WHOLE | {"options": {"temperature": 0}}).json
    assert long["done_reason"] == "stop"  # to the end of the answer


def test_a_smaller_context_is_held_and_a_larger_one_is_the_models(server: Any) -> None:
    used = server.post(TEXT, ROBOT | WHOLE | {"raw": True}).json["prompt_eval_count"]
    asked = ROBOT | WHOLE | {"raw": True}
    unending = {"temperature": 0, "num_ctx": used + 3}
    assert server.post(TEXT, asked | {"options": unending}).json["eval_count"] <= 3
    for num_ctx, most in ((used, -1), (used + 3, 4)):
        options = {"num_ctx": num_ctx, "num_predict": most}
        reply = server.post(TEXT, asked | {"options": options})
        assert reply.status == 400
        assert "num_ctx" in reply.json["error"]
        assert str(used) in reply.json["error"]
    assert server.post(TEXT, asked | {"options": GREEDY | {"num_ctx": 1 << 20}}).status == 200


def test_nothing_to_say_opens_a_model(server: Any) -> None:
    for path, asked in ((TEXT, {"model": MODEL}), (CHAT, {"model": MODEL, "messages": []})):
        (line,) = lines(server.post(path, asked).body)
        assert (line["done"], line["done_reason"]) == (True, "load")
        closed = server.post(path, asked | {"keep_alive": 0})
        assert closed.status == 400  # it stays open, and does not say otherwise
        assert "keep_alive" in closed.json["error"]


@pytest.mark.parametrize("value", [300, -1, 0, "5m", "1h30m", "-1", "0s", "1.5s"])
def test_durations_are_taken(server: Any, value: Any) -> None:
    assert server.post(TEXT, ROBOT | {"keep_alive": value}).status == 200


def test_what_is_served_is_told(server: Any) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", server.ask("GET", "/api/version").json["version"])
    (tag,) = server.ask("GET", "/api/tags").json["models"]
    ours = server.ask("GET", "/v1/models").json["data"][0]
    assert tag["name"] == tag["model"] == ours["id"]
    assert tag["digest"] == hashlib.sha256(embedded_path().read_bytes()).hexdigest()
    assert 0 < tag["size"] <= embedded_path().stat().st_size
    (running,) = server.ask("GET", "/api/ps").json["models"]
    assert running["context_length"] == ours["context_length"]
    assert running["size"] >= tag["size"] * 0.9
    shown = server.post("/api/show", {"model": MODEL}).json
    info = shown["model_info"]
    kind = info["general.architecture"]
    assert info["general.parameter_count"] == ours["parameters"]
    assert info[f"{kind}.context_length"] == ours["context_length"]
    assert shown["details"] == tag["details"] == running["details"]
    assert "message" in shown["template"]
    assert server.post("/api/show", {"model": MODEL, "verbose": True}).status == 400


LOOK = {"type": "function", "function": {"name": "look"}}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"options": {"temperature": -1}}, "options.temperature"),
    ({"options": {"temperature": True}}, "options.temperature"),
    ({"options": {"num_predict": 0}}, "options.num_predict"),
    ({"options": {"num_predict": -3}}, "options.num_predict"),
    ({"options": {"num_ctx": 0}}, "options.num_ctx"),
    ({"options": {"num_predict": 10**6}}, "positions"),
    ({"options": {"top_k": -1}}, "options.top_k"),
    ({"options": {"top_p": 2}}, "options.top_p"),
    ({"options": {"min_p": -1}}, "options.min_p"),
    ({"options": {"repeat_penalty": 0}}, "options.repeat_penalty"),
    ({"options": {"presence_penalty": 9}}, "options.presence_penalty"),
    ({"options": {"seed": "x"}}, "options.seed"),
    ({"options": {"stop": [""]}}, "options.stop"),
    ({"options": {"stop": ["a"] * 17}}, "options.stop"),
    ({"options": {"mirostat": 2}}, "options.mirostat"),
    ({"options": {"repeat_last_n": 64}}, "options.repeat_last_n"),
    ({"options": {"num_gpu": 1}}, "options.num_gpu"),
    ({"options": {"num_thread": 8}}, "options.num_thread"),
    ({"options": {"no_such": 1}}, "options.no_such"),
    ({"options": [1]}, "options"),
    ({"stream": "yes"}, "stream"),
    ({"format": "xml"}, "format"),
    ({"format": ["json"]}, "format"),
    ({"format": {"not": {}}}, "format.not"),
    ({"format": {"properties": {"a": {}}, "required": 5}}, "format"),
    ({"format": "json", "options": {"stop": ["}"]}}, "options.stop"),
    ({"think": True}, "think"),
    ({"logprobs": True}, "logprobs"),
    ({"keep_alive": "soon"}, "keep_alive"),
    ({"keep_alive": True}, "keep_alive"),
    ({"keep_alive": "9" * 500 + "s"}, "keep_alive"),
    ({"model": None}, "model"),
    ({"model": 5}, "model"),
    ({"no_such_field": 1}, "no_such_field"),
]
TEXT_ONLY: list[tuple[dict[str, Any], str]] = [
    ({"prompt": 5}, "prompt"),
    ({"suffix": "x"}, "suffix"),
    ({"images": ["aGk="]}, "images"),
    ({"template": "{{ .Prompt }}"}, "template"),
    ({"context": [1, 2]}, "context"),
    ({"raw": 1}, "raw"),
    ({"raw": True, "system": "x"}, "system"),
]
CHAT_ONLY: list[tuple[dict[str, Any], str]] = [
    ({"messages": "x"}, "messages"),
    ({"messages": ["x"]}, "messages[0]"),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, "messages[0].images"),
    ({"messages": [{"role": "user", "content": "x", "odd": 1}]}, "messages[0].odd"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "messages[0]"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
    ({"tools": [LOOK], "format": "json"}, "format"),
    ({"tools": [LOOK], "tool_choice": "required"}, "tool_choice"),
    ({"messages": [{"role": "tool", "content": "x", "tool_name": "f"}]}, "messages[0].tool_name"),
    ({"messages": [{"role": "user", "content": "x", "tool_name": "f"}]}, "messages[0].tool_name"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}]},
        "messages[0].tool_calls[0].function.arguments",
    ),
]


@pytest.mark.row("H10", "H12", "H13", "H16", "H33", "H40")
@pytest.mark.parametrize(
    ("path", "wrong", "name"),
    [(TEXT, *row) for row in WRONG + TEXT_ONLY] + [(CHAT, *row) for row in WRONG + CHAT_ONLY],
)
def test_wrong_fields_are_refused_by_name(
    server: Any, path: str, wrong: dict[str, Any], name: str
) -> None:
    reply = server.post(path, (ROBOT if path == TEXT else HELLO) | wrong)
    assert reply.status == 400
    assert list(reply.json) == ["error"]
    assert name in reply.json["error"]


@pytest.mark.row("H6", "H8", "H32", "H40")
def test_every_refusal_has_this_protocols_shape(server: Any, locked: Any) -> None:
    unlike = [
        (server.post(TEXT, ROBOT | {"model": "../../x"}), 404),
        (server.post(CHAT, HELLO | {"model": "nobody:latest"}), 404),
        (server.ask("GET", TEXT), 405),
        (server.post("/api/tags", {}), 405),
        (server.post("/api/pull", {"model": "x"}), 404),
        (server.ask("DELETE", "/api/delete"), 404),
        (server.post(TEXT, b"{"), 400),
        (server.post(TEXT, ROBOT, content_type="text/plain"), 415),
        (server.post(TEXT, b" " * ((8 << 20) + 1)), 413),
        (server.ask("GET", "/api/tags", origin="http://evil.example"), 403),
        (server.ask("GET", "/api/tags", host="evil.example"), 421),
        (locked.ask("GET", "/api/version"), 401),
        (locked.post(TEXT, ROBOT, authorization="Bearer wrong"), 401),
    ]
    for reply, status in unlike:
        assert reply.status == status
        assert list(reply.json) == ["error"]
        assert isinstance(reply.json["error"], str)
        assert reply.json["error"]
