"""What passes the Python door: arrays of every kind, exactly or not at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from miudo.engine.native import NativeEngine
from miudo.engine.native_door import load_native
from miudo.errors import ModelFileError, RequestError
from miudo.protocol import SeqWork, Want
from miudo.tensors import StoredTensor

IDS = [5, 1, 130, 0, 77]
PLAIN = (0.0, 0, 1.0, 0.0, 1.0, (), (), 0, 0)


def misaligned(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    raw = np.zeros(array.nbytes + 1, np.uint8)
    raw[1:] = array.view(np.uint8)
    return raw[1:].view(array.dtype)


def read_only(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


LAYOUTS: dict[str, Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]] = {
    "strided": lambda a: np.repeat(a, 2)[::2],
    "backwards": lambda a: a[::-1].copy()[::-1],
    "misaligned": misaligned,
    "read-only": read_only,
    "a column": lambda a: np.stack([a, a], axis=1)[:, 0],
}


@pytest.mark.row("N1")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["<i4", ">i4", "<i8", ">i2", "<u8", "u1"])
def test_ids_of_any_whole_type_and_layout_mean_the_same(
    llama: Any, layout: str, dtype: str
) -> None:
    engine = NativeEngine(llama, threads=1)
    (right,) = engine.step([SeqWork(engine.open(), IDS, Want.ALL_LOGITS)])
    ids: Any = LAYOUTS[layout](np.array(IDS, dtype))
    (out,) = engine.step([SeqWork(engine.open(), ids, Want.ALL_LOGITS)])
    np.testing.assert_array_equal(out.logits, right.logits)


@pytest.mark.row("N1")
@pytest.mark.parametrize(
    ("ids", "says"),
    [
        (np.array(3), "0 axes"),
        (np.array([[1, 2], [3, 4]]), "2 axes"),
        (np.array([1.0, 2.0]), "float64 given"),
        (np.array([True]), "bool given"),
        (np.array([1, 2], object), "object given"),
        (np.array([], np.float32), "no ids"),
        (np.array([1, 2**63], np.uint64), "id 9223372036854775808 is outside"),
        (np.array([-1], np.int8), "id -1 is outside"),
        ([[1], [2, 3]], "whole numbers"),
        ("12", "whole numbers"),
        (None, "whole numbers"),
        ({1: 2}, "whole numbers"),
    ],
)
def test_ids_of_another_kind_are_refused(llama: Any, ids: Any, says: str) -> None:
    engine = NativeEngine(llama, threads=1)
    k = engine.open()
    for call in (lambda: engine.step([SeqWork(k, ids)]), lambda: engine.score(ids)):
        with pytest.raises(RequestError, match=says):
            call()
    assert engine.length(k) == 0


@pytest.mark.row("N1")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_of_any_layout_mean_the_same(llama: Any, layout: str) -> None:
    weights = {
        name: StoredTensor(t.dtype, t.shape, LAYOUTS[layout](t.data))
        for name, t in llama.weights.items()
    }
    ours, right = NativeEngine(replace(llama, weights=weights)), NativeEngine(llama)
    np.testing.assert_array_equal(ours.score(IDS).logprobs, right.score(IDS).logprobs)


@pytest.mark.row("N1")
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda a: a.view(np.float32), "float32 "),
        (lambda a: a.view(np.int8), "int8 "),
        (lambda a: a.astype(np.int64), "int64 "),  # as many numbers as there were bytes
        (lambda a: a.reshape(131, -1), "uint8 "),
        (lambda a: a[0], "class "),
        (lambda a: a.tobytes(), "class "),
        (lambda a: None, "class "),
        (lambda a: a[:0], "has 0 bytes"),
        (lambda a: np.array(7, np.uint8), "uint8 "),
    ],
)
def test_weights_that_are_no_bytes_are_refused(
    llama: Any, change: Callable[[Any], Any], says: str
) -> None:
    right = llama.weights["embed.weight"]
    wrong = StoredTensor(right.dtype, right.shape, change(right.data))
    with pytest.raises(ModelFileError, match=rf"embed.weight (is .*)?{says}"):
        NativeEngine(replace(llama, weights={**llama.weights, "embed.weight": wrong}))


@pytest.mark.row("N1")
def test_masks(llama: Any) -> None:
    engine = NativeEngine(llama)
    only = np.zeros(131, np.bool_)
    only[44] = True

    def drawn(mask: Any) -> int | None:
        (out,) = engine.step([SeqWork(engine.open(), [1], mask=mask)])
        return out.token

    for same in (only, np.repeat(only, 2)[::2], only[::-1].copy()[::-1], only.tolist()):
        assert drawn(same) == 44
    for wrong in (
        only[:-1], only[:, None], only.astype(np.float32), only.astype(np.uint8), np.array(True),
        ["x"] * 131, [[True], []], np.array([None] * 131),
    ):  # fmt: skip
        with pytest.raises(RequestError, match="mask is"):
            drawn(wrong)


@pytest.mark.row("N1")
@pytest.mark.parametrize("wrong", [None, "1", 1.5, 1 << 70])
def test_a_handle_or_a_length_of_another_type(llama: Any, wrong: Any) -> None:
    engine = NativeEngine(llama)
    k = engine.open()
    for call in (
        lambda: engine.length(wrong),
        lambda: engine.close(wrong),
        lambda: engine.truncate(wrong, 0),
        lambda: engine.truncate(k, wrong),
        lambda: engine.step([SeqWork(wrong, [1])]),
    ):
        with pytest.raises(RequestError):
            call()
    assert engine.length(k) == 0


def test_results_are_written_to_no_converted_copy(llama: Any) -> None:
    """The module would otherwise fill an array that nobody holds."""
    native, engine = load_native(), NativeEngine(llama)
    core, ids = engine._core, np.array([1, 2], np.int32)
    wide, gaps = np.zeros(131), np.zeros(262, np.float32)[::2]
    for logits in (wide, gaps, read_only(np.zeros(131, np.float32))):
        with pytest.raises(TypeError):
            native.Work(engine.open(), ids, 2, PLAIN, None, logits, None, (), None)
    one, argmax = np.zeros(1, np.float32), np.zeros(1, np.int32)
    none, nobody = np.zeros((1, 0), np.float32), np.zeros((1, 0), np.int32)
    core.score(ids, one, argmax, one.copy(), 0, nobody, none, None)
    with pytest.raises(TypeError):
        core.score(ids, np.zeros(1), argmax, one, 0, nobody, none, None)


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512", "neon"])
def test_the_variable_forces_a_path(
    llama: Any, isa: str, force_isa: Callable[[str | None], None]
) -> None:
    force_isa(isa)
    engine = NativeEngine(llama)
    assert engine.isa == isa
    assert np.isfinite(engine.score(IDS).logprobs).all()


@pytest.mark.parametrize("name", ["avx", "AVX2", " portable", "avx10"])
def test_the_variable_names_what_there_is(
    llama: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIUDO_ISA", name)
    with pytest.raises(RequestError, match=rf"'{name}', this machine and build have portable"):
        NativeEngine(llama)
