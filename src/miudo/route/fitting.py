"""Trains the classifier of complexity: logistic regression by accelerated gradients.

For: `miudo route train`, in NumPy alone and to the same weights every time.
Not for: what the classifier does with a prompt (`miudo.route.complexity`).
Read next: `miudo.route.complexity`.

The loss is convex: Beck and Teboulle's FISTA (2009) at a step below 1 / Lipschitz comes near its
one minimum from zero. How strongly weights are held small is chosen on a fifth of the examples.

Shapes: N examples, F features = 2**bits hashed ones, then those that are counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from miudo.data.pack import hold_out
from miudo.errors import ConfigError, DataError
from miudo.route.complexity import Classifier, scaled
from miudo.route.features import COUNTED, Features, features

__all__ = ["FitSettings", "Fitted", "fit_classifier"]

_FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FitSettings:
    """`penalties` are tried on `held_out` of the examples, parted by text and `seed`."""

    bits: int = 12
    penalties: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2)
    steps: int = 400
    held_out: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if not 4 <= self.bits <= 16:
            raise ConfigError(f"bits is {self.bits}, allowed 4 to 16")
        if not self.penalties or not all(0 < p <= 1 for p in self.penalties):
            raise ConfigError(f"penalties is {self.penalties}", remedy="Give some above 0, to 1")
        if not 1 <= self.steps <= 100_000 or not 0 < self.held_out < 1:
            raise ConfigError(f"steps is {self.steps}, held_out {self.held_out}")


@dataclass(frozen=True, slots=True)
class Fitted:
    """The classifier of all examples, and what the held-out part said of it.

    `log_loss` in nats is beside `guess_loss`, that of the training part's share of wrong answers.
    `ranked` is the chance that of a wrong and a right one the wrong one is rated higher (AUROC).
    """

    classifier: Classifier
    penalty: float
    log_loss: float
    guess_loss: float
    ranked: float


def fit_classifier(prompts: Sequence[str], wrong: Sequence[bool], settings: FitSettings) -> Fitted:
    """Returns the classifier that tells how likely the answer to a prompt is `wrong`.

    Raises DataError where either part lacks right or wrong answers.
    """
    rows = [features(prompt, settings.bits) for prompt in prompts]
    labels = np.array(wrong, dtype=np.float64)
    out = np.array([_is_out(prompt, settings) for prompt in prompts], dtype=bool)
    for name, part in (("train on", labels[~out]), ("test on", labels[out])):
        if not 0 < part.sum() < len(part):
            raise DataError(
                f"the {len(part)} examples to {name} are all right or all wrong",
                remedy="Give more examples, on some of which the model is wrong",
            )
    inner = [row for row, test in zip(rows, out, strict=True) if not test]
    tested = [row for row, test in zip(rows, out, strict=True) if test]
    tried = []
    for penalty in settings.penalties:
        found = _fit(inner, labels[~out], penalty, settings)
        logits = np.array([found.logit(row) for row in tested])
        tried.append((_log_loss(logits, labels[out]), penalty, logits))
    loss, penalty, logits = min(tried, key=lambda each: each[:2])
    share = float(labels[~out].mean())
    guess = _log_loss(np.full(int(out.sum()), math.log(share / (1 - share))), labels[out])
    whole = _fit(rows, labels, penalty, settings)
    return Fitted(whole, penalty, loss, guess, _ranked(logits, labels[out]))


def _is_out(prompt: str, settings: FitSettings) -> bool:
    """Prompts may have been chosen by their own rank: this one is of another text."""
    return hold_out(f"complexity\n{prompt}", settings.seed) < settings.held_out


def _fit(
    rows: Sequence[Features], labels: _FloatArray, penalty: float, settings: FitSettings
) -> Classifier:
    counted = np.stack([row.counted for row in rows])
    mean, spread = counted.mean(axis=0), counted.std(axis=0)
    spread = np.where(spread > 1e-9, spread, 1.0)
    # Both groups of features then weigh about the same: the hashed ones have length 1 together.
    dense = scaled(counted, mean, spread) / math.sqrt(len(COUNTED))
    matrix = _Matrix(rows, dense, settings.bits)
    weights = _minimise(matrix, labels, penalty, settings.steps)
    size = 1 << settings.bits
    scale = 1.0 / math.sqrt(len(COUNTED))
    return Classifier(
        settings.bits, weights[:size], weights[size:-1] * scale, mean, spread, float(weights[-1])
    )


class _Matrix:
    """Sparse rows, dense ones beside them, and a last column of ones."""

    def __init__(self, rows: Sequence[Features], dense: _FloatArray, bits: int) -> None:
        self._size, self._dense = 1 << bits, dense
        self._row = np.repeat(np.arange(len(rows)), [len(row.indices) for row in rows])
        self._column = np.concatenate([row.indices for row in rows])
        self._value = np.concatenate([row.values for row in rows])
        self.columns = self._size + dense.shape[1] + 1

    def times(self, weights: _FloatArray) -> _FloatArray:
        """Returns the product with weights [F + 1], [N]."""
        size = self._size
        hashed = self._value * weights[:size][self._column]
        sums = np.bincount(self._row, hashed, minlength=len(self._dense))
        product: _FloatArray = sums + self._dense @ weights[size:-1] + weights[-1]
        return product

    def transposed_times(self, values: _FloatArray) -> _FloatArray:
        """Returns the product of the transpose with values [N], [F + 1]."""
        weighed = self._value * values[self._row]
        hashed = np.bincount(self._column, weighed, minlength=self._size)
        return np.concatenate([hashed, values @ self._dense, [values.sum()]])

    def longest(self) -> float:
        """Returns the largest squared length of a row."""
        return 2.0 + float((self._dense**2).sum(axis=1).max())


def _minimise(matrix: _Matrix, labels: _FloatArray, penalty: float, steps: int) -> _FloatArray:
    """Returns the weights [F + 1] of the least mean log loss + penalty / 2 of their squares."""
    step = 1.0 / (0.25 * matrix.longest() + penalty)
    weights = ahead = np.zeros(matrix.columns)
    held = np.ones(matrix.columns)
    held[-1] = 0.0  # the bias is free
    pace = 1.0
    for _ in range(steps):
        chance = 1.0 / (1.0 + np.exp(-np.clip(matrix.times(ahead), -500.0, 500.0)))
        gradient = matrix.transposed_times((chance - labels) / len(labels))
        gradient += penalty * held * ahead
        before, weights = weights, ahead - step * gradient
        faster = (1.0 + math.sqrt(1.0 + 4.0 * pace * pace)) / 2.0
        ahead = weights + (pace - 1.0) / faster * (weights - before)
        pace = faster
    return weights


def _log_loss(logits: _FloatArray, labels: _FloatArray) -> float:
    return float(np.mean(np.logaddexp(0.0, logits) - labels * logits))


def _ranked(scores: _FloatArray, labels: _FloatArray) -> float:
    """Mann and Whitney's share of pairs in order; ties count half."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    upto = np.cumsum(counts)
    ranks = (upto - (counts - 1) / 2.0)[inverse]
    n = labels.sum()
    return float((ranks[labels > 0].sum() - n * (n + 1) / 2) / (n * (len(labels) - n)))
