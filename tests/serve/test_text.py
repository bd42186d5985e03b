"""What a model makes of a text: tokens, template, next words."""

from __future__ import annotations

import math
from typing import Any

import pytest

from miudo.engine.suggest import Suggester
from miudo.evaluate.loading import load_model
from miudo.hub.resolve import embedded_path

CHAT = "/v1/chat/completions"
TEXT = "The little robot wént home 🤖."


def test_tokens_and_text_turn_into_each_other(server: Any) -> None:
    ids = server.post("/tokenize", {"content": TEXT}).json["tokens"]
    assert server.post("/detokenize", {"tokens": ids}).json == {"content": TEXT}
    assert server.post("/detokenize", {"tokens": []}).json == {"content": ""}
    pieces = server.post("/tokenize", {"content": TEXT, "with_pieces": True}).json["tokens"]
    assert [p["id"] for p in pieces] == ids
    raw = b"".join(
        bytes(p["piece"]) if isinstance(p["piece"], list) else p["piece"].encode() for p in pieces
    )
    assert raw.decode() == TEXT
    assert any(isinstance(p["piece"], list) for p in pieces)  # half of a character


def test_a_prompt_begins_as_add_special_says(server: Any) -> None:
    begun = server.post("/tokenize", {"content": TEXT, "add_special": True}).json["tokens"]
    asked = {"prompt": TEXT, "max_tokens": 1}
    usage = server.post("/v1/completions", asked).json["usage"]
    assert usage["prompt_tokens"] == len(begun)


@pytest.mark.row("J4")
def test_special_tokens_are_text_unless_asked_for(server: Any) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    prompt = server.post("/apply-template", {"messages": messages}).json["prompt"]
    assert "Hello" in prompt
    read = server.post("/tokenize", {"content": prompt, "parse_special": True}).json["tokens"]
    typed = server.post("/tokenize", {"content": prompt}).json["tokens"]
    assert len(read) < len(typed)
    usage = server.post(CHAT, {"messages": messages, "max_tokens": 1}).json["usage"]
    begun = {"content": prompt, "parse_special": True, "add_special": True}
    assert usage["prompt_tokens"] == len(server.post("/tokenize", begun).json["tokens"])
    plain = {"messages": messages, "add_generation_prompt": False}
    shorter = server.post("/apply-template", plain).json["prompt"]
    assert prompt.startswith(shorter)
    assert prompt != shorter


@pytest.mark.parametrize("text", ["The little rob", "Once upon a ", "", "The cat sat."])
def test_words_are_those_of_the_search(server: Any, text: str) -> None:
    loaded = load_model(embedded_path(), threads=1)
    bos = loaded.model.config.bos_id
    start = () if bos is None else (bos,)
    expected = Suggester(loaded.engine, loaded.tokenizer, start=start).suggest(text, 5)
    for _ in range(2):  # what was read before changes nothing
        words = server.post("/suggest", {"text": text, "count": 5}).json["words"]
        assert [w["word"] for w in words] == [s.word for s in expected]
        assert all(
            math.isclose(w["probability"], s.probability, abs_tol=1e-6)
            for w, s in zip(words, expected, strict=True)
        )
    assert len(server.post("/suggest", {"text": text}).json["words"]) <= 3


@pytest.mark.row("H15", "H16")
@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/tokenize", {}, "content"), ("/tokenize", {"content": 5}, "content"),
        ("/tokenize", {"content": "x", "with_pieces": 1}, "with_pieces"),
        ("/tokenize", {"content": "x", "odd": 1}, "odd"),
        ("/detokenize", {}, "tokens"), ("/detokenize", {"tokens": "x"}, "tokens"),
        ("/detokenize", {"tokens": [5, -1]}, "tokens[1]"),
        ("/detokenize", {"tokens": [True]}, "tokens[0]"),
        ("/detokenize", {"tokens": [10**9]}, "tokens[0]"),
        ("/detokenize", {"tokens": [5], "odd": 1}, "odd"),
        ("/apply-template", {}, "messages"), ("/apply-template", {"messages": []}, "messages"),
        ("/apply-template", {"messages": [{"role": "king", "content": "x"}]}, "messages[0]"),
        ("/apply-template", {"messages": [{"role": "user", "content": "x"}], "odd": 1}, "odd"),
        ("/suggest", {}, "text"), ("/suggest", {"text": 5}, "text"),
        ("/suggest", {"text": "x", "count": 0}, "count"),
        ("/suggest", {"text": "x", "count": 33}, "count"), ("/suggest", {"text": "x", "o": 1}, "o"),
    ],
)  # fmt: skip
def test_wrong_fields_are_refused_by_name(
    server: Any, path: str, body: dict[str, Any], name: str
) -> None:
    reply = server.post(path, body)
    assert reply.status == 400
    assert name in reply.json["error"]["message"]


@pytest.mark.row("H6", "H8", "H32")
@pytest.mark.parametrize("path", ["/tokenize", "/detokenize", "/apply-template", "/suggest"])
def test_these_routes_are_guarded_as_others_are(server: Any, locked: Any, path: str) -> None:
    assert locked.post(path, {}).status == 401
    assert server.ask("GET", path).status == 405
    assert server.post(path, {"model": "nobody"}).status == 404
