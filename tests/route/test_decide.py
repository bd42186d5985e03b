"""Who may answer and who does: every rule alone, and every refused target with its reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from miudo.cli.settings import make_settings
from miudo.errors import ConfigError, RequestError
from miudo.route.decide import decide, no_target
from miudo.route.targets import Complexity, Facts, RouteTable, Target, World

SMALL = Target("small", "s.gguf", memory_bytes=10, tokens_per_s=100.0, skip_above=0.5)
LARGE = Target("large", "l.gguf", memory_bytes=100, tokens_per_s=10.0)
CLOUD = Target("cloud", "big", url="https://example.org/v1", leaves=True, tokens_per_s=50.0)
TABLE = RouteTable((SMALL, LARGE, CLOUD), complexity="keywords")
ROOMY = World(free_bytes=1000)
CHAT = Facts("hello", needs=frozenset({"chat"}))
EASY, HARD = Complexity(0.1, "keywords"), Complexity(0.9, "keywords")


def rules(table: RouteTable, facts: Facts, world: World = ROOMY) -> dict[str, str]:
    return {no.target: no.rule for no in decide(table, facts, world, EASY).refused}


def test_without_demands_all_are_permitted_in_the_tables_order() -> None:
    decision = decide(TABLE, CHAT, ROOMY, EASY)
    assert decision.order == ("small", "large", "cloud")
    assert decision.refused == ()


@pytest.mark.parametrize(
    ("facts", "refused"),
    [
        (replace(CHAT, offline=True), {"cloud": "offline"}),
        (replace(CHAT, stays=True), {"cloud": "stays"}),
        (replace(CHAT, max_tokens=100, deadline_s=5.0), {"large": "deadline"}),
        (replace(CHAT, max_tokens=100, deadline_s=1.5), {"large": "deadline", "cloud": "deadline"}),
        (replace(CHAT, needs=frozenset({"completions"})), {"cloud": "protocol"}),
        (replace(CHAT, needs=frozenset({"chat", "logprobs"})), {"cloud": "protocol"}),
    ],
)
def test_a_demand_refuses_those_that_cannot_meet_it(facts: Facts, refused: dict[str, str]) -> None:
    assert rules(TABLE, facts) == refused


def test_the_tables_own_demands_hold_for_every_request() -> None:
    assert rules(replace(TABLE, offline=True), CHAT) == {"cloud": "offline"}
    assert rules(replace(TABLE, stays=True), CHAT) == {"cloud": "stays"}


def test_a_server_on_this_machine_is_neither_the_network_nor_elsewhere() -> None:
    near = Target("near", "big", url="http://127.0.0.1:8080/v1")
    table = RouteTable((SMALL, near), complexity="keywords", offline=True, stays=True)
    assert rules(table, CHAT) == {}


def test_memory_is_asked_of_models_that_are_not_open() -> None:
    tight = World(free_bytes=50)
    assert rules(TABLE, CHAT, tight) == {"large": "memory"}
    assert rules(TABLE, CHAT, replace(tight, open=frozenset({"large"}))) == {}
    assert rules(TABLE, CHAT, World(free_bytes=100)) == {}


def test_what_was_measured_here_goes_before_the_table() -> None:
    facts = replace(CHAT, max_tokens=100, deadline_s=2.5)
    assert rules(TABLE, facts) == {"large": "deadline"}
    fast = World(1000, tokens_per_s={"large": 50.0, "small": 1.0})
    assert rules(TABLE, facts, fast) == {"small": "deadline"}


def test_a_deadline_refuses_what_nobody_measured() -> None:
    table = RouteTable((SMALL, replace(LARGE, tokens_per_s=None)), complexity="keywords")
    facts = replace(CHAT, max_tokens=1, deadline_s=1000.0)
    (no,) = decide(table, facts, ROOMY, EASY).refused
    assert (no.target, no.rule) == ("large", "deadline")
    assert "not measured" in no.reason


def test_licences_and_uses() -> None:
    free = replace(SMALL, licence="Apache-2.0")
    bound = replace(LARGE, licence="CC-BY-NC-4.0", uses=("research",))
    table = RouteTable((free, bound), complexity="keywords")
    assert rules(table, CHAT) == {"large": "licence"}
    assert rules(table, replace(CHAT, use="sales")) == {"large": "licence"}
    assert rules(table, replace(CHAT, use="research")) == {}
    listed = replace(table, licences=("Apache-2.0", "MIT"))
    assert rules(listed, replace(CHAT, use="research")) == {"large": "licence"}
    unstated = RouteTable((replace(free, licence=None), bound), "keywords", licences=("MIT",))
    assert rules(unstated, CHAT) == {"small": "licence", "large": "licence"}


def test_what_is_too_complex_goes_to_the_next_and_the_reason_has_both_numbers() -> None:
    decision = decide(TABLE, CHAT, ROOMY, HARD)
    assert decision.order == ("large", "cloud")
    (no,) = decision.refused
    assert (no.target, no.rule) == ("small", "complexity")
    assert "0.900" in no.reason
    assert "0.500" in no.reason
    at_limit = decide(TABLE, CHAT, ROOMY, Complexity(0.5, "keywords"))
    assert at_limit.order[0] == "small"


def test_the_last_permitted_is_never_too_small() -> None:
    alone = replace(TABLE, targets=(SMALL, CLOUD))
    decision = decide(alone, replace(CHAT, stays=True), ROOMY, HARD)
    assert decision.order == ("small",)


def test_without_text_nobody_is_too_small() -> None:
    assert decide(TABLE, replace(CHAT, text=None), ROOMY, None).order[0] == "small"


def test_where_nobody_may_the_error_names_every_rule() -> None:
    table = RouteTable((CLOUD, replace(LARGE, uses=("research",))))
    decision = decide(table, replace(CHAT, offline=True), ROOMY, None)
    assert decision.order == ()
    error = no_target(decision)
    assert isinstance(error, RequestError)
    for word in ("cloud", "network", "large", "research"):
        assert word in str(error)


def test_a_decision_is_the_same_every_time() -> None:
    facts = replace(CHAT, max_tokens=100, deadline_s=5.0)
    made = [decide(TABLE, facts, ROOMY, HARD).to_json() for _ in range(3)]
    assert made[0] == made[1] == made[2]


GOOD: dict[str, Any] = {"targets": [{"name": "a", "model": "m"}]}


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({}, "targets"),
        ({"targets": []}, "none"),
        ({"targets": [GOOD["targets"][0]] * 2}, "a, a"),
        ({"targets": [{"name": "auto", "model": "m"}]}, "auto"),
        ({"targets": [{"name": "a b", "model": "m"}]}, "a b"),
        ({"targets": [{"name": "a\r\nx-y: z", "model": "m"}]}, "name"),
        ({"targets": [{"name": "é", "model": "m"}]}, "name"),
        ({"targets": [{"name": "a", "model": ""}]}, "model"),
        ({"targets": [{"name": "a", "model": "m", "skip_above": 0.5}]}, "skip_above"),
        ({"targets": [{"name": "a", "model": "m", "accept_above": 1.5}]}, "accept_above"),
        ({"targets": [{"name": "a", "model": "m", "leaves": True}]}, "url"),
        ({"targets": [{"name": "a", "model": "m", "url": "https://e.org/v1"}]}, "leaves"),
        ({"targets": [{"name": "a", "model": "m", "url": "http://127.0.0.1.e.org/"}]}, "leaves"),
        (
            {"targets": [{"name": "a", "model": "m", "url": "http://[::1]:8/v1",
                          "accept_above": 0.5}]},
            "log-probabilities",
        ),
        ({"targets": [{"name": "a", "model": "m", "tokens_per_s": 0.0}]}, "tokens_per_s"),
        ({"targets": [{"name": "a", "model": "m", "memory_bytes": -1}]}, "memory_bytes"),
        ({"targets": [{"name": "a", "model": "m", "odd": 1}]}, "odd"),
        (GOOD | {"confidence": "feeling"}, "feeling"),
        (GOOD | {"on_failure": "shrug"}, "shrug"),
        (GOOD | {"schema": 2}, "2"),
        (GOOD | {"offline": "yes"}, "yes"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_are_refused_by_name(wrong: dict[str, Any], word: str) -> None:
    make_settings(RouteTable, GOOD, where="t.toml")
    with pytest.raises(ConfigError, match=word.replace("[", r"\[")):
        make_settings(RouteTable, wrong, where="t.toml")
