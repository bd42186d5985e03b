"""`miudo tokenize`: pieces, ids, counts, and the way back."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from miudo.cli.main import cli
from miudo.formats import open_model
from miudo.text.tokenizer import TextTokenizer

TINY = Path(__file__).parents[1] / "data" / "tiny"
TEXT = "Um gato.\nUm  olá 🙂"


def call(*arguments: str, stdin: str | bytes = "") -> Result:
    return CliRunner().invoke(cli, ["tokenize", *arguments], input=stdin)


def told(*arguments: str, stdin: str = "") -> Any:
    result = call(*arguments, "--json", stdin=stdin)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    spec = open_model(TINY).tokenizer
    assert spec is not None
    return TextTokenizer(spec)


def test_ids_are_the_tokenizers_and_pieces_make_the_text(tokenizer: TextTokenizer) -> None:
    value = told(str(TINY), TEXT)
    assert value["ids"] == tokenizer.encode(TEXT)
    assert value["count"] == len(value["ids"]) == len(value["pieces"])
    plain = told(str(TINY), "Um gato.\nUm  ol")
    assert "".join(plain["pieces"]) == "Um gato.\nUm  ol"
    assert told(str(TINY), stdin=TEXT) == told(str(TINY), "-", stdin=TEXT) == value


def test_forms(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode("Um gato\n")
    asked = (str(TINY), "--text", "Um gato\n")
    assert call(*asked, "--as", "ids").stdout == " ".join(map(str, ids)) + "\n"
    assert call(*asked, "--as", "count").stdout == f"{len(ids)}\n"
    lines = [line.split("\t") for line in call(*asked).stdout.splitlines()]
    assert [int(number) for number, _ in lines] == ids
    assert "".join(json.loads(piece) for _, piece in lines) == "Um gato\n"
    shown = call(*asked, "--as", "pieces")
    assert shown.stdout.count("│") == len(ids) - 1
    assert "·" in shown.stdout
    assert "⏎\n" in shown.stdout
    assert f"{len(ids)} tokens, 8 characters, 8 bytes" in shown.stderr


def test_ids_come_back_as_text(tokenizer: TextTokenizer) -> None:
    ids = call(str(TINY), TEXT, "--as", "ids").stdout
    assert call(str(TINY), "--decode", stdin=ids).stdout == TEXT + "\n"
    listed = "--text=" + str(tokenizer.encode(TEXT))
    assert json.loads(call(str(TINY), listed, "--decode", "--json").stdout)["text"] == TEXT


def test_special_tokens_are_plain_text_unless_wanted(tokenizer: TextTokenizer) -> None:
    special, number = next(iter(tokenizer.special_ids.items()))
    assert number not in told(str(TINY), "--text", special)["ids"]
    value = told(str(TINY), "--text", special, "--special")
    assert (value["ids"], value["pieces"]) == ([number], [special])


def test_a_turn_goes_through_the_template() -> None:
    turn = told("--text", "olá", "--chat")
    assert "<|user|>" in turn["pieces"]
    assert turn["count"] > told("--text", "olá")["count"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((str(TINY), "olá", "--chat"), 2, "has no chat template"),
        ((str(TINY), "olá", "--chat", "--special"), 2, "exclude each other"),
        ((str(TINY), "--text", "1 x", "--decode"), 1, "'x' is no token id"),
        ((str(TINY), "--text", "999999", "--decode"), 1, "token id is 999999, allowed 0 to"),
        (("./nothing", "olá"), 4, "no such file"),
    ],
)
def test_what_cannot_be_told(arguments: tuple[str, ...], code: int, message: str) -> None:
    result = call(*arguments)
    assert result.exit_code == code
    assert message in result.stderr
