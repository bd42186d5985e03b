"""Are miudo's ids those of the original tokenizers, on text that people and machines write?

For: every kind of vocabulary in the zoo, trained here on small data, encoded line by line by
miudo and by the programs that define what the ids must be.
Not for: speed (`benchmarks/tokenizer_opening.py`).
Read next: `miudo.text.word_rules`, `miudo.text.pieces`.

    python benchmarks/tokenizer_identity.py ../shared/data --lines 10000

Each cell is the number of lines on which ids differ. "original": `transformers` on the same
tokenizer.json or vocab.json, `sentencepiece` on the same tokenizer.model; there, and where miudo
rebuilds the tokenizer from GGUF keys as llama.cpp's converter writes them ("rebuilt"), any
difference is a fault, and the exit code 3. One is known: with a table of characters ("nmt_nfkc")
the `tokenizers` library loses a combining mark after a character that is replaced.
"transformers" and "llama.cpp" are other programs on the same SentencePiece model or GGUF file:
what they differ by is theirs.
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
import random
import sys
import tempfile
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import transformers
import xllamacpp

from miudo.config import ModelConfig
from miudo.formats import ModelFile, open_model
from miudo.formats.gguf import write_gguf
from miudo.formats.gguf_reader import read_container
from miudo.formats.gguf_tokenizer import WHOLE_TOKENIZER
from miudo.formats.gguf_writer import write_container
from miudo.report import Table, text_table
from miudo.tensors import StoredTensor, tensor_table
from miudo.text.pieces import PieceKind
from miudo.text.sentencepiece import parse_sentencepiece
from miudo.text.tokenizer import TextTokenizer
from miudo.text.tokenizer_json import TokenizerSpec, check_tokenizer
from miudo.text.word_rules import WORD_RULES, byte_level_tokenizer

Encode = Callable[[str], list[int]]

TEXTS = (
    "en_prose/wikitext-2/wiki.valid.tokens.xz", "en_prose/tinystories_10k.txt.xz",
    "pt_prose/ud_gsd_sents.txt.xz", "pt_prose/eltec-por_novels_dev.txt.xz",
)  # fmt: skip
VOCAB_SIZE = 4000
END = "<|endoftext|>"
PLAIN: dict[str, Any] = {"byte_fallback": True, "normalization_rule_name": "identity"}
KEEPS: dict[str, Any] = PLAIN | {"remove_extra_whitespaces": False}
SENTENCEPIECE: dict[str, dict[str, Any]] = {
    "llama": KEEPS | {"split_digits": True, "allow_whitespace_only_pieces": True},
    "no fallback": KEEPS | {"byte_fallback": False},
    "squeezes spaces": PLAIN,
    "nmt_nfkc": {"byte_fallback": True},
    "user-defined": KEEPS | {"user_defined_symbols": ["<user>", "<AI>", "\n"]},
    "gemma": KEEPS
    | {
        "add_dummy_prefix": False,
        "allow_whitespace_only_pieces": True,
        "user_defined_symbols": ["\n", "\n\n", "\u2581\u2581", "\u2581\u2581\u2581", "<table>"],
    },
}
# What GGUF has no keys for: llama.cpp's converter does not write such models as they are.
NOT_IN_GGUF = ("squeezes spaces", "nmt_nfkc")


@dataclass
class Row:
    """Lines on which ids differ, None where a program does not apply."""

    kind: str
    original: int
    transformers: int | None = None
    rebuilt: int | None = None
    llama_cpp: int | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--lines", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    lines = all_lines(given.data, given.lines)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for row in all_rows(given.data, lines, Path(folder)):
            rows.append(row)
            print(f"{row.kind}: {row.original} differ", file=sys.stderr)
    if given.json:
        print(json.dumps([vars(row) for row in rows]))
    else:
        headers = ("vocabulary", "original", "transformers", "rebuilt", "llama.cpp")
        cells = [["-" if v is None else str(v) for v in vars(row).values()] for row in rows]
        print(f"lines of {len(lines)} whose ids differ from miudo's\n")
        print(text_table(Table(headers, cells)))
    faults = [row for row in rows if row.original or row.rebuilt]
    sys.exit(3 if any(not row.kind.endswith("nmt_nfkc") for row in faults) else 0)


def all_rows(data: Path, lines: Sequence[str], folder: Path) -> Iterator[Row]:
    yield gpt2_row(data / "weights" / "gpt2_bpe", lines, folder)
    trained_on = lines[: len(lines) // 10 * 9 : 2]
    seen: list[Any] = []
    for name, rule in WORD_RULES.items():
        if rule not in seen:
            seen.append(rule)
            yield byte_level_row(name, trained_on, lines, folder)
    for name, settings in SENTENCEPIECE.items():
        yield sentencepiece_row(name, settings, trained_on, lines, folder)


def all_lines(data: Path, n: int) -> list[str]:
    """Returns nine parts text of both languages and one part of what is hard to encode."""
    hard = list(hard_lines(n // 10))
    each = (n - len(hard)) // len(TEXTS)
    found: list[str] = []
    for name in TEXTS:
        with lzma.open(data / name, "rt", encoding="utf-8") as file:
            texts = (line.rstrip("\n") for line in file)
            found += [text for text, _ in zip(filter(None, texts), range(each), strict=False)]
    return found + hard


def hard_lines(n: int) -> Iterator[str]:
    """Yields emoji, control characters, broken UTF-8, spaces, digits, marks, and role tokens."""
    rng = random.Random(0)  # noqa: S311
    emoji = ["😀", "👩\u200d👩\u200d👧", "🇧🇷", "👍🏽", "❤\ufe0f"]
    pieces = [
        *emoji, *map(chr, range(1, 32)), "\x7f", "\u200b", "\u00a0", "\u3000", "\ufeff", "  ",
        "   ", "\r\n", "\n\n", "1234567", "3.14", "don't", "I'LL", "e\u0301", "a\u0303o", "ação",
        "漢字", "हिन्दी", "한국어", "عربي", "½", "ﬁ", "\uff11\uff12", END, "<s>", "<0x0A>", "\u2581",
        "<user>", "<AI>", "<table>", "//", "\t\t", "a_b", "…", "—", " a", "the", " não", "!!!",
        "HTMLParser",
    ]  # fmt: skip
    for i in range(n):
        if i % 5 == 0:
            raw = rng.randbytes(rng.randrange(1, 24)) + "fim é".encode()
            yield raw.decode("utf-8", "replace")
        elif i % 5 == 1:
            yield " " * rng.randrange(40) + "x" * rng.randrange(40) + "aa" * rng.randrange(20)
        else:
            yield "".join(rng.choice(pieces) for _ in range(rng.randrange(1, 20)))


def differing(lines: Sequence[str], ours: Encode, theirs: Encode) -> int:
    return sum(ours(line) != theirs(line) for line in lines)


def gpt2_row(source: Path, lines: Sequence[str], folder: Path) -> Row:
    """GPT-2's own vocabulary, as vocab.json and merges.txt."""
    where = folder / "gpt2"
    where.mkdir()
    (where / "vocab.json").write_bytes((source / "gpt2_vocab.json").read_bytes())
    (where / "merges.txt").write_bytes((source / "gpt2_merges.txt").read_bytes())
    theirs = transformers.GPT2Tokenizer(
        vocab=str(where / "vocab.json"), merges=str(where / "merges.txt")
    )
    from miudo.formats.hf_text import read_tokenizer

    config = shape(50257, bos_id=50256, eos_ids=(50256,))
    spec = read_tokenizer(where, {}, config)
    if spec is None:
        raise RuntimeError("no tokenizer was found")
    return in_gguf("GPT-2, as published", spec, of_transformers(theirs), lines, folder)


