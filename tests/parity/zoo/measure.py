"""What is measured of a case: logits of each runtime beside those of the reference."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from miudo.decoder.decoder import Decoder
from miudo.decoder.torch_engine import TorchEngine
from miudo.engine.native import NativeEngine
from miudo.formats import ModelFile
from miudo.protocol import Engine, SeqWork, Want

__all__ = ["BOUND", "check_close", "decoder", "logits", "native", "reference", "worst"]

# The design's bound on absolute logit differences, at logits of size about 10.
BOUND = 1e-4
# Below it the bound says little: a model of small logits is near any other.
SIZE = 2.0

_Logits = npt.NDArray[np.float32]
Runtime = Callable[[ModelFile, int], Engine]


def reference(model: object, given: list[int]) -> _Logits:
    """The other program's logits [T, V] of a whole text."""
    with torch.no_grad():
        found = model(torch.tensor([given])).logits[0].float().numpy()  # type: ignore[operator]
    return np.asarray(found)


def decoder(model: ModelFile, context: int) -> Engine:
    return TorchEngine(Decoder.from_weights(model.config, model.weights, context=context))


def native(model: ModelFile, context: int) -> Engine:
    return NativeEngine(model, threads=1, activations="float", context=context)


def logits(engine: Engine, given: list[int]) -> dict[str, _Logits]:
    """Ours, both ways: the text taken in at once, and id by id with what is cached."""
    whole = engine.open()
    (at_once,) = engine.step([SeqWork(whole, given, want=Want.ALL_LOGITS)])
    single, each = engine.open(), []
    for one in given:
        (out,) = engine.step([SeqWork(single, [one], want=Want.LAST_LOGITS)])
        each.append(out.logits)
    assert at_once.logits is not None
    return {"prefill": at_once.logits, "cached": np.stack([x for x in each if x is not None])}


def worst(ours: _Logits, theirs: _Logits) -> float:
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max())


def check_close(ours: _Logits, theirs: _Logits) -> float:
    """Returns the greatest difference. Raises AssertionError beyond the bound."""
    assert np.abs(theirs).max() > SIZE
    assert np.isfinite(ours).all()
    found = worst(ours, theirs)
    assert found <= BOUND
    return found
