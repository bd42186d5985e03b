"""Files of benchmarks become samples, and what is wrong with them is named."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from miudo.data.pack import hold_out
from miudo.errors import ConfigError, DataError, MissingError, MiudoError, UsageError
from miudo.evaluate.tasks.catalogue import TASKS, find_tasks
from miudo.evaluate.tasks.labels import is_test
from miudo.evaluate.tasks.last_word import passages_of
from miudo.evaluate.tasks.task import (
    LabelSettings,
    LastWordSettings,
    Sample,
    Source,
    TaskData,
    TaskSettings,
)

QUESTION = {
    "id": "q1",
    "question": "What is wet? ",
    "choices": {"A": "sand", "B": "water", "C": "fire"},
    "answer": "B",
}
EXAM = {
    "id": "ENEM_1",
    "context": "Um texto.",
    "question": "O que é?",
    "options": ["um", "dois", "três", "quatro", "cinco"],
    "label": "c",
    "exam": "2022",
    "has_associated_images": False,
}


def lines(path: Path, *records: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(record) + "\n" for record in records).encode()
    packed = {".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)
    path.write_bytes(packed(content))
    return path


def load(task: str, *paths: Path, texts: tuple[str, ...] = (), **settings: Any) -> TaskData:
    return TASKS[task].load(Source(paths, texts), TaskSettings(**settings))


def test_an_unknown_task_is_told_the_nearest() -> None:
    assert [task.name for task in find_tasks(["mmlu", "blimp", "mmlu"])] == ["mmlu", "blimp"]
    with pytest.raises(UsageError, match=r"'arc_eazy'.*Did you mean 'arc_easy'"):
        find_tasks(["blimp", "arc_eazy"])
    with pytest.raises(UsageError, match="Known are blimp, hellaswag"):
        find_tasks(["zzzz"])


def test_questions_are_asked_as_the_field_asks_them(tmp_path: Path) -> None:
    lines(tmp_path / "deep/er/arc_easy_dev.jsonl.xz", QUESTION)
    found = load("arc_easy", tmp_path)
    assert found.samples == [
        Sample(
            "q1",
            "Question: What is wet?\nAnswer:",
            ("sand", "water", "fire"),
            1,
            text="What is wet? water",
        )
    ]
    assert found.pool is found.samples


@pytest.mark.parametrize(
    ("choices", "answer"),
    [
        ({"1": "sand", "2": "water"}, "2"),
        ({"label": ["A", "B"], "text": ["sand", "water"]}, "B"),
        (["sand", "water"], "B"),
        (["sand", "water"], 1),
    ],
)
def test_choices_come_in_three_shapes(tmp_path: Path, choices: Any, answer: Any) -> None:
    lines(tmp_path / "csqa_train.jsonl", QUESTION | {"choices": choices, "answer": answer})
    (sample,) = load("csqa", tmp_path).samples
    assert (sample.choices, sample.gold) == (("sand", "water"), 1)


def test_the_split_to_score_and_the_one_for_examples(tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        lines(tmp_path / f"arc_easy_{split}.jsonl", QUESTION | {"id": split})
    found = load("arc_easy", tmp_path)
    assert [s.id for s in found.samples] == ["test"]
    assert [s.id for s in found.pool] == ["train"]
    assert [Path(name).name for name in found.files] == [
        "arc_easy_test.jsonl", "arc_easy_train.jsonl",
    ]  # fmt: skip
    (tmp_path / "arc_easy_train.jsonl").unlink()
    assert [s.id for s in load("arc_easy", tmp_path).pool] == ["dev"]
    # The answers to this one's test questions are not public.
    for split in ("dev", "test"):
        lines(tmp_path / f"csqa_{split}.jsonl", QUESTION | {"id": split})
    assert [s.id for s in load("csqa", tmp_path).samples] == ["dev"]


def test_subjects_have_headers(tmp_path: Path) -> None:
    record = {"subject": "high_school_biology", "question": "Q", "choices": ["x", "y"]}
    lines(tmp_path / "mmlu_dev.jsonl", record | {"answer": "A"})
    (sample,) = load("mmlu", tmp_path).samples
    assert sample.id == "mmlu_dev/1"
    assert sample.group == "high_school_biology"
    assert sample.header == (
        "The following are questions (with answers) about high school biology.\n\n"
    )


@pytest.mark.parametrize(
    ("change", "name"),
    [({"id": 0}, "0"), ({"id": ""}, "arc_easy_dev/1"), ({"id": None}, "arc_easy_dev/1")],
)
def test_an_id_may_be_a_number_or_none(tmp_path: Path, change: dict[str, Any], name: str) -> None:
    lines(tmp_path / "arc_easy_dev.jsonl", QUESTION | change)
    lines(tmp_path / "enem_1.jsonl", EXAM | change)
    assert load("arc_easy", tmp_path).samples[0].id == name
    assert load("enem", tmp_path).samples[0].id == name.replace("arc_easy_dev", "enem_1")


def test_an_empty_subject_is_none(tmp_path: Path) -> None:
    for subject in ("", " ", None):
        lines(tmp_path / "mmlu_dev.jsonl", QUESTION | {"subject": subject})
        (sample,) = load("mmlu", tmp_path).samples
        assert (sample.group, sample.header) == ("", "")
    lines(tmp_path / "mmlu_dev.jsonl", QUESTION | {"subject": 3})
    with pytest.raises(DataError, match="'subject' is 3"):
        load("mmlu", tmp_path)


def test_blimp_is_every_file_of_its_folder(tmp_path: Path) -> None:
    pair = {"sentence_good": "He runs.", "sentence_bad": "He run."}
    lines(tmp_path / "blimp/b.jsonl", pair, pair)
    lines(tmp_path / "blimp/a.jsonl.gz", pair)
    lines(tmp_path / "other/c.jsonl", {"x": 1})
    (tmp_path / "blimp/.hidden.jsonl").write_text("{")
    found = load("blimp", tmp_path)
    assert [(s.id, s.group) for s in found.samples] == [("a/0", "a"), ("b/0", "b"), ("b/1", "b")]
    assert found.samples[0].choices == ("He runs.", "He run.")
    assert load("blimp", tmp_path / "blimp").samples == found.samples


def test_hellaswag_comes_joined_or_in_three_fields(tmp_path: Path) -> None:
    endings = ["he [step] runs", "it  ends."]
    lines(
        tmp_path / "hellaswag_val.jsonl",
        {"ctx": "Roof: A man. he", "label": 1, "endings": endings},
        {"activity_label": "Roof", "ctx_a": "A man [title] is.", "ctx_b": "he", "label": "0",
         "endings": endings},
    )  # fmt: skip
    joined, parted = load("hellaswag", tmp_path).samples
    assert joined.prompt == "Roof: A man. he"
    assert joined.choices == ("he runs", "it ends.")
    assert (joined.gold, parted.gold) == (1, 0)
    assert parted.prompt == "Roof: A man. is. He"


def test_hellaswag_takes_the_joined_context_where_its_second_half_is_absent(
    tmp_path: Path,
) -> None:
    record = {"activity_label": "Roof", "label": 0, "endings": ["a", "b"]}
    lines(
        tmp_path / "hellaswag_val.jsonl",
        record | {"ctx": "A man. he"},
        record | {"ctx": "Roof: A man. he", "ctx_a": "A man."},
    )
    assert [s.prompt for s in load("hellaswag", tmp_path).samples] == ["Roof: A man. he"] * 2


def test_exam_questions_that_need_pictures_are_counted(tmp_path: Path) -> None:
    records = [
        EXAM,
        EXAM | {"has_associated_images": True},
        EXAM | {"options": []},
        EXAM | {"options": ["A", "B", "C", "D", "E"]},
        EXAM | {"options": ["A", "B - - +", "C A B", "D B", "E x"]},
        EXAM | {"context": "", "label": "A"},
        EXAM | {"question": ""},
        EXAM | {"options": ["A casa", "B bola", "C mesa", "D rua", "E sol"]},
    ]
    (tmp_path / "enem_2022.json").write_text(json.dumps(records), encoding="utf-8")
    found = load("enem", tmp_path)
    assert found.skipped == {"needs a picture": 4}
    assert [s.prompt for s in found.samples] == [
        "Um texto.\nPergunta: O que é?\nResposta:",
        "Pergunta: O que é?\nResposta:",
        "Um texto.\nResposta:",
        "Um texto.\nPergunta: O que é?\nResposta:",
    ]
    assert [s.gold for s in found.samples] == [2, 0, 2, 2]
    assert found.samples[0].group == "2022"


def test_labels_are_parted_by_hash(tmp_path: Path) -> None:
    texts = [f"message {i}" for i in range(40)]
    rows = "".join(f'"{t}, please",card_{"ab"[i % 2]}_c\n' for i, t in enumerate(texts))
    (tmp_path / "banking77_train.csv").write_text(f"text,category\n{rows}")
    found = load("labels", tmp_path, seed=5, labels=LabelSettings(prompt="<{text}>"))
    assert len(found.samples) + len(found.pool) == 40
    assert found.skipped == {"kept for training": len(found.pool)}
    assert all(s.choices == ("card a c", "card b c") for s in found.samples)
    expected = {f"{t}, please" for t in texts if hold_out(f"{t}, please", 5) < 0.2}
    assert expected
    assert {s.text for s in found.samples} == expected
    assert {s.prompt for s in found.samples} == {f"<{t}>" for t in expected}
    assert is_test(min(expected), 5, LabelSettings())


@pytest.mark.parametrize("file", ["my[1].v2", "my[1].v2.csv", "in[k]/my[1]", "in[k]/my[1].v2.csv"])
def test_labels_are_in_the_file_that_was_named(tmp_path: Path, file: str) -> None:
    path = tmp_path / "in[k]/my[1].v2.csv"
    path.parent.mkdir()
    path.write_text("text,category\na,b\nc,d\n")
    found = load("labels", tmp_path, labels=LabelSettings(file=file, test_share=1.0))
    assert found.files == (str(path),)


def test_a_label_file_named_with_its_ending_is_that_file_alone(tmp_path: Path) -> None:
    for name in ("reviews.csv", "reviews_old.csv"):
        (tmp_path / name).write_text("text,category\na,b\nc,d\n")
    for file, count in (("reviews.csv", 1), ("reviews", 2)):
        found = load("labels", tmp_path, labels=LabelSettings(file=file, test_share=1.0))
        assert len(found.files) == count


def test_labels_want_at_least_two_that_differ(tmp_path: Path) -> None:
    lines(tmp_path / "x.jsonl", {"t": "a", "l": "b_c"}, {"t": "d", "l": "b c"})
    chosen = LabelSettings(file="x", text_field="t", label_field="l", test_share=1.0)
    with pytest.raises(DataError, match="1 different labels of 2"):
        load("labels", tmp_path, labels=chosen)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('The fox ran. A dog saw the fox."', [("The fox ran. A dog saw the", "fox")]),
        ("The fox ran. A dog saw the fox", [("The fox ran. A dog saw the", "fox")]),
        ("The fox ran. A dog saw a cat.", []),  # not there before
        ("The foxes ran. A dog saw the fox.", []),  # part of another word
        ("Fox ran. A dog saw the fox.", []),  # written otherwise
        ("It was 42. He said 42.", []),  # no letters
        ("Go to it. I go to it.", []),  # two letters
        ("A fox. One fox. Two cats! Ten cats?", [("A fox. One", "fox"), ("Two cats! Ten", "cats")]),
        ("A fox. One fox. Left over fox.", [("A fox. One", "fox")]),
        ("", []),
    ],
)
def test_passages_end_with_a_word_that_they_used(
    text: str, expected: list[tuple[str, str]]
) -> None:
    assert list(passages_of(text, LastWordSettings(sentences=2))) == expected


def test_the_passages_taken_are_those_of_lowest_hash(tmp_path: Path) -> None:
    documents = [f"The w{'abcdefghij'[i]}x ran. I saw the w{'abcdefghij'[i]}x." for i in range(10)]
    path = lines(tmp_path / "t.jsonl", *({"text": text} for text in [*documents, documents[3]]))
    settings = LastWordSettings(sentences=2, passages=4)
    found = load("last_word", texts=(str(path),), seed=9, last_word=settings).samples
    order = sorted(documents, key=lambda text: hold_out(text.removesuffix("."), 9))
    assert {s.text for s in found} == {text.removesuffix(".") for text in order[:4]}
    assert [s.text for s in found] == sorted(s.text for s in found)  # the order of the text
    assert load("last_word", path, seed=9, last_word=settings).samples == found
    with pytest.raises(DataError, match="no passage"):
        load("last_word", path, last_word=LastWordSettings(sentences=3))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question": "x"}, "line 2: has no 'choices'"),
        ({"choices": ["a", "b"]}, "line 2: has no 'question'"),
        (QUESTION | {"question": 3}, "line 2: 'question' is 3. Give text"),
        (QUESTION | {"question": " "}, "'question' is ' '"),
        (QUESTION | {"choices": []}, "'choices' is []. Give a list of at least two"),
        (QUESTION | {"choices": {"A": "one"}}, "'choices' is"),
        (QUESTION | {"choices": ["a", ""]}, "none of them empty"),
        (QUESTION | {"choices": "ab"}, "'choices' is 'ab'"),
        (QUESTION | {"choices": {"label": ["A"], "text": ["a", "b"]}}, "'label' is"),
        (QUESTION | {"answer": "D"}, "line 2, field answer: the answer is 'D'"),
        (QUESTION | {"answer": 3}, "line 2, field answer: the answer is '3'"),
        (QUESTION | {"question": "\ud800"}, "Give valid Unicode"),
    ],
)
def test_a_malformed_record_is_named(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    lines(tmp_path / "arc_easy_dev.jsonl", QUESTION, record)
    with pytest.raises(DataError) as caught:
        load("arc_easy", tmp_path)
    assert str(tmp_path / "arc_easy_dev.jsonl") in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("arc_easy.jsonl", b"[1]\n", "line 1: is a JSON list, not an object"),
        ("arc_easy.jsonl", b"{\n", "line 1: not JSON"),
        ("arc_easy.jsonl", b"\n", "holds no record"),
        ("arc_easy.json", b"[]", "holds no record"),
        ("arc_easy.json", b'{"a": 1}', "is no JSON list"),
        ("arc_easy.json", b"[[1]]", "record 1: is a JSON list"),
        ("arc_easy.json", b"[\xff]", "byte 0xff is not UTF-8"),
        ("arc_easy.csv", b"question,answer\na,b\n", "has no column 'choices'"),
        ("arc_easy.csv", b"question,choices,answer\na,b,c\n", "'choices' is 'b'"),
        ("arc_easy.csv", b"question,choices,answer\na,b\n", "has 2 columns, 'answer' is number 3"),
        ("arc_easy.jsonl.xz", lzma.compress(b" \n" * 99)[:-9], "cut off or damaged"),
    ],
)
def test_a_malformed_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MiudoError) as caught:
        load("arc_easy", tmp_path)
    assert name in str(caught.value)
    assert message in str(caught.value)


def test_a_missing_file_is_told_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"arc_easy_test\*.*arc_easy_dev\*.*\.jsonl"):
        load("arc_easy", tmp_path)
    with pytest.raises(MissingError, match="no such file or folder"):
        load("blimp", tmp_path / "nowhere")


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    lines(tmp_path / "a/arc_easy_dev.jsonl", QUESTION)
    lines(tmp_path / "b/arc_easy_dev.jsonl.gz", QUESTION)
    with pytest.raises(DataError, match="two files are called arc_easy_dev"):
        load("arc_easy", tmp_path)
    assert len(load("arc_easy", tmp_path / "a", tmp_path / "a/arc_easy_dev.jsonl").samples) == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: TaskSettings(shots=-1),
        lambda: TaskSettings(limit=0),
        lambda: TaskSettings(seed=-1),
        lambda: LabelSettings(prompt="no place"),
        lambda: LabelSettings(prompt="{text}{text}"),
        lambda: LabelSettings(test_share=0.0),
        lambda: LastWordSettings(sentences=1),
        lambda: LastWordSettings(passages=0),
    ],
)
def test_settings_that_mean_nothing_are_refused(make: Any) -> None:
    with pytest.raises(ConfigError):
        make()


@pytest.mark.parametrize(
    ("choices", "answer", "right"),
    [
        (["one", "two", "three"], 1, "two"),
        ({"label": ["1", "2", "3"], "text": ["one", "two", "three"]}, 2, "two"),
        ({"1": "one", "2": "two"}, 1, "one"),
        ({"A": "one", "B": "two"}, 1, "two"),
    ],
)
def test_a_number_is_a_label_where_labels_are_numbers(
    tmp_path: Path, choices: object, answer: int, right: str
) -> None:
    lines(tmp_path / "arc_easy_dev.jsonl", QUESTION | {"choices": choices, "answer": answer})
    sample = load("arc_easy", tmp_path).samples[0]
    assert sample.choices[sample.gold] == right