def byte_level_row(name: str, trained_on: Sequence[str], lines: Sequence[str], folder: Path) -> Row:
    from tokenizers import Tokenizer, pre_tokenizers, trainers

    rule = WORD_RULES[name]
    empty = byte_level_tokenizer(rule, {}, [], [])
    backend = Tokenizer.from_str(json.dumps(empty))
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(trained_on, trainer)
    values = json.loads(backend.to_str())
    values["model"]["ignore_merges"] = rule.whole_words
    path = folder / f"{name}.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path))
    return in_gguf(name, check_tokenizer(values), of_transformers(theirs), lines, folder)


def in_gguf(
    name: str, spec: TokenizerSpec, theirs: Encode, lines: Sequence[str], folder: Path
) -> Row:
    ours = TextTokenizer(spec).encode
    path = as_converted(folder / f"{name}.gguf", spec, {})
    again = open_model(path).tokenizer
    if again is None:
        raise RuntimeError("no tokenizer was rebuilt")
    return Row(
        name,
        original=differing(lines, ours, theirs),
        rebuilt=differing(lines, TextTokenizer(again).encode, theirs),
        llama_cpp=differing(lines, ours, of_llama_cpp(path)),
    )


def sentencepiece_row(
    name: str, settings: dict[str, Any], trained_on: Sequence[str], lines: Sequence[str],
    folder: Path,
) -> Row:  # fmt: skip
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(trained_on), model_writer=made, model_type="bpe",
        vocab_size=VOCAB_SIZE, minloglevel=2, num_threads=1, **settings,
    )  # fmt: skip
    theirs = sentencepiece.SentencePieceProcessor(model_proto=made.getvalue())
    spec = parse_sentencepiece(made.getvalue())
    ours = TextTokenizer(spec).encode
    # A text that is one user-defined piece and nothing else gets no space: known, see pieces.py.
    lines = [line for line in lines if line not in ("<user>", "<AI>", "\n")]
    row = Row(f"SentencePiece, {name}", original=differing(lines, ours, theirs.encode))
    if name not in NOT_IN_GGUF:
        kind = transformers.GemmaTokenizer if name == "gemma" else transformers.LlamaTokenizer
        built = kind(vocab=spec.values["model"]["vocab"], merges=list(spec.merges))
        row.transformers = differing(lines, ours, of_transformers(built))
        path = as_converted(folder / f"{name}.gguf", spec, converted(theirs, spec))
        again = open_model(path).tokenizer
        if again is None:
            raise RuntimeError("no tokenizer was rebuilt")
        row.rebuilt = differing(lines, TextTokenizer(again).encode, theirs.encode)
        if settings["byte_fallback"]:  # llama.cpp fails on unknown characters without
            row.llama_cpp = differing(lines, ours, of_llama_cpp(path))
    return row


