"""How likely the small model is wrong about a prompt: logistic regression on hashed words.

For: a classifier that was told, prompt by prompt, whether the small model was wrong.
Not for: what the small model itself says (`miudo.route.confidence`).
Read next: `miudo.route.features`, then `miudo.route.fitting`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from miudo.errors import ModelFileError
from miudo.files import atomic_folder, sha256_file
from miudo.plain_json import write_json
from miudo.records import Record
from miudo.route.features import COUNTED, Features, bucket, features, grams
from miudo.route.targets import Complexity
from miudo.strict_json import read_object

__all__ = ["CLASSIFIER_FILE", "Classifier", "read_classifier", "scaled", "write_classifier"]

CLASSIFIER_FILE = "classifier.json"
_SCHEMA = 1
_MAX_BITS = 16
_SIGNALS = 5
_FAR = 3.0
_FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Classifier:
    """Weights [2**bits] of the buckets, [10] of what is counted, scaled as `scaled` does."""

    bits: int
    hashed: _FloatArray
    counted: _FloatArray
    mean: _FloatArray
    spread: _FloatArray
    bias: float

    def complexity(self, text: str) -> Complexity:
        """Returns the probability of a wrong answer, and the five strongest signals."""
        row = features(text, self.bits)
        logit = self.logit(row)
        value = 1.0 / (1.0 + math.exp(-logit)) if logit > -700.0 else 0.0
        return Complexity(value, "classifier", self._signals(text, row))

    def logit(self, row: Features) -> float:
        """Returns the log-odds of a wrong answer."""
        hashed = float(self.hashed[row.indices] @ row.values)
        return self.bias + hashed + float(self.counted @ self._scaled(row))

    def _scaled(self, row: Features) -> _FloatArray:
        return scaled(row.counted, self.mean, self.spread)

    def _signals(self, text: str, row: Features) -> tuple[tuple[str, float], ...]:
        value_at = dict(zip(row.indices.tolist(), row.values.tolist(), strict=True))
        found = dict(zip(COUNTED, (self.counted * self._scaled(row)).tolist(), strict=True))
        for gram in grams(text):
            at = bucket(gram, self.bits)
            found[repr(gram)] = float(self.hashed[at]) * value_at.get(at, 0.0)
        strongest = sorted(found.items(), key=lambda s: (-abs(s[1]), s[0]))[:_SIGNALS]
        return tuple((name, round(weight, 4)) for name, weight in strongest)


def scaled(counted: _FloatArray, mean: _FloatArray, spread: _FloatArray) -> _FloatArray:
    """Returns (x - mean) / spread within -3 and 3: a prompt like no example is no wild guess."""
    within: _FloatArray = np.clip((counted - mean) / spread, -_FAR, _FAR)
    return within


def write_classifier(folder: Path, classifier: Classifier, record: Record) -> None:
    """Writes a folder of `classifier.json` and its record, whole or not at all."""
    kept = {int(i): round(float(classifier.hashed[i]), 6) for i in classifier.hashed.nonzero()[0]}
    with atomic_folder(folder) as new:
        path = new / CLASSIFIER_FILE
        values = {
            "schema": _SCHEMA,
            "bits": classifier.bits,
            "bias": classifier.bias,
            "counted": dict(zip(COUNTED, classifier.counted.tolist(), strict=True)),
            "mean": classifier.mean.tolist(),
            "spread": classifier.spread.tolist(),
            "hashed": {str(i): weight for i, weight in kept.items() if weight},
        }
        write_json(path, values)
        replace(record, outputs={CLASSIFIER_FILE: sha256_file(path)}).write(new)


def read_classifier(folder: Path) -> Classifier:
    """Returns the classifier in `folder`.

    Raises MissingError where there is none, ModelFileError for one that is damaged, or is not
    the one that its record tells of.
    """
    path = folder / CLASSIFIER_FILE
    values = read_object(path)
    record = Record.read(folder)
    if record is not None and record.outputs.get(CLASSIFIER_FILE) != sha256_file(path):
        raise ModelFileError("is not what its record tells of", where=path, remedy="Train it anew")
    try:
        return _parsed(values)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ModelFileError(f"no classifier ({error})", where=path) from error


def _parsed(values: Mapping[str, Any]) -> Classifier:
    if values["schema"] != _SCHEMA or set(values["counted"]) != set(COUNTED):
        raise ValueError(f"schema {values['schema']!r}, or features of another miudo")
    bits = values["bits"]
    if type(bits) is not int or not 1 <= bits <= _MAX_BITS:
        raise ValueError(f"bits is {bits!r}, allowed 1 to {_MAX_BITS}")
    hashed = np.zeros(1 << bits)
    for index, weight in values["hashed"].items():
        if not index.isascii() or not index.isdigit():
            raise ValueError(f"a weight stands at {index!r:.40}")
        hashed[int(index)] = weight
    parts = [np.array([values["counted"][name] for name in COUNTED], dtype=np.float64)]
    parts += [np.array(values[name], dtype=np.float64) for name in ("mean", "spread")]
    bias = float(values["bias"])
    whole = all(part.shape == (len(COUNTED),) for part in parts)
    if not whole or not np.isfinite(np.concatenate([hashed, *parts, [bias]])).all():
        raise ValueError("weights are missing or no finite numbers")
    if (parts[2] <= 0).any():
        raise ValueError("a spread is not above 0")
    return Classifier(bits, hashed, parts[0], parts[1], parts[2], bias)
