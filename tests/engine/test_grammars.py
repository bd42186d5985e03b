"""Formal languages over tokens: every answer keeps to them, and what cannot be kept is refused."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import psutil
import pytest
from jsonschema import Draft202012Validator

from miudo.engine.calling import calling
from miudo.engine.grammars import Grammars, Language, any_of, expression, json_of, lark
from miudo.engine.schemas import closed
from miudo.errors import MissingError, RequestError
from miudo.text.calls import CallReader
from miudo.text.tokenizer import TextTokenizer, train_bpe
from miudo.text.tools import CallForm, Tool, call_form

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from random_schemas import random_schema

TEXT = ['{"name": "a b", "value": [1, 2.5, true, null]}, red <tool_call>\n</tool_call> olá'] * 4
TOKENIZER = train_bpe(TEXT, vocab_size=330)
END = TOKENIZER.special_ids["<|end|>"]
SIZE = 400  # more than there are tokens: rows that pad a model's table
MOST = 160


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(TOKENIZER, SIZE, (END,))


def say(
    grammars: Grammars,
    language: Language,
    seed: int = 0,
    *,
    begin: str = "",
    tokenizer: TextTokenizer = TOKENIZER,
) -> tuple[str, bool]:
    """Draws ids that the language allows, soon closing what is open; whether it came to an end."""
    grammar, random = grammars.begin(language), Random(seed)  # noqa: S311
    ids: list[int] = []
    script = tokenizer.encode(begin)
    for _ in range(MOST):
        mask = grammar.mask()
        assert mask.shape == (SIZE,)
        assert not mask[tokenizer.vocab_size :].any()
        allowed = np.flatnonzero(mask).tolist()
        closing = [i for i in allowed if tokenizer.token_bytes(i)[:1] in (b'"', b"}", b"]")]
        token = random.choice((closing if ends(random) else None) or allowed)
        if END in allowed and ends(random):
            token = END
        token = script.pop(0) if script else token
        assert mask[token]
        ids.append(token)
        if grammar.take(token):
            return tokenizer.decode(ids), True
    return tokenizer.decode(ids), False


def ends(random: Random) -> bool:
    return random.random() < 0.5


@pytest.mark.row("E11")
def test_every_answer_is_valid_cut_by_length_or_refused_by_name(grammars: Grammars) -> None:
    valid, refused, cut = 0, list[str](), 0
    for seed in range(300):
        schema = random_schema(Random(seed))  # noqa: S311
        try:
            text, ended = say(grammars, json_of(schema), seed)
        except RequestError as error:
            refused.append(str(error))
            continue
        if not ended:
            cut += 1
            continue
        Draft202012Validator(schema).validate(json.loads(text))
        valid += 1
    assert valid > 150
    assert cut < 80
    assert len(refused) > 30
    assert all("schema" in message for message in refused)


def test_a_validator_would_have_seen_it(grammars: Grammars) -> None:
    """Control: what one schema's grammar says is no answer to another."""
    text, ended = say(grammars, json_of({"type": "array", "maxItems": 2}))
    assert ended
    assert not Draft202012Validator({"type": "object"}).is_valid(json.loads(text))


@pytest.mark.row("H17")
@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"not": {}}, "schema.not"),
        ({"properties": {"a": {"uniqueItems": True}}}, "schema.properties.a.uniqueItems"),
        ({"requird": ["a"]}, "schema.requird"),
        ({"x-guidance": {"lenient": True}, "not": {}}, "x-guidance"),
        ({"$ref": "https://example.org/s.json"}, "schema.$ref"),
        ({"$ref": "file:///etc/passwd"}, "schema.$ref"),
        ({"$ref": "#"}, "nothing can follow"),
        ({"$ref": "#/$defs/none"}, "none"),
        ({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"$ref": "#/$defs/a"}}}, "follow"),
        ({"type": "array", "minItems": 10**9}, "schema.minItems"),
        ({"type": "string", "minLength": -1}, "schema.minLength"),
        ({"enum": list(range(10**5))}, "schema"),
        ({"enum": []}, "schema"),
        ({"type": "frog"}, "frog"),
        ({"type": "string", "pattern": "("}, "unclosed"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-ahead"),
        ({"type": "string", "format": "nonsense"}, "nonsense"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "minimum"),
        ({"oneOf": [{"type": "string"}, {"type": "string"}]}, "oneOf"),
        ({"properties": {"a": 5}}, "schema.properties.a"),
        ({"anyOf": []}, "schema.anyOf"),
        (False, "schema"),
        ("{}", "schema"),
        (7, "schema"),
    ],
)
def test_what_cannot_be_held_to_is_refused_by_name(
    grammars: Grammars, schema: Any, named: str
) -> None:
    with pytest.raises(RequestError, match=re.escape(named)):
        grammars.begin(json_of(schema))


