"""The command line on a real, tiny, untrained model: one file in, numbers and files out."""

import json
import math
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from miudo.cli.main import cli
from miudo.config import ModelConfig
from miudo.decoder.decoder import Decoder
from miudo.formats import ModelFile, open_model
from miudo.formats.hf import write_folder
from miudo.records import Record
from miudo.text.chat import DEFAULT_TEMPLATE
from miudo.text.tokenizer import TextTokenizer, train_bpe

TEXTS = [
    "A cat slept on the warm stone while the rain fell on the roof of the old house.",
    "Um gato dormia na pedra quente enquanto a chuva caía no telhado da casa velha.",
    "x",
]
# Engines agree to 1e-4 in a logit; a mean over some hundred tokens is far closer.
ENGINE_TOLERANCE = 1e-4
# The direct sum runs in float64 over float32 logits.
DIRECT_TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return train_bpe(TEXTS * 3, vocab_size=300)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer: TextTokenizer) -> Path:
    config = ModelConfig.uniform(
        vocab_size=tokenizer.padded_size(64),
        d_model=64,
        n_layers=2,
        n_heads=2,
        d_ff=96,
        max_positions=32,
        bos_id=0,
        eos_ids=(0,),
    )
    decoder = Decoder(config)
    decoder.initialise(5)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    file = ModelFile(
        config=config,
        weights=decoder.to_weights(),
        tokenizer=tokenizer.spec,
        chat_template=DEFAULT_TEMPLATE,
        record=Record(verb="train", name="tiny", seed=5),
        architecture="llama",
        path=None,
    )
    write_folder(folder, file)
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    return path


def run(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result


def values(*arguments: str | Path) -> Any:
    return json.loads(run(*arguments, "--json").stdout)


def test_perplexity_equals_a_direct_sum_on_both_engines(
    model: Path, text: Path, tokenizer: TextTokenizer
) -> None:
    options = ["--data", text, "--context", "32", "--stride", "31"]
    native = values("eval", model, *options, "--activations", "float")
    twin = values("eval", model, *options, "--engine", "torch")
    assert native["nll"] == pytest.approx(twin["nll"], abs=ENGINE_TOLERANCE)
    file = open_model(model)
    decoder = Decoder.from_weights(file.config, file.weights).eval()
    losses = []
    for document in TEXTS:
        ids = [0, *tokenizer.encode(document)]
        # Windows of 32 ids that move by 31: the id before a window's first scored one is its
        # first, so each window is scored from its second id on.
        edges = [0, *range(32, len(ids), 31), len(ids)]
        for first, end in pairwise(edges):
            begin = max(0, end - 32)
            with torch.no_grad():
                hidden = decoder(torch.tensor([ids[begin:end]]))
                logs = decoder.logits(hidden)[0].double().log_softmax(-1)
            for i in range(max(first, 1), end):
                losses.append(-float(logs[i - 1 - begin, ids[i]]))
    assert twin["tokens"] == len(losses)
    assert twin["nll"] == pytest.approx(np.mean(losses), abs=DIRECT_TOLERANCE)
    n_bytes = sum(len(t.encode()) for t in TEXTS)
    assert twin["bits_per_byte"] == pytest.approx(
        sum(losses) / math.log(2) / n_bytes, abs=DIRECT_TOLERANCE
    )


def test_a_model_goes_from_folder_to_gguf_to_folder_and_says_so(
    model: Path, text: Path, tmp_path: Path
) -> None:
    file, folder = tmp_path / "out" / "m.gguf", tmp_path / "back"
    run("export", model, "--to", "gguf", "--out", file)
    run("export", file, "--to", "hf", "--out", folder)
    shown = values("show", folder)
    assert shown["parameters"] == values("show", model)["parameters"]
    assert shown["record"]["verb"] == "export"
    assert shown["record"]["parents"][0]["parents"][0]["name"] == "tiny"
    lines = run("show", file).stdout
    assert "└─ tiny - train" in lines
    losses = [values("eval", m, "--data", text)["nll"] for m in (model, file, folder)]
    assert losses[0] == losses[1] == losses[2]


def test_quantize_then_compare_tells_what_was_lost(model: Path, text: Path, tmp_path: Path) -> None:
    small, page = tmp_path / "small.gguf", tmp_path / "page.html"
    made = values("quantize", model, "--out", small)
    assert 8.5 < made["bits_per_weight"] < 9.5
    options = ["--data", text, "--repeats", "1", "--html", page]
    first, second = values("compare", model, small, *options)["models"]
    assert first["divergence"]["kl"] == 0.0
    assert 0.0 < second["divergence"]["kl"] < 1e-3
    assert second["size_bytes"] < first["size_bytes"]
    assert second["quality"]["ppl"] == pytest.approx(first["quality"]["ppl"], rel=0.01)
    for row in (first, second):
        assert row["bench"]["speed"]["new_tokens_per_s"] > 0
        assert row["bench"]["peak_memory_bytes"] > 1e6
        assert row["bench"]["speed"]["energy_method"]
    assert "small.gguf" in page.read_text()


@pytest.mark.parametrize("verb", ["run", "complete"])
def test_run_gives_the_same_tokens_for_the_same_seed(model: Path, verb: str) -> None:
    options = ["--max-tokens", "8", "--seed", "3", "--prompt", "A cat"]
    first, again = (values(verb, model, *options) for _ in range(2))
    assert first["text"] == again["text"]
    assert first["usage"] == again["usage"]
    assert 1 <= first["usage"]["completion_tokens"] <= 8


def test_a_process_reads_a_pipe_and_loads_no_torch(model: Path) -> None:
    code = (
        "import sys\nfrom miudo.cli.main import cli\n"
        "try:\n    cli.main(sys.argv[1:], prog_name='miudo')\n"
        "finally:\n    assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", code, "complete", str(model), "-", "--max-tokens", "4"]
    done = subprocess.run(command, input="A cat", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert not done.stderr


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_file_is_one_line_and_exit_1(model: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "m.gguf"
    run("export", model, "--to", "gguf", "--out", path)
    content = path.read_bytes()
    broken = {"cut": content[: len(content) // 2], "flip": b"X" + content[1:], "empty": b""}
    path.write_bytes(broken[damage])
    environment = {k: v for k, v in os.environ.items() if k != "MIUDO_DEBUG"}
    command = [sys.executable, "-m", "miudo", "show", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "m.gguf" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--to", "gguf", "--out", "folder"], 2, "ends in .gguf"),
        (["--to", "hf", "--out", "m.gguf"], 2, "a folder's name"),
        (["--to", "hf", "--out", "{model}"], 2, "overwrite what it is made from"),
        (["--to", "hf", "--out", "{full}"], 2, "is there already"),
        (["--to", "hf", "--out", "{full}", "--force"], 2, "holds no model"),
        (["--to", "hf", "--out", "new", "--dtype", "Q8_0"], 2, "Give --to gguf"),
    ],
)
def test_export_refuses_what_would_be_wrong(
    model: Path, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("mine")
    filled = [a.format(model=model, full=full) for a in arguments]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        result = CliRunner().invoke(cli, ["export", str(model), *filled])
    assert result.exit_code == code
    assert message in result.stderr
    assert (full / "thesis.txt").read_text() == "mine"
