"""Models that cannot be asked, and sessions as long as was asked for."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from miudo.config import ModelConfig, RopeKind, RopeScaling
from miudo.engine.native import NativeEngine
from miudo.errors import ConfigError, TokenizerError, UsageError
from miudo.evaluate.loading import load_model
from miudo.formats import ModelFile
from miudo.tensors import DType, StoredTensor, tensor_table
from miudo.text.tokenizer import train_bpe


@pytest.mark.parametrize(
    ("form", "cure"), [("folder", "into the folder"), ("file", "miudo export")]
)
def test_a_model_without_a_tokenizer_says_what_its_form_can_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, cure: str
) -> None:
    opening(monkeypatch, dataclasses.replace(longrope(), tokenizer=None))
    path = tmp_path / "model"
    if form == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"GGUF")
    with pytest.raises(TokenizerError, match=cure) as caught:
        load_model(path)
    assert "beside" not in str(caught.value)


@pytest.mark.parametrize(("context", "positions"), [(None, 16), (12, 16), (16, 16), (33, 33)])
def test_a_session_is_as_long_as_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, context: int | None, positions: int
) -> None:
    opening(monkeypatch, longrope())
    loaded = load_model(Path("model"), threads=1, context=context)
    assert loaded.engine.config.max_positions == positions
    assert loaded.model.config.max_positions == 64  # what it is, whatever the session


def test_a_session_longer_than_the_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    opening(monkeypatch, longrope())
    with pytest.raises(ConfigError, match="context is 65, allowed a whole number from 1 to 64"):
        load_model(Path("model"), context=65)


def test_matrices_are_held_as_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    opening(monkeypatch, longrope())
    as_is, held = (load_model(Path("model"), threads=1, dtype=d) for d in (None, DType.Q8_0))
    assert {t.dtype for t in as_is.model.weights.values()} == {DType.F32}
    kinds = {name: t.dtype for name, t in held.model.weights.items()}
    assert kinds["layers.0.mlp.down.weight"] is DType.Q8_0
    assert kinds["norm.weight"] is DType.F32
    ids = [1, 2, 3, 4]
    assert as_is.engine.score(ids).logprobs == pytest.approx(held.engine.score(ids).logprobs, 0.2)
    with pytest.raises(ConfigError, match="MXFP4 is only read"):
        load_model(Path("model"), dtype=DType.MXFP4)


def test_no_engine_is_left_at_work_when_the_tokenizer_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []

    def engine(*_: Any) -> str:
        time.sleep(0.2)
        made.append("engine")
        return "engine"

    def opened(path: Path, *, ready: Callable[..., None]) -> ModelFile:
        ready(longrope().config, longrope().weights)
        raise TokenizerError("is damaged")

    monkeypatch.setattr("miudo.evaluate.loading._engine", engine)
    monkeypatch.setattr("miudo.evaluate.loading.open_model", opened)
    with pytest.raises(TokenizerError, match="is damaged"):
        load_model(Path("model"))
    assert made == ["engine"]


def opening(monkeypatch: pytest.MonkeyPatch, model: ModelFile) -> None:
    """Whatever is opened is `model`."""

    def opened(path: Path, *, ready: Callable[..., None]) -> ModelFile:
        ready(model.config, model.weights)
        return model

    monkeypatch.setattr("miudo.evaluate.loading.open_model", opened)


def longrope() -> ModelFile:
    """A model of 16 original positions, stretched to 64."""
    factors = (1.0, 1.5, 2.0, 2.5)
    scaling = RopeScaling(
        RopeKind.LONGROPE, 16, short_factors=factors, long_factors=tuple(2 * x for x in factors)
    )
    config = ModelConfig.uniform(
        n_layers=1, d_model=32, n_heads=4, d_ff=64, vocab_size=300, max_positions=64,
        rope_scaling=scaling,
    )  # fmt: skip
    weights = {
        spec.name: StoredTensor.from_f32(np.zeros(spec.shape, dtype=np.float32))
        for spec in tensor_table(config)
    }
    tokenizer = train_bpe(["once upon a time"], vocab_size=300).spec
    return ModelFile(config, weights, tokenizer, None, None, "", None)


def test_pytorch_rounds_no_keys_and_values(monkeypatch: pytest.MonkeyPatch) -> None:
    opening(monkeypatch, longrope())
    loaded = load_model(Path("model"), threads=1, cache="int4")
    assert isinstance(loaded.engine, NativeEngine)
    assert loaded.engine.cache == "int4"
    with pytest.raises(UsageError, match="float32 keys and values, not int4"):
        load_model(Path("model"), engine="torch", cache="int4")