def converted(theirs: Any, spec: TokenizerSpec) -> dict[str, Any]:
    """The keys of a SentencePiece model, out of its own library."""
    n = theirs.get_piece_size()
    tests = {
        PieceKind.UNKNOWN: theirs.is_unknown, PieceKind.CONTROL: theirs.is_control,
        PieceKind.UNUSED: theirs.is_unused, PieceKind.BYTE: theirs.is_byte,
    }  # fmt: skip
    kinds = [next((k for k, test in tests.items() if test(i)), PieceKind.NORMAL) for i in range(n)]
    for text, i in spec.added.items():
        if text not in spec.special:
            kinds[i] = PieceKind.USER_DEFINED
    ids = "tokenizer.ggml."
    return {
        ids + "tokens": [theirs.id_to_piece(i) for i in range(n)],
        ids + "scores": [float(theirs.get_score(i)) for i in range(n)],
        ids + "token_type": [int(kind) for kind in kinds],
    }


def shape(vocab_size: int, **ids: Any) -> ModelConfig:
    return ModelConfig.uniform(
        n_layers=1, d_model=32, n_heads=1, d_ff=32, vocab_size=vocab_size, max_positions=64, **ids
    )


def as_converted(path: Path, spec: TokenizerSpec, changes: dict[str, Any]) -> Path:
    """Writes a model of zeros around a tokenizer, without the keys that only miudo writes."""
    config = shape(len(spec.tokens))
    weights = {
        s.name: StoredTensor.from_f32(np.zeros(s.shape, "<f4")) for s in tensor_table(config)
    }
    write_gguf(path, ModelFile(config, weights, spec, None, None, "llama", None))
    container = read_container(path)
    keys: dict[str, Any] = {}
    for key, value in container.keys.items():
        if key == WHOLE_TOKENIZER:
            continue
        if isinstance(value, str | int | float | bool):
            keys[key] = value
        else:
            is_text = value.kind == 8
            keys[key] = (
                container.strings(key) if is_text else container.numbers(key, {5, 6}).tolist()
            )
    bare = path.with_suffix(".bare.gguf")
    with bare.open("wb") as file:
        write_container(file, keys | changes, list(container.tensors.items()))
    return bare


def of_transformers(tokenizer: Any) -> Encode:
    """Ids of text in which no token is special, as miudo's are."""
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    return lambda text: list(backend.encode(text, add_special_tokens=False).ids)


def of_llama_cpp(path: Path) -> Encode:
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 64, 1, False, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    running = xllamacpp.Server(params)

    def encode(text: str) -> list[int]:
        body = {"content": text, "add_special": False, "parse_special": False}
        request = urllib.request.Request(  # noqa: S310 - it listens on this machine
            f"{running.listening_address}/tokenize",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request) as answer:  # noqa: S310
                found: list[int] = json.load(answer)["tokens"]
        except urllib.error.HTTPError:
            return [-1]
        return found

    return encode


if __name__ == "__main__":
    main()
