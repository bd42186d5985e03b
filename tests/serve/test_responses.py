"""`/v1/responses`: one message, numbered events, nothing kept, every wrong field by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

PATH, CHAT = "/v1/responses", "/v1/chat/completions"
HELLO: dict[str, Any] = {"input": "Hello", "max_output_tokens": 6, "temperature": 0}


def events(body: bytes) -> list[dict[str, Any]]:
    found = []
    for block in body.decode().removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    assert [e["sequence_number"] for e in found] == list(range(len(found)))
    return found


def test_it_answers_what_a_chat_answers(server: Any) -> None:
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
    chat = server.post(CHAT, {"messages": turns, "max_tokens": 6, "temperature": 0}).json
    reply = server.post(PATH, HELLO | {"instructions": "Be kind.", "metadata": {"a": "b"}}).json
    (item,) = reply["output"]
    assert item["content"][0]["text"] == chat["choices"][0]["message"]["content"]
    ended = chat["choices"][0]["finish_reason"] == "stop"
    assert reply["status"] == item["status"] == ("completed" if ended else "incomplete")
    assert (reply["incomplete_details"] is None) == ended
    assert reply["usage"]["input_tokens"] == chat["usage"]["prompt_tokens"]
    assert reply["usage"]["output_tokens"] == chat["usage"]["completion_tokens"]
    assert reply["usage"]["total_tokens"] == chat["usage"]["total_tokens"]
    assert (reply["store"], reply["metadata"]) == (False, {"a": "b"})
    assert reply["instructions"] == "Be kind."


def test_the_answers_end_is_told_as_it_was(server: Any) -> None:
    cut = server.post(PATH, HELLO | {"max_output_tokens": 1}).json
    assert cut["incomplete_details"] == {"reason": "max_output_tokens"}
    text = cut["output"][0]["content"][0]["text"]
    stopped = server.post(PATH, HELLO | {"stop": text[0]}).json
    assert (stopped["status"], stopped["incomplete_details"]) == ("completed", None)


def test_items_are_turns(server: Any) -> None:
    parts = [{"type": "input_text", "text": "Hel"}, {"type": "input_text", "text": "lo"}]
    items = [{"type": "message", "role": "user", "content": parts}]
    plain = server.post(PATH, HELLO).json
    listed = server.post(PATH, HELLO | {"input": items}).json
    assert listed["output"][0]["content"] == plain["output"][0]["content"]
    again = server.post(PATH, HELLO | {"input": [*items, *plain["output"], *items]})
    assert again.json["usage"]["input_tokens"] > 2 * plain["usage"]["input_tokens"]
    told = {"role": "developer", "content": "Be kind."}
    as_system = server.post(PATH, HELLO | {"input": [told, *items]}).json
    instructed = server.post(PATH, HELLO | {"instructions": "Be kind."}).json
    assert as_system["output"][0]["content"] == instructed["output"][0]["content"]


def test_a_stream_says_what_the_whole_reply_says(server: Any) -> None:
    server.post(PATH, HELLO)  # The prompt is in the cache for both that are compared.
    whole = server.post(PATH, HELLO).json
    told = events(server.post(PATH, HELLO | {"stream": True}).body)
    kinds = [e["type"].removeprefix("response.") for e in told]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-4:] == [
        "output_text.done", "content_part.done", "output_item.done", whole["status"],
    ]  # fmt: skip
    assert set(kinds[4:-4]) == {"output_text.delta"}
    text = whole["output"][0]["content"][0]["text"]
    assert "".join(e["delta"] for e in told[4:-4]) == told[-4]["text"] == text
    last = told[-1]["response"]
    differ = {"id", "created_at", "output", "timings"}
    assert {k: v for k, v in last.items() if k not in differ} == (
        {k: v for k, v in whole.items() if k not in differ}
    )
    assert last["output"][0]["content"] == whole["output"][0]["content"]
    assert told[0]["response"]["id"] == last["id"]
    assert {e["item_id"] for e in told[3:-2]} == {last["output"][0]["id"]}


LOOK = {"type": "function", "name": "look"}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"store": True}, "store"),
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"background": True}, "background"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
    ({"tools": [LOOK, LOOK]}, "tools[1].name"),
    ({"tools": [LOOK], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice.name"),
    ({"tools": [LOOK], "text": {"format": {"type": "json_object"}}}, "text"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    (
        {"text": {"format": {"type": "json_schema", "name": "a", "schema": {"not": {}}}}},
        "text.format.schema.not",
    ),
    ({"text": {"format": {"type": "json_object"}}, "stop": "}"}, "stop"),
    ({"text": {"verbosity": "low"}}, "text.verbosity"),
    (
        {"input": [{"type": "function_call", "call_id": "a", "name": "f", "arguments": "{"}]},
        "input[0].arguments",
    ),
    (
        {"input": [{"type": "function_call_output", "call_id": "a", "output": "x"}]},
        "input[0].call_id",
    ),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"reasoning": {"effort": "high"}}, "reasoning"),
    ({"truncation": "auto"}, "truncation"),
    ({"include": ["message.output_text.logprobs"]}, "include"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"service_tier": "gold"}, "service_tier"),
    ({"metadata": {"a": 5}}, "metadata"),
    ({"metadata": {str(i): "x" for i in range(17)}}, "metadata"),
    ({"n": 2}, "n"),
    ({"temperature": 3}, "temperature"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_tokens": 5}, "max_tokens"),
    ({"instructions": 5}, "instructions"),
    ({"stream": "yes"}, "stream"),
    ({"no_such_field": 1}, "no_such_field"),
    ({"input": None}, "input"),
    ({"input": ""}, "input"),
    ({"input": []}, "input"),
    ({"input": ["x"]}, "input[0]"),
    ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
    ({"input": [{"role": "king", "content": "x"}]}, "input[0].role"),
    ({"input": [{"role": "user"}]}, "input[0].content"),
    ({"input": [{"role": "user", "content": "x", "odd": 1}]}, "input[0].odd"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "input[0].content[0].type",
    ),
]


@pytest.mark.row("H10", "H12", "H16", "H33")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("wrong", "param"), WRONG)
def test_wrong_fields_are_refused_by_name(
    server: Any, wrong: dict[str, Any], param: str, stream: bool
) -> None:
    reply = server.post(PATH, HELLO | {"stream": stream} | wrong)
    assert reply.status == 400
    assert reply.json["error"]["param"] == param


def test_nothing_is_kept(server: Any) -> None:
    made = server.post(PATH, HELLO).json["id"]
    assert server.ask("GET", f"{PATH}/{made}").status == 404
    assert server.ask("GET", PATH).status == 405


def test_cached_tokens_are_those_that_were_not_read_anew(server: Any) -> None:
    asked = {"input": "Seven grey foxes ran over the frozen lake. " * 3, "max_output_tokens": 2}
    before = server.figure("miudo:prefix_cache_hits_total")
    counts = [server.post(PATH, asked).json["usage"] for _ in range(2)]
    first, again = (count["input_tokens_details"]["cached_tokens"] for count in counts)
    assert first < again == counts[1]["input_tokens"] - 1  # the last is always read
    assert server.figure("miudo:prefix_cache_hits_total") - before == first + again