@pytest.mark.row("H17")
def test_a_schema_too_deep_is_refused_before_anything_recurses(grammars: Grammars) -> None:
    def nested(depth: int) -> Any:
        schema: Any = {"type": "string"}
        for _ in range(depth):
            schema = {"items": schema}
        return schema

    grammars.begin(json_of(nested(40)))
    for depth in (60, 900, 10_000):
        with pytest.raises(RequestError, match=r"nested deeper|characters"):
            json_of(nested(depth))


@pytest.mark.parametrize("pattern", ["(a+)+b", "[0-9]{3}/x", r"a\/b", "(on|off)", "a\nb"])
def test_expressions_match_the_whole_answer(grammars: Grammars, pattern: str) -> None:
    for seed in range(5):
        text, ended = say(grammars, expression(pattern), seed)
        assert not ended or re.fullmatch(pattern.replace(r"\/", "/"), text)


def test_choices_and_grammars(grammars: Grammars) -> None:
    texts = ["yes", "no", 'a "b"\n', "é"]
    assert {say(grammars, any_of(texts), seed)[0] for seed in range(30)} == set(texts)
    text, ended = say(grammars, lark('start: "a"+ ("b" | "c")'))
    assert ended
    assert re.fullmatch("a+[bc]", text)
    for source in (
        "start: x",
        "",
        "(" * 70_000,
        '%llguidance {"x": 1}\nstart: "a"',
        "start: (" * 99,
    ):
        with pytest.raises(RequestError, match="grammar"):
            grammars.begin(lark(source))


def test_without_an_end_token_a_language_ends_by_itself() -> None:
    endless = Grammars(TOKENIZER, SIZE, ())
    text, ended = say(endless, json_of({"enum": ["red", "green"]}))
    assert ended
    assert json.loads(text) in ("red", "green")


def test_a_dead_end_is_told_and_stays(grammars: Grammars) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/a"}},
        "required": ["a"],
        "$defs": {"a": {"$ref": "#/$defs/a"}},
    }
    grammar = grammars.begin(json_of(schema, "here"))
    for token in TOKENIZER.encode('{"a":'):
        assert grammar.mask()[token]
        assert not grammar.take(token)
    for _ in range(2):
        with pytest.raises(RequestError, match=r"here: .*nothing can follow"):
            grammar.mask()


def test_answers_of_one_language_do_not_know_of_each_other(grammars: Grammars) -> None:
    language = expression("ab|cd")
    one, other = grammars.begin(language), grammars.begin(language)
    (a,) = TOKENIZER.encode("a")[:1]
    assert one.mask()[a]
    one.take(a)
    assert not one.mask()[a]
    assert other.mask()[a]


@pytest.mark.row("H18")
def test_what_is_kept_of_languages_is_bounded() -> None:
    """Four hundred languages that all stayed would be 66 MB."""
    grammars = Grammars(TOKENIZER, SIZE, (END,), kept=16)
    process = psutil.Process()

    def grown(numbers: Sequence[int]) -> int:
        for i in numbers:
            names = {f"p{i}_{j}": {"type": "string", "maxLength": i % 50} for j in range(8)}
            grammars.begin(json_of({"type": "object", "properties": names}))
        return process.memory_info().rss

    first = grown(range(100))
    assert len(grammars) == 16
    assert grown(range(100, 500)) - first < 8 << 20
    assert len(grammars) == 16


def test_without_the_package_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingError, match="pip install llguidance"):
        Grammars(TOKENIZER, SIZE, (END,)).begin(expression("a"))


