"""Every key of every family's files, with every kind of value: a config or a typed refusal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from miudo.config import ModelConfig
from miudo.errors import ConfigError, ModelFileError
from miudo.families.family import Family
from miudo.families.fit import gguf_misfit
from miudo.families.places import sources

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 1 << 40, 1 << 80, 0.5, -0.5, 1e-300, 1e308, float("inf"),
    float("nan"), "", "gelu", "x" * 1000, [], [0], [-1] * 3, ["x"] * 3, [1 << 80] * 3, [[1]],
    [None] * 3, {}, {"rope_type": "yarn"}, {"full_attention": []}, {"": None},
)  # fmt: skip
# What `miudo.formats.gguf` turns into a refusal that names the file.
GGUF_ERRORS = (ModelFileError, ConfigError, KeyError, TypeError, ValueError, ArithmeticError)


def changed(values: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """`values` with each key absent, and with each of `VALUES`, in nested objects too."""
    for key, held in values.items():
        yield f"{key} absent", {k: v for k, v in values.items() if k != key}
        for value in VALUES:
            yield f"{key} = {value!r:.40}", values | {key: value}
        if isinstance(held, dict):
            for what, inner in changed(held):
                yield f"{key}: {what}", values | {key: inner}


def check(
    read: Callable[[dict[str, Any]], ModelConfig],
    values: dict[str, Any],
    allowed: tuple[type[Exception], ...],
) -> None:
    for what, given in changed(values):
        start = time.perf_counter()
        try:
            assert isinstance(read(given), ModelConfig), what
        except allowed:
            pass
        except Exception as error:
            raise AssertionError(f"{what}: {type(error).__name__} {error}") from error
        assert time.perf_counter() - start < 1, what


def test_config_json(family: Family, example: ModelConfig) -> None:
    check(family.config_from_hf, family.config_to_hf(example), (ModelFileError, ConfigError))


def test_keys_of_gguf(family: Family, example: ModelConfig) -> None:
    if gguf_misfit(family, example) is not None:
        pytest.skip("no other program knows such a file")
    names = frozenset(s.name for s in sources(example, family.gguf_names))
    common = {k: getattr(example, k) for k in ("vocab_size", "bos_id", "eos_ids", "pad_id")}
    keys = family.config_to_gguf(example)
    check(lambda given: family.config_from_gguf(given | common, names), keys, GGUF_ERRORS)
