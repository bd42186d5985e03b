"""`miudo embed`: vectors of texts in every form, equal to the engine's."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from miudo.cli.main import cli
from miudo.engine.embedding import Embedder
from miudo.evaluate.loading import load_model
from miudo.protocol import FloatArray
from miudo.text.prompt import begun

TINY = Path(__file__).parents[1] / "data" / "tiny"
TEXTS = ["um gato, dois", 'a "cat"', "olá"]


def call(*arguments: object, stdin: str = "") -> Result:
    return CliRunner().invoke(
        cli, ["embed", "--model", str(TINY), *map(str, arguments)], input=stdin
    )


@pytest.fixture(scope="module")
def expected() -> FloatArray:
    loaded = load_model(TINY)
    embedder = Embedder(loaded.engine, loaded.model.weights)
    ids = [begun(loaded.tokenizer.encode(text), loaded.model.config) for text in TEXTS]
    return np.stack([embedder.embed(row) for row in ids])


def test_every_form_holds_the_engines_vectors(expected: FloatArray, tmp_path: Path) -> None:
    value: Any = json.loads(call(*TEXTS, "--json").stdout)
    assert [row["text"] for row in value["embeddings"]] == TEXTS
    assert value["dimensions"] == expected.shape[1]
    found = [[row["embedding"] for row in value["embeddings"]]]
    lines = call(*TEXTS).stdout.splitlines()
    found.append([json.loads(line)["embedding"] for line in lines])
    table = list(csv.reader(io.StringIO(call(*TEXTS, "--as", "csv").stdout)))
    assert [row[0] for row in table] == ["text", *TEXTS]
    found.append([[float(x) for x in row[1:]] for row in table[1:]])
    assert call(*TEXTS, "--out", tmp_path / "v.npy").exit_code == 0
    found.append(np.load(tmp_path / "v.npy", allow_pickle=False))
    binary = call(*TEXTS, "--as", "npy").stdout_bytes
    found.append(np.load(io.BytesIO(binary), allow_pickle=False))
    for vectors in found:
        np.testing.assert_array_equal(np.asarray(vectors, np.float32), expected)
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1.0, rtol=1e-6)


def test_lines_of_a_pipe_are_texts_empty_ones_too(expected: FloatArray) -> None:
    lines = [json.loads(x) for x in call(stdin=f"{TEXTS[0]}\n\r\n{TEXTS[2]}\n").stdout.splitlines()]
    assert [line["text"] for line in lines] == [TEXTS[0], "", TEXTS[2]]
    np.testing.assert_array_equal(np.float32(lines[2]["embedding"]), expected[2])


def test_pooling_matters(expected: FloatArray) -> None:
    last = json.loads(call(TEXTS[0], "--pooling", "last").stdout)["embedding"]
    assert not np.allclose(last, expected[0])


def test_what_is_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    out = tmp_path / "v.csv"
    assert call("a", "--out", out).exit_code == 0
    before = out.read_bytes()
    result = call("b", "--out", out)
    assert (result.exit_code, "is there already" in result.stderr) == (2, True)
    assert out.read_bytes() == before
    assert call("b", "--out", out, "--force").exit_code == 0
    assert out.read_bytes() != before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("a", "--out", "v.txt"), 2, "End it in .jsonl, .csv or .npy"),
        (("a", "--out", "v.npy", "--json"), 2, "--json is for standard output"),
        ((), 2, "no text came"),
        (("ok", "long " * 400), 1, "text 2: has"),
        (("a", "--out", "no/such/v.npy"), 4, "no such folder"),
    ],
)
def test_what_cannot_be_embedded(arguments: tuple[str, ...], code: int, message: str) -> None:
    result = call(*arguments)
    assert result.exit_code == code
    assert message in result.stderr
