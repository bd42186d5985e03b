"""How soon is text ids, and at what memory, from a GGUF file with 150,000 tokens?

For: the claim that opening it takes at most 0.6 s, and which way into `tokenizers` is cheapest.
Not for: whether the ids are right (`benchmarks/tokenizer_identity.py`).
Read next: `miudo.formats.gguf_tokenizer`, `miudo.text.backend`.

    python benchmarks/tokenizer_opening.py ../shared/data --runs 5

The vocabulary is trained on the novels in the data. Each reading is a process of its own, after
its imports: processor seconds until "hello" is ids, and what its peak memory grew by. "foreign"
has the keys that llama.cpp's converter writes, "own" the whole tokenizer.json as well. The peers
read "foreign": llama.cpp loads the file, one layer of zeros with it; the `gguf` package with
`transformers` makes a fast tokenizer of the keys.
"""

from __future__ import annotations

import argparse
import json
import lzma
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from miudo.config import ModelConfig
from miudo.formats import ModelFile
from miudo.formats.gguf import write_gguf
from miudo.formats.gguf_reader import read_container
from miudo.formats.gguf_tokenizer import WHOLE_TOKENIZER
from miudo.formats.gguf_writer import write_container
from miudo.report import Table, text_table
from miudo.tensors import StoredTensor, tensor_table
from miudo.text.tokenizer import TextTokenizer, train_bpe

TEXTS = ("en_prose/eltec-eng_novels_dev.txt.xz", "pt_prose/eltec-por_novels_dev.txt.xz")

CLOCK = r"""
import json, re, sys, time
{imports}
path = sys.argv[1]
def peak_mb():
    return int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) / 1024
before, start = peak_mb(), time.process_time()
{work}
spent = time.process_time() - start
print(json.dumps([spent, peak_mb() - before]))
"""
MIUDO = (
    """
from pathlib import Path
import tokenizers
from miudo.formats import open_model
from miudo.text.tokenizer import TextTokenizer
""",
    """
ids = TextTokenizer(open_model(Path(path)).tokenizer).encode("hello")
""",
)
LLAMA_CPP = (
    "import xllamacpp",
    """
params = xllamacpp.CommonParams()
params.model.path = path
params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 64, 1, False, -1
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
running = xllamacpp.Server(params)
""",
)
TRANSFORMERS = (
    "import gguf, transformers, tokenizers, torch",
    """
from pathlib import Path
folder, name = str(Path(path).parent), Path(path).name
tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
ids = tokenizer.encode("hello")
""",
)
JSON_IN = (
    "import tokenizers",
    """
ids = tokenizers.Tokenizer.from_file(path).encode("hello").ids
""",
)
OBJECTS_IN = (
    "import tokenizers",
    """
model = json.load(open(path))["model"]
pairs = list(map(tuple, model["merges"]))
start = time.process_time()
ids = tokenizers.Tokenizer(tokenizers.models.BPE(model["vocab"], pairs)).encode("hello").ids
""",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--tokens", type=int, default=150_000)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        own, foreign, whole = made(given.data, given.tokens, Path(folder))
        readings = {
            "miudo, foreign": (MIUDO, foreign),
            "miudo, own": (MIUDO, own),
            "llama.cpp, foreign": (LLAMA_CPP, foreign),
            "gguf + transformers, foreign": (TRANSFORMERS, foreign),
            "tokenizers alone, from JSON": (JSON_IN, whole),
            "tokenizers alone, from objects": (OBJECTS_IN, whole),
        }
        rows = []
        for name, ((imports, work), path) in readings.items():
            program = CLOCK.format(imports=imports, work=work)
            found = [reading(program, path) for _ in range(given.runs)]
            seconds, memory = zip(*found, strict=True)
            spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
            rows.append((name, f"{statistics.median(seconds):.2f}", spread, f"{max(memory):.0f}"))
    headers = (f"{given.tokens:,} tokens", "CPU s", "least to most", "MB more")
    print(text_table(Table(headers, rows)))


def reading(program: str, path: Path) -> tuple[float, float]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, memory = json.loads(done.stdout.strip().splitlines()[-1])
    return seconds, memory


def made(data: Path, n: int, folder: Path) -> tuple[Path, Path, Path]:
    """Writes a tokenizer's model with all keys, with those of others alone, and its JSON."""
    tokenizer = train_bpe(lines(data), vocab_size=n)
    config = ModelConfig.uniform(
        n_layers=1, d_model=32, n_heads=1, d_ff=32, vocab_size=n, max_positions=64
    )
    weights = {
        s.name: StoredTensor.from_f32(np.zeros(s.shape, "<f4")) for s in tensor_table(config)
    }
    own, foreign, whole = folder / "own.gguf", folder / "foreign.gguf", folder / "tokenizer.json"
    write_gguf(own, ModelFile(config, weights, tokenizer.spec, None, None, "llama", None))
    container = read_container(own)
    keys = {k: v for k, v in container.keys.items() if k != WHOLE_TOKENIZER}
    for key in ("tokens", "merges"):
        keys[f"tokenizer.ggml.{key}"] = container.strings(f"tokenizer.ggml.{key}")
    types = "tokenizer.ggml.token_type"
    keys[types] = container.numbers(types, {5}).tolist()
    with foreign.open("wb") as file:
        write_container(file, keys, list(container.tensors.items()))
    whole.write_bytes(TextTokenizer(tokenizer.spec).to_json())
    return own, foreign, whole


def lines(data: Path) -> Iterator[str]:
    for name in TEXTS:
        with lzma.open(data / name, "rt", encoding="utf-8") as file:
            yield from file


if __name__ == "__main__":
    main()
