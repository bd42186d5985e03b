from pathlib import Path

import pytest

from miudo.errors import MissingError
from miudo.hub.resolve import embedded_models, embedded_path, resolve
from miudo.names import HubRef, LocalRef, StoreRef


def test_a_path_that_is_there_is_itself(tmp_path: Path) -> None:
    assert resolve(LocalRef(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (LocalRef(Path("no/such/model")), "no/such/model"),
        (StoreRef("nameless"), "nameless"),
        (HubRef("org", "repo"), "hf://org/repo"),
    ],
)
def test_what_is_not_here_is_missing_with_a_remedy(
    reference: LocalRef | StoreRef | HubRef, message: str
) -> None:
    with pytest.raises(MissingError, match=message) as caught:
        resolve(reference)
    assert caught.value.exit_code == 4
    assert caught.value.remedy


def test_a_missing_file_is_not_taken_for_a_repository() -> None:
    for path, hinted in (("out/model", True), ("out/model.gguf", False)):
        with pytest.raises(MissingError) as caught:
            resolve(LocalRef(Path(path)))
        assert ("hf://" in str(caught.value)) == hinted


def test_models_inside_the_package_go_by_their_file_name(tmp_path: Path) -> None:
    (tmp_path / "b.gguf").touch()
    (tmp_path / "a.gguf").touch()
    (tmp_path / "notes.txt").touch()
    assert list(embedded_models(tmp_path)) == ["a", "b"]
    assert embedded_path(tmp_path).name == "a.gguf"


def test_a_build_without_a_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no model inside"):
        embedded_path(tmp_path)
