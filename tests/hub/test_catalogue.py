"""The catalogue's data are whole, a name is one repository, filters do what they say."""

from __future__ import annotations

import re

import pytest

from miudo.errors import UsageError
from miudo.hub.catalogue import STRUCTURES, Entry, load_catalogue
from miudo.hub.licences import Licence, restriction_of
from miudo.hub.shown import entries_text, entry_json
from miudo.names import HubRef, StoreRef, parse_reference

CATALOGUE = load_catalogue()
ENTRIES = CATALOGUE.entries
FIELDS = {"licence", "languages", "hub", "max_positions", "d_ff"}
# The rows that users were promised, by series and the sizes of each.
PROMISED = {
    "gpt2": 4, "cerebras-gpt": 7, "lamini-gpt": 3, "bloom": 5, "galactica": 3, "pythia": 10,
    "llama3.1": 1, "llama3.2": 2, "tinyllama": 1, "mobilellama": 2, "fox-1": 1, "smollm2": 3,
    "qwen2": 3, "qwen2.5": 4, "qwen3": 4, "mistral": 1, "mistral-nemo": 1, "phi3.5": 1,
    "phi4-mini": 1, "stablelm-zephyr": 1, "gemma2": 3, "gemma3": 2, "minicpm": 2, "minicpm3": 1,
    "openelm": 4, "dclm": 1, "granite3.1": 2, "olmo2": 3, "smollm3": 1,
}  # fmt: skip


def test_all_rows_are_there() -> None:
    found = [entry.name for entry in ENTRIES]
    assert {name: found.count(name) for name in found} == PROMISED
    assert {entry.family for entry in ENTRIES} == STRUCTURES.keys()


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.reference)
def test_every_cell_is_filled_and_every_claim_has_its_page(entry: Entry) -> None:
    assert parse_reference(entry.reference) == StoreRef(entry.name, entry.tag)
    assert parse_reference(str(entry.hub)) == entry.hub
    assert entry.base is None or parse_reference(str(entry.base)) == entry.base
    assert entry.languages
    assert entry.good_at
    for claim in entry.good_at:
        assert re.fullmatch(r"https://[\w./~-]+", claim.source)
        assert 5 < len(claim.claim) < 120
    assert set(entry.unconfirmed) <= FIELDS
    shape = entry.shape
    assert all(h % k == 0 for h, k in zip(shape.n_heads, shape.n_kv_heads, strict=True))
    # Rows of whole blocks, or the bits a weight would be others.
    assert shape.d_model % 32 == 0
    assert all(width % 32 == 0 for width in shape.d_ff)
    name = float(re.sub(r"[mb]$", "", entry.tag)) * (1e9 if entry.tag[-1] == "b" else 1e6)
    assert entry.size.parameters == pytest.approx(name, rel=0.5)


def test_names_and_repositories_are_each_of_one_model() -> None:
    names = [entry.reference for entry in ENTRIES]
    repositories = [r for e in ENTRIES for r in (e.hub, e.base) if r is not None]
    assert len(set(names)) == len(names)
    assert len(set(repositories)) == len(repositories)
    for entry in ENTRIES:
        assert CATALOGUE.find(StoreRef(entry.name, entry.tag)) == entry.hub
        assert CATALOGUE.of_repository(entry.hub.repo_id) == entry
        assert CATALOGUE.name_of(entry.hub) == entry.reference
        if entry.base is not None:
            assert CATALOGUE.find(StoreRef(entry.name, f"{entry.tag}-base")) == entry.base
            assert CATALOGUE.name_of(entry.base) == f"{entry.reference}-base"


@pytest.mark.parametrize("licence", CATALOGUE.licences.values(), ids=lambda licence: licence.id)
def test_a_licence_that_restricts_says_how_in_words(licence: Licence) -> None:
    assert licence.commercial in ("yes", "conditions", "no")
    assert (licence.restriction is None) == (licence.commercial == "yes")
    sentence = restriction_of(licence, "org/name")
    if sentence is not None:
        assert licence.id in sentence
        assert str(licence.url) in sentence
    assert re.fullmatch(r"(LicenseRef-)?[A-Za-z0-9.-]+", licence.id)


def test_a_name_of_several_sizes_asks_which() -> None:
    assert CATALOGUE.find(StoreRef("nobody")) is None
    assert CATALOGUE.find(StoreRef("mistral-nemo")) == HubRef(
        "mistralai", "Mistral-Nemo-Instruct-2407"
    )
    with pytest.raises(UsageError, match=r"comes in sizes.*qwen2\.5:0\.5b, .*qwen2\.5:0\.5b-base"):
        CATALOGUE.find(StoreRef("qwen2.5"))
    with pytest.raises(UsageError, match=r"has no tag '9b'.*gemma3:270m"):
        CATALOGUE.find(StoreRef("gemma3", "9b"))


def test_filters_narrow_and_say_what_they_know() -> None:
    commercial = CATALOGUE.chosen(licence="commercial")
    permissive = CATALOGUE.chosen(licence="permissive")
    assert set(permissive) < set(commercial) < set(ENTRIES)
    names = {entry.reference for entry in commercial}
    assert {"gemma2:2b", "llama3.2:1b"} <= names
    assert not names & {"lamini-gpt:774m", "galactica:1.3b", "qwen2.5:3b", "stablelm-zephyr:3b"}
    assert {e.licence.id for e in CATALOGUE.chosen(licence="mit")} == {"MIT"}
    assert {e.name for e in CATALOGUE.chosen(task="science")} == {"galactica"}
    with pytest.raises(UsageError, match="Say one of chat, code"):
        CATALOGUE.chosen(task="cooking")
    with pytest.raises(UsageError, match=r"Say one of commercial, permissive, Apache-2\.0"):
        CATALOGUE.chosen(licence="gpl")


@pytest.mark.parametrize("budget", [0, 10**8, 10**9, 4 * 10**9, 10**12])
def test_what_fits_fits_with_keys_and_values(budget: int) -> None:
    fitting = CATALOGUE.chosen(budget=budget, context=4096)
    for entry in ENTRIES:
        precision = entry.fits(budget, 4096)
        assert (precision is None) == (entry not in fitting)
        if precision is not None:
            assert entry.weights_bytes()[precision] + entry.kv_bytes(4096) <= budget
    assert len(fitting) == (len(ENTRIES) if budget == 10**12 else len(fitting))


def test_the_table_shows_every_entry_with_its_licence_and_marks_what_is_not_sure() -> None:
    text = entries_text(ENTRIES)
    for entry in ENTRIES:
        assert f" {entry.reference} " in text
        assert entry.licence.id in text
        assert all(claim.source in text for claim in entry.good_at)
    assert "3b: LicenseRef-Qwen-Research?, no commercial use." in text
    assert "LicenseRef-StabilityAI-Non-Commercial?" in text
    values = entry_json(ENTRIES[0], 100)
    assert values["kv_cache"] == {"context": 100, "bytes": ENTRIES[0].kv_bytes(100)}
    assert values["memory_method"] == "computed from the shape"
