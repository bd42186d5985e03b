"""Tokenizers, texts and templates that mean harm, made by rules: none gets out, through or on."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from miudo.errors import MiudoError, RequestError, TokenizerError
from miudo.protocol import Message
from miudo.text.chat import ROLES, ChatTemplate, encode_chat, parse_messages
from miudo.text.stream import TextStream
from miudo.text.tokenizer import train_bpe
from miudo.text.tokenizer_json import parse_tokenizer_json

HELLO = [Message("user", "hi")]
GOOD = train_bpe(["the cat sat on the mat"] * 9, vocab_size=280)
SIZE = GOOD.vocab_size
PLAIN = json.loads(GOOD.to_json())
SPECIAL = list(GOOD.special_ids)
WORDS = sorted(PLAIN["model"]["vocab"])
IDS = st.integers(-3, SIZE + 3) | st.sampled_from([1 << 40, 1 << 80, True, 0.5, "7", None])


def broken(edit: Callable[[dict[str, Any]], object]) -> bytes:
    values = json.loads(GOOD.to_json())
    edit(values)
    return json.dumps(values).encode()


@pytest.mark.row("J1")
@settings(max_examples=60)
@given(moved=st.dictionaries(st.sampled_from(WORDS), IDS, min_size=1, max_size=4))
def test_ids_that_do_not_run_from_0_without_a_gap_are_refused(moved: dict[str, Any]) -> None:
    vocab = PLAIN["model"]["vocab"] | moved
    whole = all(type(i) is int for i in vocab.values())
    assume(not whole or sorted(vocab.values()) != list(range(SIZE)))
    with pytest.raises(TokenizerError):
        parse_tokenizer_json(broken(lambda v: v["model"].update(vocab=vocab)))


@pytest.mark.row("J1")
@settings(max_examples=60)
@example(at=0, merge=["", ""])
@given(
    at=st.integers(0, len(PLAIN["model"]["merges"])),
    merge=st.one_of(
        st.lists(st.one_of(st.text("zqx", max_size=3), st.integers(), st.none()), max_size=3),
        st.text("zqx ", max_size=5),
        st.integers(),
        st.none(),
        st.just({"a": "b"}),
    ),
)
def test_merges_of_what_is_not_there_are_refused(at: int, merge: Any) -> None:
    with pytest.raises(TokenizerError, match="merges"):
        parse_tokenizer_json(
            broken(lambda v: v["model"]["merges"].insert(at, merge))
        ).check_merges()


@pytest.mark.row("J2")
@settings(max_examples=40)
@given(
    token=st.one_of(
        st.just(""),
        st.text("ab", max_size=3).map(lambda t: t + "\udfff"),
        st.sampled_from(["x", "é", "👍"]).flatmap(
            lambda c: st.integers(65537 // len(c.encode()) + 1, 90_000).map(lambda n: c * n)
        ),
    )
)
def test_tokens_that_are_empty_huge_or_no_text_are_refused(token: str) -> None:
    with pytest.raises(TokenizerError, match=f"id {SIZE}"):
        parse_tokenizer_json(broken(lambda v: v["model"]["vocab"].update({token: SIZE})))


@pytest.mark.row("J2")
@pytest.mark.slow
def test_a_vocabulary_over_the_limit_is_refused_and_ten_megabytes_are_no_token() -> None:
    vocab = {f"t{i}": i for i in range((1 << 21) + 1)}
    with pytest.raises(TokenizerError, match="2097153 tokens"):
        parse_tokenizer_json(broken(lambda v: v.update(added_tokens=[], model={"vocab": vocab})))
    with pytest.raises(TokenizerError, match="10000000 bytes"):
        parse_tokenizer_json(broken(lambda v: v["model"]["vocab"].update({"x" * 10**7: SIZE})))


TEXTS = {
    "a": "a",
    "spaces": " ",
    "a family": "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d",
    "words": "the cat ",
    "lines": "\n",
    "mixed": "a\t0é日\U0001f44d <|end|>",
}


@pytest.mark.row("J3")
@pytest.mark.parametrize("unit", TEXTS.values(), ids=TEXTS)
def test_long_texts_of_one_kind_come_back(unit: str) -> None:
    text = (unit * 30_000)[:30_000]
    assert GOOD.decode(GOOD.encode(text)) == text


@pytest.mark.row("J3")
@pytest.mark.slow
@pytest.mark.parametrize("unit", TEXTS.values(), ids=TEXTS)
def test_megabytes_take_time_in_proportion(unit: str) -> None:
    def seconds(size: int) -> float:
        text = (unit * size)[:size]
        start = os.times().user  # of all threads; the system's share is that of memory
        GOOD.encode(text)
        return os.times().user - start

    small, large = (min(seconds(n) for _ in range(3)) for n in (2_000_000, 8_000_000))
    assert large < 2.3 * 2.3 * small  # 2.3 a doubling


@pytest.mark.row("J4")
@settings(max_examples=80)
@given(
    parts=st.lists(
        st.one_of(
            st.sampled_from(SPECIAL),
            st.sampled_from([t[:n] for t in SPECIAL for n in (1, 2, len(t) - 1)]),
            st.sampled_from([t[1:] for t in SPECIAL]),
            st.text("ab <|>", max_size=3),
        ),
        max_size=8,
    )
)
def test_nothing_that_is_typed_forges_a_role(parts: list[str]) -> None:
    content = "".join(parts)
    template = ChatTemplate("{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}")
    ids = encode_chat(GOOD, template, [Message("user", content)])
    special = set(GOOD.special_ids.values())
    assert [i for i in ids if i in special] == [
        GOOD.special_ids[t] for t in ("<|user|>", "<|end|>")
    ]
    assert not special & set(GOOD.encode(content))
    assert GOOD.decode(GOOD.encode(content)) == content


@pytest.mark.row("J5")
@settings(max_examples=60)
@given(ids=st.lists(st.one_of(st.integers(-5, SIZE + 5), st.sampled_from([1 << 64, -(1 << 70)]))))
def test_ids_are_in_the_vocabulary_or_refused(ids: list[int]) -> None:
    if all(0 <= i < SIZE for i in ids):
        stream = TextStream(GOOD)
        assert "".join(map(stream.push, ids)) + stream.finish() == GOOD.decode(ids)
        return
    with pytest.raises(RequestError, match="token id"):
        GOOD.decode(ids)


# Ways on from a value, towards what a template must not reach.
ROOTS = ["messages", "messages[0]", "''", "[]", "()", "{}", "1", "range", "namespace()", "self",
         "raise_exception", "joiner", "cycler", "lipsum", "dict", "loop", "caller", "varargs",
         "namespace", "none", "true", "x", "range(2)", "messages[0].get"]  # fmt: skip
NAMES = [
    "__class__",
    "__init__",
    "__globals__",
    "__mro__",
    "__subclasses__",
    "__builtins__",
    "__self__",
    "__func__",
    "__code__",
    "__dict__",
    "gi_frame",
    "f_globals",
    "format",
    "format_map",
    "mro",
    "environment",
    "_TemplateReference__context",
    "append",
    "update",
    "__getitem__",
    "__add__",
    "content",
    "items",
]
WAYS = [
    ".{0}",
    "['{0}']",
    "|attr('{0}')",
    "|map(attribute='{0}')|list",
    ".{0}()",
    "['{0}']()",
    "()",
    "[0]",
    "|list",
    "|string",
    "|items|list",
    "|first",
    "|tojson",
    "~''",
    "|join",
    "*2",
    "|selectattr('{0}')|list",
    "|sort(attribute='{0}')",
    "|map('{0}')|list",
    "[1:]",
    "|default('{{0.{0}}}').format(1)",
    "|join(attribute='{0}')",
    "|unique(attribute='{0}')",
]
STEPS = st.builds(str.format, st.sampled_from(WAYS), st.sampled_from(NAMES))
SIGNS = ("<class", "<function", "<built-in", "<bound", " object at 0x", "<module", "builtins")


@pytest.mark.row("J6")
@settings(max_examples=200)
@given(root=st.sampled_from(ROOTS), steps=st.lists(STEPS, min_size=1, max_size=5))
def test_no_way_leads_from_a_value_to_an_object_of_python(root: str, steps: list[str]) -> None:
    source = "{{ " + root + "".join(steps) + " }}"
    with contextlib.suppress(MiudoError):
        text = ChatTemplate(source).render(HELLO)
        assert not [sign for sign in SIGNS if sign in text], source


LOOPS = ["{%% for i in range(%d) %%}", "{%% for i in range(%d) %%}{{ i }}",
         "{%% for i in [1] * %d %%}", "{%% for i in ('a' * %d) %%}"]  # fmt: skip


@pytest.mark.row("J7")
@settings(max_examples=8)
@given(loops=st.lists(st.sampled_from(LOOPS), min_size=2, max_size=6), n=st.integers(400, 99_999))
def test_loops_in_loops_are_stopped(loops: list[str], n: int) -> None:
    template = ChatTemplate("".join(loop % n for loop in loops) + "{% endfor %}" * len(loops))
    with pytest.raises(RequestError):
        template.render(HELLO)


# What may lie in itself, or follow itself, without end.
NESTS: dict[str, tuple[str, str, str]] = {
    "if": ("{% if 1 %}", "x", "{% endif %}"),
    "elif": ("{% if 0 %}{% endif %}", "", ""),
    "for": ("{% for a in messages %}", "x", "{% endfor %}"),
    "set": ("{% set a %}", "x", "{% endset %}"),
    "macro": ("{% macro m() %}", "x", "{% endmacro %}"),
    "filter": ("{% filter upper %}", "x", "{% endfilter %}"),
    "call": ("{% call range(1) %}", "x", "{% endcall %}"),
    "generation": ("{% generation %}", "x", "{% endgeneration %}"),
    "with": ("{% with %}", "x", "{% endwith %}"),
    "parentheses": ("{{ ", "(1)", " }}"),
}
WRITTEN: dict[str, Callable[[int], str]] = {
    **{k: (lambda n, p=p: p[0] * n + p[1] + p[2] * n) for k, p in NESTS.items()},
    "parentheses": lambda n: "{{ " + "(" * n + "1" + ")" * n + " }}",
    "lists": lambda n: "{{ " + "[" * n + "]" * n + " }}",
    "dicts": lambda n: "{{ " + "{1:" * n + "1" + "}" * n + " }}",
    "not": lambda n: "{{ " + "not " * n + "1 }}",
    "minus": lambda n: "{{ " + "-" * n + "1 }}",
    "either": lambda n: "{{ " + "1 if 0 else " * n + "2 }}",
    "elifs": lambda n: "{% if 0 %}" + "{% elif 0 %}" * n + "{% endif %}",
    "filters": lambda n: "{{ 'a'" + "|upper" * n + " }}",
    "attributes": lambda n: "{{ messages" + ".a" * n + " }}",
    "calls": lambda n: "{{ range" + "(1)" * n + " }}",
    "sums": lambda n: "{{ 1" + "+1" * n + " }}",
    "powers": lambda n: "{{ 1" + "**1" * n + " }}",
    "comparisons": lambda n: "{{ 1" + "<2" * n + " }}",
    "ands": lambda n: "{{ 1" + " and 1" * n + " }}",
    "joined": lambda n: "{{ 'a'" + "~'a'" * n + " }}",
    "names": lambda n: "".join(f"{{{{ a{i} }}}}" for i in range(n)),
    "arguments": lambda n: "{{ range(" + "1," * n + ") }}",
    "parameters": lambda n: "{% macro m(a" + ",a".join(map(str, range(n))) + ") %}{% endmacro %}",
    "digits": lambda n: "{{ " + "9" * n + " }}",
    "exponents": lambda n: "{{ 1e" + "9" * n + " }}",
}  # fmt: skip


@pytest.mark.row("J8")
@pytest.mark.parametrize("n", [90, 700, 5000])
@pytest.mark.parametrize("written", WRITTEN.values(), ids=WRITTEN)
def test_what_nests_without_end_is_refused_or_rendered(
    written: Callable[[int], str], n: int
) -> None:
    with contextlib.suppress(TokenizerError, RequestError):
        ChatTemplate(written(n)).render(HELLO)


TARGETS = ["'/etc/passwd'", "'x'", "x", "['a', 'b']", "messages[0].content", "('/etc/' ~ 'x')"]
PULLS = [
    "include %s", "include %s ignore missing", "include %s with context", "import %s as a",
    "import %s as a with context", "from %s import b", "from %s import b as c", "extends %s",
]  # fmt: skip
PLACES = [
    "{%% %s %%}", "{%%- %s -%%}", "{%% if 0 %%}{%% %s %%}{%% endif %%}",
    "{%% macro m() %%}{%% %s %%}{%% endmacro %%}", "{%% for i in [] %%}{%% %s %%}{%% endfor %%}",
]  # fmt: skip


@pytest.mark.row("J9")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("pull", PULLS)
def test_no_template_pulls_in_another(pull: str, place: str) -> None:
    for target in TARGETS:
        with pytest.raises(TokenizerError, match="chat template"):
            ChatTemplate(place % (pull % target))


NO_MESSAGES = st.none() | st.integers() | st.text(max_size=3) | st.lists(st.none(), max_size=2)
NO_ROLES = st.text(max_size=6).filter(lambda role: role not in ROLES) | st.lists(st.text())
NO_TEXTS = st.none() | st.integers() | st.lists(st.text()) | st.dictionaries(st.text(), st.text())


@pytest.mark.row("J12")
@settings(max_examples=50)
@given(
    at=st.integers(0, 3),
    bad=NO_MESSAGES
    | st.fixed_dictionaries({"role": NO_ROLES, "content": st.text()})
    | st.fixed_dictionaries({"role": st.just("user"), "content": NO_TEXTS})
    | st.fixed_dictionaries({"role": st.just("user"), "content": st.text(), "more": st.text()})
    | st.sampled_from([{"role": "user"}, {"content": "x"}, {}, {1: 2}]),
)
def test_a_message_that_cannot_be_is_named_by_its_number(at: int, bad: Any) -> None:
    messages: list[Any] = [{"role": "user", "content": "x"}] * 4
    messages[at] = bad
    with pytest.raises(RequestError, match=rf"messages\[{at}\]"):
        parse_messages(messages)