WEATHER = Tool(
    "weather",
    "Tells the weather.",
    {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 6}, "days": {"enum": [1, 2]}},
        "required": ["city", "days"],
        "additionalProperties": False,
    },
)
NOW = Tool("now", "", {"type": "object", "properties": {}, "additionalProperties": False})
TOOLS = [(WEATHER, "tools[0]"), (NOW, "tools[1]")]
MARKS = (
    "",
    "tools <tool_call>",
    "tools [TOOL_CALLS]",
    "tools <|tool_call|>",
    "tools <|/tool_call|>",
)


def read(form: CallForm, pieces: Sequence[str]) -> tuple[str, list[tuple[str, str]]]:
    reader = CallReader(form)
    events = [e for piece in pieces for e in reader.push(piece)] + reader.finish()
    text = "".join(e.text for e in events if e.call is None)
    calls = []
    for i in range(reader.calls):
        (name,) = [e.text for e in events if e.call == i and e.is_name]
        calls.append((name, "".join(e.text for e in events if e.call == i and not e.is_name)))
    return text, calls


@pytest.mark.parametrize("source", [*MARKS, "tools Environment: ipython"])
@pytest.mark.parametrize("several", [True, False])
def test_calls_that_must_be_are_calls(grammars: Grammars, source: str, several: bool) -> None:
    form = call_form(source)
    language = calling(form, TOOLS, TOKENIZER.special_ids, must=True, several=several)
    ended_ones = 0
    for seed in range(8):
        text, ended = say(grammars, language, seed)
        said, calls = read(form, [text])
        assert read(form, list(text)) == (said, calls)
        if not ended:
            continue
        ended_ones += 1
        assert not said
        assert calls
        assert several or len(calls) == 1
        for name, arguments in calls:
            tool = {"weather": WEATHER, "now": NOW}[name]
            Draft202012Validator(dict(tool.parameters)).validate(json.loads(arguments))
    assert ended_ones


@pytest.mark.parametrize("source", MARKS)
def test_text_is_free_until_a_call_begins(grammars: Grammars, source: str) -> None:
    form = call_form(source)
    language = calling(form, TOOLS, TOKENIZER.special_ids, must=False, several=True)
    for seed in range(4):
        text, ended = say(grammars, language, seed, begin="olá {1} <tool\n" + form.open)
        said, calls = read(form, [text])
        assert said == "olá {1} <tool"
        assert not ended or calls
    text, ended = say(grammars, language, 1, begin="free")
    assert text.startswith("free")


def test_markers_that_are_special_tokens_are_drawn_as_such() -> None:
    special = ("<|end|>", "<|tool_call|>", "<|/tool_call|>")
    tokenizer = train_bpe(TEXT, vocab_size=330, special=special)
    form = call_form("tools <|/tool_call|>")
    language = calling(form, TOOLS[1:], tokenizer.special_ids, must=True, several=False)
    grammar = Grammars(tokenizer, SIZE, (0,)).begin(language)
    ids = [1, *tokenizer.encode('[{"name": "now", "arguments": {}}]'), 2]
    for token in ids[:-1]:
        assert grammar.mask()[token]
        assert not grammar.take(token)
    assert np.flatnonzero(grammar.mask()).tolist() == [2]
    assert grammar.take(2)


def test_templates_with_other_calls_are_refused() -> None:
    for source in ("tools <tool_call><function=", "tools and nothing else"):
        with pytest.raises(RequestError, match="form that is not read"):
            call_form(source)
    assert call_form("no such word").open == "<tool_call>\n"


@pytest.mark.parametrize(
    ("schema", "is_closed"),
    [
        ({"properties": {"a": {}}}, True),
        ({"properties": {"a": {}}, "required": ["a"]}, True),
        ({"properties": {"a": {}}, "required": ["b"]}, False),
        ({"properties": {"a": {}}, "required": 5}, False),
        ({"properties": {"a": {}}, "required": [{}]}, False),
        ({"properties": {"a": {}}, "additionalProperties": True}, False),
        ({"properties": {"a": {}}, "allOf": [{"properties": {"b": {}}}]}, False),
        ({"properties": []}, False),
        ({"type": "object"}, False),
        (True, False),
    ],
)
def test_only_what_leaves_other_names_open_is_closed(schema: Any, is_closed: bool) -> None:
    expected = {**schema, "additionalProperties": False} if is_closed else schema
    assert closed(schema) == expected
