"""`miudo suggest` on the model inside the package."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from miudo.cli.main import cli


def run(*arguments: str) -> str:
    done = CliRunner().invoke(cli, ["suggest", *arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_word_is_ended() -> None:
    assert "time" in run("Once upon a ti").splitlines()[0]


def test_json_says_words_and_probabilities_best_first() -> None:
    found = json.loads(run("The king", "--count", "5", "--json"))
    assert found["text"] == "The king"
    shares = [word["probability"] for word in found["words"]]
    assert shares == sorted(shares, reverse=True)
    assert all(word["word"].startswith("king") for word in found["words"])


def test_letters_of_no_word_say_so() -> None:
    assert run("x" * 100).strip() == "no word begins so"


@pytest.mark.parametrize("count", ["0", "33", "many"])
def test_a_wrong_count_is_a_usage_error(count: str) -> None:
    done = CliRunner().invoke(cli, ["suggest", "a", "--count", count], standalone_mode=True)
    assert done.exit_code == 2
