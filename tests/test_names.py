"""Model references: the three forms, what is refused, and any text at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miudo.errors import ReferenceNameError
from miudo.names import HubRef, LocalRef, StoreRef, parse_reference


@pytest.fixture(autouse=True)
def empty_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("empty"))


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("./model", LocalRef(Path("./model"))),
        ("../up/model.gguf", LocalRef(Path("../up/model.gguf"))),
        ("/abs/model", LocalRef(Path("/abs/model"))),
        (".", LocalRef(Path())),
        ("runs/one/final", LocalRef(Path("runs/one/final"))),
        ("Model With Spaces", LocalRef(Path("Model With Spaces"))),
        ("tiny", StoreRef("tiny")),
        ("tiny:q8", StoreRef("tiny", "q8")),
        ("hf://org/repo", HubRef("org", "repo")),
        ("hf://org/repo:a/b.gguf", HubRef("org", "repo", "a/b.gguf")),
        ("hf://org/repo@refs/pr/1", HubRef("org", "repo", None, "refs/pr/1")),
        ("hf://Org/re.po-1:f.gguf@v1.0", HubRef("Org", "re.po-1", "f.gguf", "v1.0")),
    ],
)
def test_the_three_forms(text: str, reference: LocalRef | StoreRef | HubRef) -> None:
    assert parse_reference(text) == reference


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_reference("~/model") == LocalRef(tmp_path / "model")


def test_a_plain_name_that_exists_here_is_a_path(tmp_path: Path) -> None:
    assert parse_reference("tiny") == StoreRef("tiny")
    Path("tiny").mkdir()
    assert parse_reference("tiny") == LocalRef(Path("tiny"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "hf://",
        "hf://org",
        "hf:///repo",
        "hf://org/repo/more",
        "hf://../repo",
        "hf://org/..",
        "hf://org/repo:../../etc/passwd",
        "hf://org/repo:/etc/passwd",
        "hf://org/repo:a//b",
        "hf://org/repo:a/../b",
        "hf://org/repo@../main",
        "hf://org/repo@a b",
        "hf://org/repo@",
        "hf://org/repo:",
        "hf://org/repo:@main",
        "hf://org/repo:f\n.gguf",
        "/etc/pass\0wd",
        "./a\0",
        "name\0",
        "\ud800",
        "x" * 5000,
    ],
    ids=lambda text: ascii(text)[:30],
)
def test_what_names_no_model_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(ReferenceNameError, match=r"Write \./path, name\[:tag\] or hf://"):
        parse_reference(text)


def test_a_refusal_shows_little_of_a_long_text() -> None:
    with pytest.raises(ReferenceNameError) as caught:
        parse_reference("hf://" + "\x1b" * 10_000)
    assert len(str(caught.value)) < 600
    assert "\x1b" not in str(caught.value)


@given(
    st.text()
    | st.text().map("hf://".__add__)
    | st.text(alphabet="ab/:@.~\\").map("hf://a/".__add__)
)
def test_any_text_gives_a_safe_reference_or_a_typed_error(text: str) -> None:
    try:
        reference = parse_reference(text)
    except ReferenceNameError:
        return
    if isinstance(reference, HubRef):
        parts = [reference.organisation, reference.repository, *reference.revision.split("/")]
        parts += (reference.file or "x").split("/")
        assert all(part and part[0].isascii() and part[0].isalnum() for part in parts)
        again = f"hf://{reference.organisation}/{reference.repository}"
        again += f":{reference.file}" if reference.file else ""
        assert parse_reference(f"{again}@{reference.revision}") == reference
    elif isinstance(reference, StoreRef):
        assert "/" not in reference.name
        assert not reference.name.startswith(".")
    else:
        os.path.exists(reference.path)  # the system can be asked about it


def test_a_long_text_is_no_error_of_the_system() -> None:
    assert parse_reference("word " * 200) == LocalRef(Path("word " * 200))
    assert isinstance(parse_reference("a" * 90), StoreRef)
