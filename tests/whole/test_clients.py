"""Programs that others wrote, unmodified: the vendors' own Python clients on the real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from served import start_server

KEY = "a-key-for-tests"
TURNS: list[Any] = [{"role": "user", "content": "Hello"}]
ROBOT = "The little robot"
PLACE: dict[str, Any] = {
    "type": "object",
    "properties": {"place": {"enum": ["here", "there"]}},
    "required": ["place"],
    "additionalProperties": False,
}
# A model that always chooses one call, where a protocol leaves the choice to it alone.
EAGER = """
from functools import partial
from miudo.serve.ollama import generate
generate.take_choice = lambda *_: "required"
generate.Toolbox = partial(generate.Toolbox, several=False)
"""


@pytest.fixture
def openai(locked: Any) -> Any:
    client = pytest.importorskip("openai").OpenAI(
        base_url=f"{locked.url}/v1", api_key=KEY, max_retries=0
    )
    with client:
        yield client


@pytest.fixture
def anthropic(locked: Any) -> Any:
    client = pytest.importorskip("anthropic").Anthropic(
        base_url=locked.url, api_key=KEY, max_retries=0
    )
    with client:
        yield client


@pytest.fixture
def ollama(locked: Any) -> Any:
    client = pytest.importorskip("ollama").Client(
        host=locked.url, headers={"authorization": f"Bearer {KEY}"}
    )
    with client:
        yield client


def test_openai_lists_models(openai: Any) -> None:
    (model,) = openai.models.list().data
    assert openai.models.retrieve(model.id).id == model.id


def test_openai_chats_whole_and_streamed(openai: Any) -> None:
    asked: dict[str, Any] = {"messages": TURNS, "max_tokens": 8, "temperature": 0, "model": None}
    asked["model"] = openai.models.list().data[0].id
    whole = openai.chat.completions.create(**asked)
    stream = openai.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert text
    assert chunks[-1].usage == whole.usage


def test_openai_completes_with_log_probabilities(openai: Any) -> None:
    name = openai.models.list().data[0].id
    reply = openai.completions.create(model=name, prompt=ROBOT, max_tokens=0, echo=True, logprobs=1)
    logprobs = reply.choices[0].logprobs
    assert "".join(logprobs.tokens) == ROBOT
    assert all(p < 0 for p in logprobs.token_logprobs[1:])
    asked: dict[str, Any] = {"model": name, "prompt": ROBOT, "max_tokens": 5, "temperature": 0}
    whole = openai.completions.create(**asked).choices[0].text
    pieces = openai.completions.create(**asked, stream=True)
    assert whole
    assert "".join(p.choices[0].text for p in pieces) == whole


def test_openai_embeds(openai: Any) -> None:
    name = openai.models.list().data[0].id
    one, two = openai.embeddings.create(model=name, input=[ROBOT, "Rain fell."]).data
    assert len(one.embedding) == len(two.embedding) > 100
    assert sum(x * x for x in one.embedding) == pytest.approx(1, abs=1e-5)
    plain = openai.embeddings.create(model=name, input=ROBOT, encoding_format="float").data[0]
    assert plain.embedding == pytest.approx(one.embedding, abs=1e-7)


def test_openai_responds_whole_and_streamed(openai: Any) -> None:
    asked: dict[str, Any] = {
        "model": openai.models.list().data[0].id, "input": "Hello", "instructions": "Be kind.",
        "temperature": 0, "max_output_tokens": 16,
    }  # fmt: skip
    whole = openai.responses.create(**asked)
    assert whole.output_text
    with openai.responses.stream(**asked) as stream:
        deltas = [e.delta for e in stream if e.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(deltas) == final.output_text == whole.output_text
    assert final.usage.total_tokens == whole.usage.total_tokens
    assert final.usage.input_tokens_details.cached_tokens > 0  # the same was asked before
    again = [{"role": "user", "content": "Hello"}, *whole.output, *TURNS]
    longer = openai.responses.create(**asked | {"input": again})
    assert longer.usage.input_tokens > whole.usage.input_tokens


def test_openai_responds_in_forms_and_with_calls(openai: Any) -> None:
    name = openai.models.list().data[0].id
    asked: dict[str, Any] = {"model": name, "input": "Hello", "temperature": 0}
    form = {"type": "json_schema", "name": "place", "schema": PLACE, "strict": True}
    reply = openai.responses.create(**asked, text={"format": form})
    assert json.loads(reply.output_text)["place"] in ("here", "there")
    asked |= {"tools": [{"type": "function", "name": "look", "parameters": PLACE}]}
    asked |= {"tool_choice": "required", "parallel_tool_calls": False}
    whole = openai.responses.create(**asked)
    (call,) = whole.output
    assert (call.type, call.name, call.status) == ("function_call", "look", "completed")
    assert json.loads(call.arguments)["place"] in ("here", "there")
    with openai.responses.stream(**asked) as stream:
        events = list(stream)
        final = stream.get_final_response()
    parts = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
    assert "".join(parts) == final.output[0].arguments == call.arguments
    gave = {"type": "function_call_output", "call_id": call.call_id, "output": "a robot"}
    turns = [{"role": "user", "content": "Hello"}, call, gave]
    after = openai.responses.create(**asked | {"input": turns, "tool_choice": "none"})
    assert after.output_text
    cut = openai.responses.create(**asked, max_output_tokens=whole.usage.output_tokens - 20)
    assert (cut.status, cut.output[0].status) == ("incomplete", "incomplete")


def test_openai_raises_its_own_errors(openai: Any, locked: Any) -> None:
    import openai as package

    with pytest.raises(package.BadRequestError, match="no_such_field") as told:
        openai.completions.create(model=None, prompt="x", extra_body={"no_such_field": 1})
    assert told.value.param == "no_such_field"
    with pytest.raises(package.NotFoundError):
        openai.models.retrieve("nobody")
    with pytest.raises(package.AuthenticationError):
        openai.with_options(api_key="wrong").models.list()


def test_anthropic_answers_whole_and_streamed(anthropic: Any) -> None:
    asked: Any = {"model": "miudo-6m", "messages": TURNS, "max_tokens": 8}
    asked["extra_body"] = {"temperature": 0}  # which the client has ceased to name
    whole = anthropic.messages.create(**asked)
    assert whole.content[0].text
    assert whole.stop_reason in ("end_turn", "max_tokens")
    with anthropic.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert final.usage == whole.usage
    assert final.stop_reason == whole.stop_reason


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "look"}])
def test_anthropic_calls_functions_and_takes_what_they_gave(anthropic: Any, choice: Any) -> None:
    tool = {"name": "look", "description": "Looks.", "input_schema": PLACE}
    asked: Any = {"model": "miudo-6m", "messages": TURNS, "max_tokens": 60, "tools": [tool]}
    asked |= {"extra_body": {"temperature": 0, "top_k": 1}}
    asked["tool_choice"] = {**choice, "disable_parallel_tool_use": True}
    whole = anthropic.messages.create(**asked)
    (call,) = whole.content
    assert (call.type, call.name, whole.stop_reason) == ("tool_use", "look", "tool_use")
    assert call.input["place"] in ("here", "there")
    with anthropic.messages.stream(**asked) as stream:
        parts = [e.partial_json for e in stream if e.type == "input_json"]
        final = stream.get_final_message()
    assert json.loads("".join(parts)) == final.content[0].input == call.input
    assert (final.stop_reason, final.usage) == (whole.stop_reason, whole.usage)
    gave = {"type": "tool_result", "tool_use_id": call.id, "content": "a robot"}
    after = [*TURNS, {"role": "assistant", "content": whole.content}]
    after.append({"role": "user", "content": [gave, {"type": "text", "text": "And?"}]})
    said = anthropic.messages.create(**asked | {"messages": after, "tool_choice": {"type": "none"}})
    assert said.content[0].type == "text"
    counted: Any = {name: asked[name] for name in ("model", "messages", "tools")}
    assert anthropic.messages.count_tokens(**counted).input_tokens == whole.usage.input_tokens
    cut = anthropic.messages.create(**asked | {"max_tokens": whole.usage.output_tokens - 20})
    assert (cut.content[0].input, cut.stop_reason) == ({}, "max_tokens")
    stopped = anthropic.messages.create(**asked, stop_sequences=['"place'])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", '"place')


def test_anthropic_counts_what_is_read(anthropic: Any) -> None:
    asked: Any = {"model": "miudo-6m", "messages": TURNS, "system": "Be kind."}
    counted = anthropic.messages.count_tokens(**asked).input_tokens
    assert counted == anthropic.messages.create(**asked, max_tokens=1).usage.input_tokens


def test_anthropic_raises_its_own_errors(anthropic: Any) -> None:
    import anthropic as package

    asked: Any = {"model": "miudo-6m", "messages": TURNS, "max_tokens": 4}
    with pytest.raises(package.BadRequestError, match="tools"):
        anthropic.messages.create(**asked, tools=[{"name": "x", "input_schema": {}}])
    with pytest.raises(package.BadRequestError, match="positions"):
        anthropic.messages.create(**asked | {"max_tokens": 10**6}, stream=True)
    with pytest.raises(package.NotFoundError):
        anthropic.messages.create(**asked | {"model": "nobody"})
    with pytest.raises(package.AuthenticationError):
        anthropic.with_options(api_key="wrong").messages.create(**asked)


def test_ollama_lists_what_is_served(ollama: Any) -> None:
    (model,) = ollama.list().models
    assert len(model.digest) == 64
    assert model.size > 1e6
    shown = ollama.show(model.model)
    assert shown.modelinfo["general.parameter_count"] > 1e6
    assert "completion" in shown.capabilities
    (running,) = ollama.ps().models
    assert running.model == model.model


@pytest.mark.parametrize("name", ["miudo-6m", "miudo-6m:latest"])
def test_ollama_generates_and_chats_whole_and_streamed(ollama: Any, name: str) -> None:
    options = {"temperature": 0, "num_predict": 8}
    whole = ollama.generate(name, ROBOT, options=options, raw=True)
    parts = list(ollama.generate(name, ROBOT, options=options, raw=True, stream=True))
    assert whole.response
    assert "".join(part.response for part in parts) == whole.response
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert 0 < parts[-1].eval_count == whole.eval_count <= 8
    assert whole.total_duration > whole.eval_duration > 0
    chat = ollama.chat(name, TURNS, options=options, keep_alive="5m", think=False)
    said = list(ollama.chat(name, TURNS, options=options, stream=True))
    assert "".join(part.message.content for part in said) == chat.message.content
    assert chat.message.role == "assistant"


@pytest.fixture(scope="module")
def eager() -> Iterator[Any]:
    """Ollama's client of a server of its own."""
    server = start_server("--threads", "1", "--log", "none", before=EAGER)
    with pytest.importorskip("ollama").Client(host=server.url) as client:
        yield client
    server.end()


