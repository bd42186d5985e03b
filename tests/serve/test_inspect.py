"""`/inspect`: insides of a served model, bounded, equal to what the engine shows."""

from __future__ import annotations

import hashlib
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from miudo.engine.insides import MOST_POSITIONS
from miudo.evaluate.loading import load_model
from miudo.hub.resolve import embedded_models, model_path
from miudo.serve.inspect.attention import MOST_SENT

ATTENTION, LENS, MODEL = "/inspect/attention", "/inspect/lens", "/inspect/model/miudo-6m"
TEXT = "The king lived in the great city of Paris."
LAYERS, HEADS = 6, 4  # of the model inside the package
ROUNDING = 1e-6  # of the replies' numbers


def test_attention_rows_sum_to_one_and_never_look_ahead(server: Any) -> None:
    reply = server.post(ATTENTION, {"content": TEXT}).json
    n = len(reply["tokens"])
    assert "".join(t["piece"] for t in reply["tokens"]) == TEXT
    assert [layer["layer"] for layer in reply["layers"]] == list(range(LAYERS))
    for layer in reply["layers"]:
        assert layer["window"] is None
        assert len(layer["heads"]) == HEADS
        for rows in layer["heads"]:
            assert [len(row) for row in rows] == list(range(1, n + 1))
            for row in rows:
                assert math.isclose(sum(row), 1, abs_tol=n * ROUNDING)
    one = server.post(ATTENTION, {"content": TEXT, "layers": [4]}).json
    assert one["layers"] == [reply["layers"][4]]
    ids = [t["id"] for t in reply["tokens"]]
    assert server.post(ATTENTION, {"content": ids, "layers": [4]}).json == one


def test_the_last_layer_of_the_lens_says_what_the_model_says(server: Any) -> None:
    reply = server.post(LENS, {"content": TEXT, "top": 5}).json
    assert [layer["layer"] for layer in reply["layers"]] == list(range(LAYERS + 1))
    echo = {"prompt": TEXT, "echo": True, "max_tokens": 0, "logprobs": 5}
    said = server.post("/v1/completions", echo).json["choices"][0]["logprobs"]
    last = reply["layers"][-1]["cells"]
    assert last[-1]["next"] is None
    for i, cell in enumerate(last[:-1]):
        assert cell["next"]["logprob"] == pytest.approx(said["token_logprobs"][i + 1], abs=1e-5)
        best = max(said["top_logprobs"][i + 1].values())
        mine = [top["logprob"] for top in cell["top"]]
        assert mine == sorted(mine, reverse=True)
        assert mine[0] == pytest.approx(best, abs=1e-5)
        assert (cell["next"]["rank"] == 0) == (cell["next"]["logprob"] == pytest.approx(mine[0]))
        assert cell["entropy"] > 0
    first = reply["layers"][0]["cells"]
    assert [c["top"][0]["id"] for c in first] != [c["top"][0]["id"] for c in last]


def test_a_model_is_named_to_the_byte(server: Any) -> None:
    found = server.ask("GET", MODEL).json
    path = embedded_models()["miudo-6m"]
    assert path == model_path(None)
    assert found["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found["tokenizer_sha256"] == load_model(path).tokenizer.fingerprint
    assert found["layers"] == [{"heads": 4, "kv_heads": 4, "window": None}] * LAYERS
    assert found["engine"]["threads"] == 1
    assert server.ask("GET", "/inspect/model/none").status == 404


def test_looking_changes_no_answer_and_leaves_no_pages(server: Any) -> None:
    ask = {"prompt": TEXT, "max_tokens": 16, "temperature": 0.9, "seed": 3}
    alone = server.post("/v1/completions", ask).json["choices"][0]["text"]
    looks = [(ATTENTION, {"content": TEXT}), (LENS, {"content": TEXT}), ("/v1/completions", ask)]
    with ThreadPoolExecutor(3) as pool:
        replies = list(pool.map(lambda look: server.post(*look), looks * 4))
    assert all(reply.status == 200 for reply in replies)
    assert {r.json["choices"][0]["text"] for r in replies[2::3]} == {alone}


@pytest.mark.row("H36")
@pytest.mark.parametrize("path", [ATTENTION, LENS])
@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "content"),
        ({"content": ""}, "content"),
        ({"content": 5}, "content"),
        ({"content": []}, "content"),
        ({"content": [1, -1]}, "content"),
        ({"content": [1, 10**9]}, "content"),
        ({"content": [True]}, "content"),
        ({"content": ["a", "b"]}, "content"),
        ({"content": "a", "what": 1}, "what"),
        ({"content": "a", "model": 5}, "model"),
    ],
)
def test_wrong_fields_are_named(server: Any, path: str, body: Any, says: str) -> None:
    reply = server.post(path, body)
    assert reply.status == 400
    assert says in reply.json["error"]["message"]


@pytest.mark.row("H36")
@pytest.mark.parametrize("layers", [[], [6], [-1], [0, 0], "0", [True], [0.0], {}])
def test_layers_that_are_not_there_are_refused(server: Any, layers: Any) -> None:
    reply = server.post(ATTENTION, {"content": "a", "layers": layers})
    assert reply.status == 400
    assert reply.json["error"]["param"] == "layers"


@pytest.mark.row("H36")
def test_too_much_is_refused_with_both_counts(server: Any) -> None:
    n = MOST_POSITIONS
    numbers = n * (n + 1) // 2 * HEADS * LAYERS
    reply = server.post(ATTENTION, {"content": [5] * n})
    assert reply.status == 400
    assert f"{numbers:,}" in reply.json["error"]["message"]
    assert f"{MOST_SENT:,}" in reply.json["error"]["message"]
    assert server.post(ATTENTION, {"content": [5] * n, "layers": [0]}).status == 200
    for path in (ATTENTION, LENS):
        more = server.post(
            path, {"content": [5] * (n + 1), **({} if path == LENS else {"layers": [0]})}
        )
        assert more.status == 400
        assert f"{n + 1} positions, the limit is {n}" in more.json["error"]["message"]
    assert server.post(LENS, {"content": "a", "top": 21}).json["error"]["param"] == "top"
