"""How weights get into the engine: in batches, and never twice in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from miudo.config import ModelConfig
from miudo.engine import native as module
from miudo.engine.native import NativeEngine
from miudo.errors import ModelFileError
from miudo.formats import open_model
from miudo.formats.gguf import write_gguf
from miudo.formats.model_file import ModelFile
from miudo.protocol import SeqWork, Want
from miudo.tensors import DType

LARGE = ModelConfig.uniform(
    n_layers=4, d_model=512, n_heads=8, n_kv_heads=4, d_ff=1536, vocab_size=32000,
    max_positions=64, tie_embeddings=False,
)  # fmt: skip

MEMORY = """
import json, re, sys
from pathlib import Path
from miudo.engine.native import NativeEngine
from miudo.formats import open_model
from miudo.protocol import SeqWork, Want
def size(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
idle = size("VmRSS")
engine = NativeEngine(open_model(Path(sys.argv[1])), threads=2)
print(json.dumps({"above": size("VmHWM") - idle, "weights": engine.weight_bytes}))
"""


def last_logits(model: Any) -> np.ndarray:
    engine = NativeEngine(model, threads=2)
    (out,) = engine.step([SeqWork(engine.open(), [1, 2, 3], want=Want.LAST_LOGITS)])
    assert out.logits is not None
    return out.logits


def test_batches_change_nothing(
    config: ModelConfig, make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(config)
    whole = last_logits(model)
    assert len(list(module._batches(model))) == 1
    monkeypatch.setattr(module, "_MADE_BYTES", 0)
    assert np.array_equal(last_logits(model), whole)


def test_mapped_weights_are_read_again_after_their_pages_went(
    tmp_path: Path, make_model: Callable[..., Any]
) -> None:
    """Pages of the file are let go, those around the tensors too; the bytes stay what they are."""
    held = large_file(tmp_path, make_model)
    before = {name: t.data.tobytes() for name, t in open_model(held).weights.items()}
    model = open_model(held)
    first = last_logits(model)
    assert {name: t.data.tobytes() for name, t in model.weights.items()} == before
    assert np.array_equal(last_logits(model), first)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_model_is_in_memory_once(tmp_path: Path, make_model: Callable[..., Any]) -> None:
    path = large_file(tmp_path, make_model)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(path)], capture_output=True, text=True, check=True
    )
    found, size = json.loads(done.stdout), path.stat().st_size
    assert size > 40 << 20
    assert found["weights"] < 1.01 * size
    assert found["above"] < 1.05 * size + (20 << 20)


def test_a_tensor_given_twice_is_refused(make_model: Callable[..., Any]) -> None:
    model = make_model(LARGE)
    twice = dict(model.weights)
    engine = module.load_native().Engine
    values, layers = module.config_values(LARGE), module.layer_values(LARGE)
    core = engine(values, layers, 1, True, 0, 1 << 20)
    name = "norm.weight"
    one = (name, 0, list(twice[name].shape), np.ascontiguousarray(twice[name].data), 0)
    with pytest.raises(ModelFileError, match=r"norm\.weight was given twice"):
        module.call(core.set_tensors, [one, one])


def large_file(folder: Path, make_model: Callable[..., Any]) -> Path:
    model, path = make_model(LARGE), folder / "large.gguf"
    held = ModelFile(LARGE, model.weights, None, None, None, "llama", None)
    write_gguf(path, held, dtype=DType.Q8_0)
    return path
