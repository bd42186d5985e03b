"""A model that cannot be asked: what is said depends on the form it has."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from miudo.errors import TokenizerError
from miudo.evaluate.loading import load_model


@pytest.mark.parametrize(
    ("form", "cure"), [("folder", "into the folder"), ("file", "miudo export")]
)
def test_a_model_without_a_tokenizer_says_what_its_form_can_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, cure: str
) -> None:
    def opened(path: Path) -> Any:
        return SimpleNamespace(tokenizer=None)

    monkeypatch.setattr("miudo.evaluate.loading.open_model", opened)
    path = tmp_path / "model"
    if form == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"GGUF")
    with pytest.raises(TokenizerError, match=cure) as caught:
        load_model(path)
    assert "beside" not in str(caught.value)
