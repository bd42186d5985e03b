"""stories260k, a real trained model, writes its story on the native engine.

A Llama-like model of 260,000 parameters with a SentencePiece-like tokenizer (byte fallback).
"""

from pathlib import Path

import pytest

from miudo.engine.generate import GenerateSettings, generate
from miudo.engine.native import NativeEngine
from miudo.formats import open_model
from miudo.formats.gguf import write_gguf
from miudo.tensors import DType
from miudo.text.tokenizer import TextTokenizer

STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the "
    "park. One day, she saw a big, red ball."
)


@pytest.mark.parametrize("form", ["folder", "f32", "f16", "bf16", "q8_0"])
def test_it_writes_its_story(form: str, shared: Path, tmp_path: Path) -> None:
    path = shared / "data" / "weights" / "stories260k"
    if form != "folder":
        dtype = DType(form.upper())
        report = write_gguf(tmp_path / "stories.gguf", open_model(path), dtype=dtype)
        path = tmp_path / "stories.gguf"
        # Rows of d_ff 172 are no whole blocks of 32: just these matrices stay F16.
        narrow = [f"layers.{i}.mlp.down.weight" for i in range(5)] if form == "q8_0" else []
        assert list(report.fallbacks) == narrow
        assert all(report.dtypes[name] is DType.F16 for name in narrow)
    model = open_model(path)
    assert model.tokenizer is not None
    tokenizer = TextTokenizer(model.tokenizer)
    engine = NativeEngine(model, activations="float" if form != "q8_0" else "int8")
    assert model.config.bos_id is not None
    events = generate(engine, tokenizer, [model.config.bos_id], GenerateSettings(max_tokens=80))
    assert "".join(event.text for event in events).startswith(STORY)
