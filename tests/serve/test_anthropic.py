"""Anthropic's protocol: answers, named events, counts, and every wrong field by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

PATH, COUNT = "/v1/messages", "/v1/messages/count_tokens"
HELLO: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 6, "temperature": 0,
}  # fmt: skip


def events(body: bytes) -> list[dict[str, Any]]:
    """The events of a stream; each must be named as its type."""
    found = []
    for block in body.decode().removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def test_a_message_is_answered_as_a_chat_is(server: Any) -> None:
    reply = server.post(PATH, HELLO).json
    chat = server.post("/v1/chat/completions", HELLO).json
    assert [b["text"] for b in reply["content"]] == [chat["choices"][0]["message"]["content"]]
    assert reply["usage"]["input_tokens"] == chat["usage"]["prompt_tokens"]
    assert reply["usage"]["output_tokens"] == chat["usage"]["completion_tokens"]
    assert (reply["type"], reply["role"]) == ("message", "assistant")
    expected = {"stop": "end_turn", "length": "max_tokens"}[chat["choices"][0]["finish_reason"]]
    assert reply["stop_reason"] == expected
    assert reply["stop_sequence"] is None


def test_a_stream_says_what_the_whole_reply_says(server: Any) -> None:
    whole = server.post(PATH, HELLO).json
    streamed = server.post(PATH, HELLO | {"stream": True})
    assert streamed.headers["content-type"].startswith("text/event-stream")
    told = events(streamed.body)
    kinds = [e["type"] for e in told]
    assert kinds[:3] == ["message_start", "content_block_start", "ping"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[3:-3]) == {"content_block_delta"}
    assert told[0]["message"]["usage"]["input_tokens"] == whole["usage"]["input_tokens"]
    assert "".join(e["delta"]["text"] for e in told[3:-3]) == whole["content"][0]["text"]
    assert told[-2]["delta"] == {k: whole[k] for k in ("stop_reason", "stop_sequence")}
    assert told[-2]["usage"] == whole["usage"]


def test_blocks_and_strings_are_one_text(server: Any) -> None:
    blocks = [
        {"type": "text", "text": "Hel", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "lo"},
    ]
    asked = HELLO | {"messages": [{"role": "user", "content": blocks}]}
    assert server.post(PATH, asked).json["content"] == server.post(PATH, HELLO).json["content"]
    system = HELLO | {"system": [{"type": "text", "text": "Be kind."}]}
    assert (
        server.post(PATH, system).json["usage"]
        == (server.post(PATH, HELLO | {"system": "Be kind."}).json["usage"])
    )


def test_a_stop_sequence_is_named(server: Any) -> None:
    text = server.post(PATH, HELLO | {"max_tokens": 12}).json["content"][0]["text"]
    stop = text[len(text) // 2 :][:3]
    cut = server.post(PATH, HELLO | {"max_tokens": 12, "stop_sequences": ["\0", stop]}).json
    assert cut["content"][0]["text"] == text[: text.index(stop)]
    assert (cut["stop_reason"], cut["stop_sequence"]) == ("stop_sequence", stop)


def test_tokens_are_counted_as_they_are_read(server: Any) -> None:
    asked = {"messages": HELLO["messages"], "system": "Be kind."}
    counted = server.post(COUNT, asked).json
    assert counted == {
        "input_tokens": server.post(PATH, HELLO | asked).json["usage"]["input_tokens"]
    }
    longer = server.post(COUNT, asked | {"system": "Be very, very kind."}).json
    assert longer["input_tokens"] > counted["input_tokens"]
    assert server.post(COUNT, asked | {"max_tokens": 5}).status == 400


LOOK = {"name": "look", "input_schema": {"type": "object"}}
USED = {"type": "tool_use", "id": "a", "name": "look", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "a", "content": "seen"}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": "10"}, "max_tokens"),
    ({"temperature": 1.5}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": -1}, "top_p"),
    ({"top_k": 0.5}, "top_k"),
    ({"stop_sequences": ["a"] * 17}, "stop_sequences"),
    ({"stop_sequences": [""]}, "stop_sequences"),
    ({"stream": "yes"}, "stream"),
    ({"service_tier": "gold"}, "service_tier"),
    ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
    ({"tools": {}}, "tools"),
    ({"tools": [{"name": "x"}]}, "tools[0].input_schema"),
    ({"tools": [{"name": "x", "input_schema": {}}]}, "tools[0].input_schema"),
    ({"tools": [LOOK, LOOK]}, "tools[1].name"),
    ({"tools": [{**LOOK, "name": "a b"}]}, "tools[0].name"),
    ({"tools": [{**LOOK, "type": "web_search_20250305"}]}, "tools[0].type"),
    ({"tools": [{**LOOK, "input_examples": [{}]}]}, "tools[0].input_examples"),
    (
        {"tools": [{**LOOK, "input_schema": {"type": "object", "not": {}}}]},
        "tools[0].input_schema.not",
    ),
    ({"tool_choice": {"type": "any"}}, "tool_choice.type"),
    ({"tool_choice": {"type": "maybe"}, "tools": [LOOK]}, "tool_choice.type"),
    ({"tool_choice": {"type": "tool", "name": "x"}, "tools": [LOOK]}, "tool_choice.name"),
    ({"tool_choice": {"type": "auto", "odd": 1}, "tools": [LOOK]}, "tool_choice.odd"),
    ({"messages": [{"role": "user", "content": [RESULT]}]}, "messages[0].content[0].tool_use_id"),
    (
        {"messages": [{"role": "user", "content": [{**USED, "id": "b"}]}]},
        "messages[0].content[0].type",
    ),
    (
        {"messages": [{"role": "assistant", "content": [{**USED, "input": "{}"}]}]},
        "messages[0].content[0].input",
    ),
    ({"mcp_servers": [{}]}, "mcp_servers"),
    ({"no_such_field": 1}, "no_such_field"),
    ({"model": 5}, "model"),
    ({"system": 5}, "system"),
    ({"system": [{"type": "image"}]}, "system[0].type"),
    ({"messages": []}, "messages"),
    ({"messages": ["x"]}, "messages[0]"),
    ({"messages": [{"role": "system", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [5]}]}, "messages[0].content[0]"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
        "messages[0].content[0].type",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "odd": 1}]}]},
        "messages[0].content[0].odd",
    ),
    ({"messages": [{"role": "user", "content": "x", "odd": 1}]}, "messages[0].odd"),
    ({"messages": [{"role": "assistant", "content": "I said"}]}, "messages[0]"),
    ({"messages": [*HELLO["messages"], {"role": "assistant", "content": "("}]}, "messages[1]"),
]


@pytest.mark.row("H10", "H12", "H13", "H16", "H33")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("wrong", "name"), WRONG)
def test_wrong_fields_are_refused_by_name(
    server: Any, wrong: dict[str, Any], name: str, stream: bool
) -> None:
    reply = server.post(PATH, HELLO | {"stream": stream} | wrong)
    assert reply.status == 400
    assert reply.json["type"] == "error"
    assert reply.json["error"]["type"] == "invalid_request_error"
    assert name in reply.json["error"]["message"]


@pytest.mark.row("H15")
def test_the_context_is_a_limit_for_prompt_and_answer(server: Any) -> None:
    context = server.ask("GET", "/v1/models").json["data"][0]["context_length"]
    room = context - server.post(COUNT, {"messages": HELLO["messages"]}).json["input_tokens"]
    assert server.post(PATH, HELLO | {"max_tokens": room, "stop_sequences": ["e"]}).status == 200
    reply = server.post(PATH, HELLO | {"max_tokens": room + 1, "stream": True})
    assert reply.status == 400
    assert str(context) in reply.json["error"]["message"]


def test_a_failed_call_is_told_as_one(server: Any) -> None:
    def asked(**more: Any) -> Any:
        turns = [{"role": "assistant", "content": [USED]}]
        turns.append({"role": "user", "content": [RESULT | more]})
        return HELLO | {"messages": HELLO["messages"] + turns}

    said = asked(content=[{"type": "text", "text": "Error: seen"}])
    told = [server.post(PATH, each).json for each in (said, asked(is_error=True), asked())]
    assert told[0]["usage"] == told[1]["usage"]
    assert told[0]["content"] == told[1]["content"]
    assert told[2]["usage"]["input_tokens"] < told[0]["usage"]["input_tokens"]


def test_versions_are_known_or_refused(server: Any) -> None:
    for version in ("2023-06-01", "2026-10-21"):
        asked = {"messages": HELLO["messages"]}
        assert server.post(COUNT, asked, anthropic_version=version).status == 200
    reply = server.post(PATH, HELLO, anthropic_version="2023-01-01")
    assert reply.status == 400
    assert "anthropic-version" in reply.json["error"]["message"]


@pytest.mark.row("H6", "H8", "H32", "H40")
def test_every_refusal_has_this_protocols_shape(server: Any, locked: Any) -> None:
    unlike = [
        (server.post(PATH, HELLO | {"model": "nobody"}), 404, "not_found_error"),
        (server.ask("GET", PATH), 405, "invalid_request_error"),
        (server.ask("GET", "/v1/messages/batches"), 404, "not_found_error"),
        (server.post(PATH, b"{"), 400, "invalid_request_error"),
        (server.post(PATH, HELLO, content_type="text/plain"), 415, "invalid_request_error"),
        (server.post(PATH, HELLO, host="evil.example"), 421, "invalid_request_error"),
        (server.post(PATH, HELLO, origin="http://evil.example"), 403, "permission_error"),
        (server.post(PATH, b" " * ((8 << 20) + 1)), 413, "request_too_large"),
        (locked.post(PATH, HELLO), 401, "authentication_error"),
        (locked.post(COUNT, HELLO, x_api_key="wrong"), 401, "authentication_error"),
    ]
    for reply, status, kind in unlike:
        assert reply.status == status
        assert reply.json["type"] == "error"
        assert reply.json["error"]["type"] == kind
        assert reply.json["error"]["message"]
