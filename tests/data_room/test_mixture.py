"""Mixtures: whose text is where, how often it comes, and what a recipe may get wrong."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from miudo.data.dedupe import DedupeSettings
from miudo.data.mixture import Part, Source, read_mixture, source_files, stated_licence
from miudo.data.pack import PackSettings, hold_out
from miudo.data.packed import DataSet, PackedTokens
from miudo.data.pipeline import PrepareSettings, prepare
from miudo.data.sources import ReadSettings
from miudo.errors import ConfigError, DataError, MissingError, UsageError
from miudo.records import Record

LINES = ReadSettings(split="line")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    (folder / "cats.txt").write_text("".join(f"{i} cats sat on a mat\n" for i in range(60)))
    (folder / "deep" / "dogs.txt").write_text("".join(f"{i} dogs ran off\n" for i in range(40)))
    (folder / "one.txt").write_text("one document and no more")
    return folder


def settings(root: Path, *sources: Source) -> PrepareSettings:
    return PrepareSettings(
        vocab_size=300,
        root=str(root),
        sources=sources,
        dedupe=DedupeSettings(near=None),
        pack=PackSettings(held_out=0.2, seed=1),
    )


def cats(**changes: object) -> Source:
    return replace(Source("cats", "cats.txt", "CC0-1.0", read=LINES), **changes)


def dogs(**changes: object) -> Source:
    return replace(Source("dogs", "deep/*.txt", "CC-BY-4.0", read=LINES), **changes)


def test_parts_lie_one_after_another_with_licence_and_weight(root: Path, tmp_path: Path) -> None:
    made = prepare([], tmp_path / "out", settings=settings(root, cats(), dogs(weight=2.0)))
    train, held_out = made.parts("train"), made.parts("held_out")
    assert [(p.name, p.weight) for p in train] == [("cats", 1.0), ("dogs", 2.0)]
    assert train[1].start == train[0].tokens
    assert sum(p.tokens for p in train) == made.tokens("train")
    assert all(p.tokens for p in held_out)
    tokens, tokenizer = made.open_split("train"), made.tokenizer()
    assert "dogs" not in tokenizer.decode(tokens._window(0, train[0].tokens - 1))
    assert "cats" not in tokenizer.decode(tokens._window(train[1].start, train[1].tokens - 1))
    listed = made.manifest["splits"]["train"]["parts"]
    assert [p["licence"] for p in listed] == ["CC0-1.0", "CC-BY-4.0"]
    assert sum(p["documents"] for p in listed) == made.documents("train")


def test_the_record_states_all_licences_and_no_path(root: Path, tmp_path: Path) -> None:
    prepare([], tmp_path / "out", settings=settings(root, cats(), dogs()))
    record = Record.read(tmp_path / "out")
    assert record is not None
    assert record.licence == "CC-BY-4.0 AND CC0-1.0"
    assert [s["name"] for s in record.settings["sources"]] == ["cats", "dogs"]
    assert [a.name for a in record.inputs] == ["cats.txt", "dogs.txt"]
    assert str(tmp_path) not in json.dumps(record.to_json())


def test_each_source_holds_out_its_own_share(root: Path, tmp_path: Path) -> None:
    made = prepare([], tmp_path / "out", settings=settings(root, cats(held_out=0.5), dogs()))
    held = made.manifest["splits"]["held_out"]["parts"]
    wanted = sum(hold_out(f"{i} cats sat on a mat", 1) < 0.5 for i in range(60))
    assert held[0]["documents"] == wanted
    wanted = sum(hold_out(f"{i} dogs ran off", 1) < 0.2 for i in range(40))
    assert held[1]["documents"] == wanted


def test_one_document_cannot_be_parted(root: Path, tmp_path: Path) -> None:
    lone = Source("lone", "one.txt", "CC0-1.0")
    with pytest.raises(DataError, match=r"source 'lone'.*held_out = 0"):
        prepare([], tmp_path / "out", settings=settings(root, cats(), lone))
    made = prepare([], tmp_path / "out", settings=settings(root, cats(), replace(lone, held_out=0)))
    assert made.parts("held_out")[1].tokens == 0


def mixed(*weights: float) -> PackedTokens:
    """Parts of 1001 ids each: part p holds p * 1001 and up."""
    ids = np.arange(1001 * len(weights), dtype=np.uint16)
    parts = tuple(Part(f"p{i}", i * 1001, 1001, w) for i, w in enumerate(weights))
    return PackedTokens(ids, sha256="", where="numbers", parts=parts)


def seen(tokens: PackedTokens, steps: range) -> Counter[int]:
    rows = np.concatenate([tokens.batch(3, step, 10, 10) for step in steps])
    assert np.array_equal(rows[:, :-1] // 1001, rows[:, 1:] // 1001)  # no row crosses a border
    return Counter(rows[:, :-1].ravel().tolist())


def test_an_epoch_passes_over_each_part_as_often_as_it_weighs() -> None:
    counts = seen(mixed(1.0, 2.0, 0.5), range(35))  # 100 + 200 + 50 rows of 10
    of = [[counts[p * 1001 + i] for i in range(1001)] for p in range(3)]
    assert sorted(of[0]) == [0] + [1] * 1000
    assert sum(of[1]) == 2000
    assert max(of[1]) == 2
    assert sorted(of[2]) == [0] * 501 + [1] * 500


def test_half_a_pass_is_followed_by_the_other_half() -> None:
    tokens = mixed(1.0, 0.5)
    first, second = seen(tokens, range(15)), seen(tokens, range(15, 30))
    assert all(first[i] + second[i] <= 1 for i in range(1001, 2002))
    assert sum(first[i] + second[i] for i in range(1001, 2002)) == 1000


def test_batches_of_a_mixture_are_a_pure_function() -> None:
    one, two = mixed(1.0, 3.0), mixed(1.0, 3.0)
    assert np.array_equal(one.batch(5, 77, 8, 16), two.batch(5, 77, 8, 16))
    assert not np.array_equal(one.batch(6, 77, 8, 16), two.batch(5, 77, 8, 16))


def test_a_whole_text_is_the_mixture_of_itself() -> None:
    ids = np.arange(1001, dtype=np.uint16)
    plain = PackedTokens(ids, sha256="", where="numbers")
    assert np.array_equal(plain.batch(5, 7, 10, 10), mixed(1.0).batch(5, 7, 10, 10))


def test_absent_text_names_source_path_and_cure(root: Path, tmp_path: Path) -> None:
    for path in ("none.txt", "none/*.txt"):
        with pytest.raises(MissingError, match=r"source 'gone'.*another root") as caught:
            prepare([], tmp_path / "o", settings=settings(root, Source("gone", path, "CC0-1.0")))
        assert "none" in str(caught.value.where)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("values", [{"weight": 0.0}, {"weight": -1.0}, {"weight": float("nan")},
                                    {"held_out": 1.0}, {"licence": " "}, {"name": ""}])  # fmt: skip
def test_a_source_that_means_nothing_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        cats(**values)


def test_two_sources_of_one_name_are_refused(root: Path) -> None:
    with pytest.raises(ConfigError, match="'cats'"):
        source_files([cats(), cats(path="one.txt")], root)


def test_text_is_named_once(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="twice"):
        prepare([root / "one.txt"], tmp_path / "out", settings=settings(root, cats()))


def test_documents_carry_the_number_of_their_source(root: Path) -> None:
    found = list(read_mixture([cats(), dogs()], root))
    assert Counter(d.part for d in found) == {0: 60, 1: 40}


def test_licences_are_joined_as_one_expression() -> None:
    two = [cats(licence="MIT OR Apache-2.0"), dogs(licence="MIT"), dogs(licence="MIT")]
    assert stated_licence(two) == "MIT AND (MIT OR Apache-2.0)"
    assert stated_licence([]) is None


@pytest.mark.parametrize(
    "part",
    [{"name": "x", "tokens": 5, "weight": 0}, {"name": "x", "tokens": -1, "weight": 1}, 7,
     {"name": "x", "tokens": 5, "weight": 1}, {"tokens": 5, "weight": 1}],
)  # fmt: skip
def test_a_damaged_list_of_parts_is_refused(root: Path, tmp_path: Path, part: object) -> None:
    made = prepare([], tmp_path / "out", settings=settings(root, cats()))
    values = json.loads((made.folder / "manifest.json").read_text())
    values["splits"]["train"]["parts"] = [part]
    (made.folder / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match="parts"):
        DataSet.open(made.folder)


def test_an_epoch_of_a_mixture_counts_by_weights() -> None:
    assert mixed(1.0, 1.0).epoch_rows(10) == 200
    assert mixed(1.0, 3.0).epoch_rows(10) == 400