def test_ollama_keeps_to_a_form(ollama: Any) -> None:
    asked: dict[str, Any] = {"format": PLACE, "options": {"temperature": 0}}
    replies = [ollama.chat("miudo-6m", TURNS, **asked).message.content]
    replies.append(ollama.generate("miudo-6m", ROBOT, **asked).response)
    replies.append(ollama.generate("miudo-6m", ROBOT, raw=True, **asked).response)
    for reply in replies:
        assert json.loads(reply)["place"] in ("here", "there")
    said = ollama.chat("miudo-6m", TURNS, stream=True, **asked)
    assert "".join(part.message.content for part in said) == replies[0]
    some = ollama.generate("miudo-6m", ROBOT, format="json", options={"num_predict": 4})
    assert some.response.startswith("{")


def test_ollama_calls_functions_and_takes_what_they_gave(eager: Any) -> None:
    def look(place: str) -> str:
        """Looks at a place.

        Args:
            place: where
        """
        return f"a robot is {place}"

    options: Any = {"temperature": 0, "num_predict": 90}
    whole = eager.chat("miudo-6m", TURNS, tools=[look], options=options)
    (call,) = whole.message.tool_calls
    assert (call.function.name, whole.message.content) == ("look", "")
    assert isinstance(call.function.arguments["place"], str)
    parts = list(eager.chat("miudo-6m", TURNS, tools=[look], options=options, stream=True))
    assert [c for part in parts for c in part.message.tool_calls or ()] == [call]
    assert (parts[-1].done_reason, parts[-1].message.tool_calls) == ("stop", None)
    gave = {"role": "tool", "tool_name": "look", "content": "a robot"}
    after = eager.chat("miudo-6m", [*TURNS, whole.message, gave], options=options)
    assert after.message.content
    assert after.prompt_eval_count > eager.chat("miudo-6m", TURNS).prompt_eval_count + 20
    cut = eager.chat("miudo-6m", TURNS, tools=[look], options=options | {"num_predict": 20})
    assert (cut.message.tool_calls, cut.done_reason) == (None, "length")


def test_ollama_embeds(ollama: Any) -> None:
    reply = ollama.embed("miudo-6m", [ROBOT, "Rain fell."])
    assert len(reply.embeddings) == 2
    assert len(reply.embeddings[0]) > 100


def test_ollama_raises_its_own_errors(ollama: Any) -> None:
    import ollama as package

    with pytest.raises(package.ResponseError, match="nobody") as told:
        ollama.generate("nobody", "x")
    assert told.value.status_code == 404
    with pytest.raises(package.ResponseError, match="num_gpu"):
        ollama.generate("miudo-6m", "x", options={"num_gpu": 1})
    with pytest.raises(package.ResponseError, match="positions"):
        list(ollama.chat("miudo-6m", TURNS, options={"num_predict": 10**6}, stream=True))
