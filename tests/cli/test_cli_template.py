"""`--chat-template` and `miudo show --template`: named, a file's, or the model's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from miudo.cli.main import cli
from miudo.text.templates import BUILT_IN

TINY = str(Path(__file__).parents[1] / "data" / "tiny")  # it carries no template


def miudo(*arguments: str) -> Result:
    return CliRunner().invoke(cli, [*arguments])


def test_a_model_without_a_template_says_so_and_guesses_none() -> None:
    told = json.loads(miudo("show", TINY, "--template", "--json").output)
    assert told["chat_template"] is None
    assert told["sample"] is None
    assert all(name in told["refusal"] for name in BUILT_IN)
    assert miudo("show", TINY, "--template").output.startswith("no sample: ")


def test_a_named_template_is_shown_with_a_sample() -> None:
    told = json.loads(
        miudo("show", TINY, "--template", "--chat-template", "chatml", "--json").output
    )
    assert told["chat_template"] == BUILT_IN["chatml"]
    assert told["sample"].endswith("How are you?<|im_end|>\n<|im_start|>assistant\n")
    text = miudo("show", TINY, "--template", "--chat-template", "chatml").output
    assert text == f"template\n{told['chat_template']}\n\nsample\n{told['sample']}\n"


def test_a_file_s_template_that_refuses_the_sample(tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{{ raise_exception('not today') }}", encoding="utf-8")
    told = miudo("show", TINY, "--template", "--chat-template", str(tmp_path / "t.jinja"))
    assert told.exit_code == 0
    assert "not today" in told.output


def test_run_puts_the_prompt_into_the_chosen_template(tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("Era uma vez {{ messages[0].content }}", encoding="utf-8")
    greedy = ("--max-tokens", "8", "--temperature", "0", "--threads", "1", "--json")
    plain = miudo("run", TINY, "--prompt", "Era uma vez um gato", *greedy)
    chosen = miudo(
        "run", TINY, "--prompt", "um gato", "--chat-template", str(tmp_path / "t.jinja"), *greedy
    )
    assert json.loads(chosen.output)["text"] == json.loads(plain.output)["text"]
    bare = miudo("run", TINY, "--prompt", "um gato", *greedy)
    assert json.loads(bare.output)["text"] != json.loads(plain.output)["text"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("run", TINY, "hi there", "--chat-template", "zephir"), "'zephir' is no template"),
        (("complete", TINY, "hi there", "--chat-template", "zephyr"), "No such option"),
        (("show", TINY, "--chat-template", "zephyr"), "Give --template too"),
        (("show", TINY, "--template", "--verify"), "two questions"),
    ],
)
def test_choices_that_mean_nothing_are_refused(arguments: tuple[str, ...], says: str) -> None:
    result = miudo(*arguments)
    assert result.exit_code == 2
    assert says in result.output
