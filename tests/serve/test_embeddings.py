"""Vectors over HTTP, in both protocols that ask for them."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from miudo.engine.embedding import Embedder
from miudo.evaluate.loading import load_model
from miudo.hub.resolve import embedded_path
from miudo.text.prompt import begun

PATH, OLLAMA = "/v1/embeddings", "/api/embed"
TEXTS = ["The robot walked home.", "A robot went to its house.", "Rain fell on the sea."]
MODEL = {"model": "miudo-6m"}


def vectors(reply: Any) -> np.ndarray[Any, Any]:
    assert [entry["index"] for entry in reply["data"]] == list(range(len(reply["data"])))
    return np.array([entry["embedding"] for entry in reply["data"]])


def test_vectors_are_those_of_the_engine(server: Any) -> None:
    loaded = load_model(embedded_path(), threads=1)
    embedder = Embedder(loaded.engine, loaded.model.weights)
    config = loaded.model.config
    reply = server.post(PATH, {"input": TEXTS}).json
    ids = [begun(loaded.tokenizer.encode(text), config) for text in TEXTS]
    expected = [embedder.embed(each) for each in ids]
    np.testing.assert_allclose(vectors(reply), expected, rtol=0, atol=1e-7)
    read = sum(map(len, ids))
    assert reply["usage"] == {"prompt_tokens": read, "total_tokens": read}
    last = server.post(PATH, {"input": TEXTS[0], "pooling": "last"}).json
    np.testing.assert_allclose(vectors(last)[0], embedder.embed(ids[0], "last"), rtol=0, atol=1e-7)
    given = server.post(PATH, {"input": ids[1]}).json
    np.testing.assert_array_equal(vectors(given)[0], vectors(reply)[1])


def test_texts_that_say_alike_are_nearer(server: Any) -> None:
    a, b, c = vectors(server.post(PATH, {"input": TEXTS}).json)
    assert a @ b > max(a @ c, b @ c)


def test_base64_holds_the_same_numbers(server: Any) -> None:
    plain = vectors(server.post(PATH, {"input": TEXTS[0]}).json)[0]
    packed = server.post(PATH, {"input": TEXTS[0], "encoding_format": "base64"}).json
    raw = base64.b64decode(packed["data"][0]["embedding"], validate=True)
    np.testing.assert_array_equal(np.frombuffer(raw, "<f4"), plain.astype(np.float32))


def test_both_protocols_give_the_same(server: Any) -> None:
    ours = server.post(PATH, {"input": TEXTS}).json
    reply = server.post(OLLAMA, MODEL | {"input": TEXTS}).json
    np.testing.assert_array_equal(reply["embeddings"], vectors(ours))
    assert reply["prompt_eval_count"] == ours["usage"]["prompt_tokens"]
    assert reply["total_duration"] > 0
    (one,) = server.post(OLLAMA, MODEL | {"input": TEXTS[0], "truncate": True}).json["embeddings"]
    np.testing.assert_array_equal(one, vectors(ours)[0])


def test_a_text_is_cut_only_where_that_is_asked_for(server: Any) -> None:
    context = server.ask("GET", "/v1/models").json["data"][0]["context_length"]
    long = "word " * context
    for path, asked in ((PATH, {"input": [long]}), (OLLAMA, MODEL | {"input": long})):
        reply = server.post(path, asked)
        assert reply.status == 400
        assert str(context) in str(reply.json["error"])
    cut = server.post(OLLAMA, MODEL | {"input": long, "truncate": True}).json
    assert cut["prompt_eval_count"] == context
    assert server.post(PATH, {"input": [5] * context}).status == 200
    assert server.post(PATH, {"input": [5] * (context + 1)}).status == 400


@pytest.mark.row("H15", "H16")
@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"input": None}, "input"), ({"input": ""}, "input"), ({"input": []}, "input"),
        ({"input": [""]}, "input[0]"), ({"input": [5, "x"]}, "input[0]"), ({"input": {}}, "input"),
        ({"input": [[]]}, "input[0]"), ({"input": [-1]}, "input"), ({"input": [10**9]}, "input"),
        ({"input": ["x"] * 2049}, "input"), ({"dimensions": 3}, "dimensions"),
        ({"dimensions": "3"}, "dimensions"), ({"encoding_format": "hex"}, "encoding_format"),
        ({"pooling": "max"}, "pooling"), ({"odd": 1}, "odd"),
    ],
)  # fmt: skip
def test_wrong_fields_are_refused_by_name(server: Any, wrong: dict[str, Any], name: str) -> None:
    reply = server.post(PATH, {"input": "x"} | wrong)
    assert reply.status == 400
    assert reply.json["error"]["param"] == name


@pytest.mark.row("H15", "H16", "H40")
@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"input": None}, "input"), ({"input": ""}, "input"), ({"input": [""]}, "input"),
        ({"input": [5]}, "input"), ({"input": ["x"] * 2049}, "input"),
        ({"dimensions": 3}, "dimensions"), ({"truncate": "no"}, "truncate"),
        ({"options": {"temperature": 0}}, "options"), ({"keep_alive": "soon"}, "keep_alive"),
        ({"model": None}, "model"), ({"odd": 1}, "odd"),
    ],
)  # fmt: skip
def test_wrong_fields_are_refused_by_name_of_ollama_too(
    server: Any, wrong: dict[str, Any], name: str
) -> None:
    reply = server.post(OLLAMA, MODEL | {"input": "x"} | wrong)
    assert reply.status == 400
    assert name in reply.json["error"]
