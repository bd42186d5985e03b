"""Fuzzes one reader of model files with atheris: it returns, or raises an error of ours.

    python -m pip install atheris      (into an environment that has miudo)
    python scripts/fuzz_readers.py READER [options of libFuzzer, e.g. -max_total_time=1800]

READER: safetensors, gguf, pickle. Inputs worth keeping stay in build/fuzz/corpus/READER; an input
that raised anything else is written to the working folder. tests/formats/test_mutations.py tries
the same without atheris.
"""

from __future__ import annotations

import io
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["miudo.formats", "miudo.text"]):
    from miudo.errors import MiudoError
    from miudo.formats import ModelFile, open_model
    from miudo.formats.gguf import write_gguf
    from miudo.formats.safetensors import read_safetensors, write_safetensors
    from miudo.formats.tensor_pickle import read_tensor_pickle
    from miudo.hub.resolve import embedded_path

import numpy as np

from miudo.config import ModelConfig
from miudo.tensors import DType, StoredTensor, tensor_table

ROOT = Path(__file__).resolve().parents[1]


def safetensors_seeds() -> list[bytes]:
    """A file of three types, and one with nothing in it."""
    half = StoredTensor(DType.F16, (2,), np.array([1, -2], dtype="<f2").view(np.uint8))
    tensors = [("a.weight", StoredTensor.from_f32(np.ones((3, 5), np.float32))), ("b", half)]
    files = []
    for given in (tensors, []):
        file = io.BytesIO()
        write_safetensors(file, given)
        files.append(file.getvalue())
    return files


def gguf_seeds() -> list[bytes]:
    """A small model, whole; the head of the package's own, with its tokenizer; no tensors."""
    config = ModelConfig.uniform(
        n_layers=1, d_model=8, n_heads=2, d_ff=8, vocab_size=9, max_positions=16
    )
    weights = {
        spec.name: StoredTensor.from_f32(np.ones(spec.shape, np.float32))
        for spec in tensor_table(config)
    }
    files = [b"GGUF\3\0\0\0" + bytes(16)]
    for model in (
        ModelFile(config, weights, None, None, None, "llama", None),
        open_model(embedded_path()),
    ):
        with tempfile.TemporaryDirectory() as folder:
            write_gguf(Path(folder) / "m.gguf", model)
            files.append((Path(folder) / "m.gguf").read_bytes()[: 1 << 16])
    return files


def pickle_seeds() -> list[bytes]:
    """What torch.save writes, in both of its containers; a stored archive of one text."""
    import torch

    files = []
    for archive in (True, False):
        file = io.BytesIO()
        tensors = {"w": torch.arange(6.0).reshape(2, 3).t(), "v": torch.ones(2).half()}
        torch.save(tensors, file, _use_new_zipfile_serialization=archive)
        files.append(file.getvalue())
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as held:
        held.writestr("archive/data.pkl", b"\x80\x02}q\0.")
    return [*files, file.getvalue()]


READERS: dict[str, tuple[Callable[[Path], object], Callable[[], list[bytes]], str]] = {
    "safetensors": (read_safetensors, safetensors_seeds, "x.safetensors"),
    "gguf": (open_model, gguf_seeds, "x.gguf"),
    "pickle": (read_tensor_pickle, pickle_seeds, "x.bin"),
}


def main() -> None:
    """Fills the corpus with good files and hands over to libFuzzer."""
    name = sys.argv.pop(1)
    read, seeds, called = READERS[name]
    corpus = ROOT / "build" / "fuzz" / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(seeds()):
        (corpus / f"seed-{i}").write_bytes(seed)
    path = Path(tempfile.mkdtemp()) / called
    warnings.simplefilter("ignore")  # weights that are not finite

    def one(data: bytes) -> None:
        path.write_bytes(data)
        with suppress(MiudoError):
            read(path)

    atheris.Setup([*sys.argv, str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
