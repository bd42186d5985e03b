"""Adapters on the command line: run with one, shown, exported, refused beside another model."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from miudo.adapter import Adapter, LowRank, base_fingerprint
from miudo.cli.main import cli
from miudo.evaluate.loading import load_model
from miudo.evaluate.perplexity import document_ids
from miudo.formats.gguf_adapter import read_gguf_adapter, write_gguf_adapter
from miudo.formats.opening import open_model
from miudo.formats.peft import write_peft
from miudo.formats.safetensors import write_safetensors
from miudo.protocol import SeqWork
from miudo.records import Record
from miudo.tensors import Role, StoredTensor, tensor_table
from miudo.text.tokenizer import TextTokenizer

TINY = Path(__file__).parent.parent / "data" / "tiny"


def miudo(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def made() -> Adapter:
    model = open_model(TINY)
    assert model.tokenizer is not None
    rng = np.random.default_rng(4)
    parts = {}
    for spec in tensor_table(model.config):
        if spec.role in (Role.ATTENTION, Role.MLP):
            down = rng.standard_normal((3, spec.shape[1])).astype(np.float32)
            up = rng.standard_normal((spec.shape[0], 3)).astype(np.float32)
            parts[spec.name] = LowRank(down, up, 1.0)
    base = base_fingerprint(model.config, model.weights)
    return Adapter(parts, base, TextTokenizer(model.tokenizer).fingerprint)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    path = tmp_path / "noise.gguf"
    write_gguf_adapter(path, open_model(TINY).config, made())
    return path


def test_run_answers_with_the_adapter(adapter: Path) -> None:
    options = ["--prompt", "Once upon", "--temperature", 0, "--max-tokens", 12, "--json"]
    plain = json.loads(miudo("complete", TINY, *options).stdout)["text"]
    result = miudo("complete", TINY, "--adapter", adapter, *options)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["text"] != plain
    loaded = load_model(TINY, adapter=adapter)
    ids = loaded.tokenizer.encode("Once upon")
    (out,) = loaded.engine.step([SeqWork(loaded.engine.open(), ids, adapter=loaded.adapter)])
    assert out.token is not None


@pytest.mark.parametrize("options", [[], ["--engine", "torch"]])
def test_eval_measures_the_model_with_the_adapter(
    adapter: Path, tmp_path: Path, options: list[str]
) -> None:
    text = "Once upon a time there was a cat. The cat sat on the mat with the cat."
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "blimp").mkdir()
    pair = {"sentence_good": "The cat sat.", "sentence_bad": "The cat sit."}
    (tmp_path / "blimp/p.jsonl").write_text(json.dumps(pair))

    def measured(*more: object) -> tuple[dict[str, Any], list[float]]:
        samples = tmp_path / "samples.jsonl"
        result = miudo(
            "eval", TINY, "--data", tmp_path / "a.txt", "--task", "blimp", "--task-data", tmp_path,
            "--samples", samples, "--activations", "float", "--json", *options, *more,
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout), json.loads(samples.read_text())["logprobs"]

    plain, plain_logprobs = measured()
    found, logprobs = measured("--adapter", adapter)
    assert (plain["adapter"], found["adapter"]) == (None, str(adapter))
    loaded = load_model(TINY, activations="float", adapter=adapter)

    def total(text: str) -> float:
        ids = document_ids(text, loaded.tokenizer, loaded.model.config)
        return float(loaded.engine.score(ids, adapter=loaded.adapter).logprobs.sum())

    # The two engines differ in the last bits of float32.
    assert found["nll"] * found["tokens"] == pytest.approx(-total(text), rel=1e-4)
    wanted = [total(sentence) for sentence in pair.values()]
    assert logprobs == pytest.approx(wanted, rel=1e-4)
    assert plain["nll"] != pytest.approx(found["nll"], rel=1e-2)
    assert plain_logprobs != pytest.approx(logprobs, rel=1e-2)


def test_compare_lays_the_adapter_over_each_model(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Once upon a time there was a cat. The cat sat on the mat.")
    again = tmp_path / "again"
    again.mkdir()
    for file in TINY.iterdir():
        (again / file.name).write_bytes(file.read_bytes())
    options = ["--data", tmp_path / "a.txt", "--repeats", 1, "--threads", 1]
    result = miudo("compare", TINY, again, *options, "--adapter", adapter, "--json")
    assert result.exit_code == 0, result.output
    first, second = json.loads(result.stdout)["models"]
    alone = json.loads(miudo("eval", TINY, *options[:2], "--adapter", adapter, "--json").stdout)
    for row in (first, second):
        assert row["adapter"] == str(adapter)
        assert row["quality"]["nll"] == alone["nll"]
    assert (second["divergence"]["kl"], second["divergence"]["same_top1"]) == (0.0, 1.0)
    shown = miudo("compare", TINY, *options, "--adapter", adapter)
    assert f"With the adapter {adapter}" in shown.stdout
    late = miudo("compare", TINY, *options, "--html", tmp_path / "absent/x.html")
    assert (late.exit_code, late.stdout) == (4, "")
    assert "absent: no such folder" in late.stderr


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"base": "0" * 64}, "was trained on the model 000000000000"),
        ({"tokenizer": "1" * 64}, "was trained on the tokenizer 111111111111"),
    ],
)
def test_an_adapter_of_another_model_is_refused(
    tmp_path: Path, change: dict[str, str], says: str
) -> None:
    path = tmp_path / "other.gguf"
    other = dataclasses.replace(made(), **change)  # type: ignore[arg-type]
    write_gguf_adapter(path, open_model(TINY).config, other)
    result = miudo("run", TINY, "--adapter", path, "--prompt", "a")
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"{path}: {says}" in result.stderr


def test_paths_that_hold_no_adapter_are_told(tmp_path: Path, adapter: Path) -> None:
    for path, code, says in (
        (tmp_path / "absent", 4, "no such file"),
        (TINY, 1, "has no adapter_config.json"),
        (Path(__file__), 1, "not little-endian GGUF"),
    ):
        result = miudo("run", TINY, "--adapter", path, "--prompt", "a")
        assert (result.exit_code, says in result.stderr) == (code, True), result.stderr
    result = miudo("run", adapter, "--prompt", "a")
    assert result.exit_code == 1
    assert "is an adapter, not a model" in result.stderr
    folder = tmp_path / "peft"
    miudo("export", TINY, "--adapter", adapter, "--to", "hf", "--out", folder)
    result = miudo("run", folder, "--prompt", "a")
    assert result.exit_code == 1
    assert "is an adapter, not a model. Give its model, and --adapter" in result.stderr


def test_show_tells_rank_matrices_and_base(adapter: Path) -> None:
    text = miudo("show", adapter).stdout
    layers = open_model(TINY).config.n_layers
    assert "rank             3\n" in text
    assert f"corrects         blk.*.attn_q.weight x {layers}\n" in text
    assert f"base model       {made().base}\n" in text
    facts = json.loads(miudo("show", adapter, "--json").stdout)
    assert (facts["kind"], facts["ranks"], facts["alpha"]) == ("adapter", [3], 3.0)
    assert facts["matrices"]["blk.0.ffn_up.weight"]["rank"] == 3
    assert facts["parameters"] == sum(p.up.size + p.down.size for p in made().parts.values())


@pytest.mark.parametrize("flag", ["--verify", "--template"])
def test_show_passes_no_flag_of_models_over(adapter: Path, flag: str) -> None:
    result = miudo("show", adapter, flag)
    assert result.exit_code == 2
    assert f"error: {flag}: is for models, this is an adapter" in result.stderr


def test_show_tells_of_a_peft_folder(tmp_path: Path) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {
        f"{name}.lora_A.weight": StoredTensor.from_f32(np.ones((2, 8), np.float32)),
        f"{name}.lora_B.weight": StoredTensor.from_f32(np.ones((6, 2), np.float32)),
    }
    (tmp_path / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 16}')
    with (tmp_path / "adapter_model.safetensors").open("wb") as file:
        write_safetensors(file, tensors.items())
    facts = json.loads(miudo("show", tmp_path, "--json").stdout)
    assert (facts["form"], facts["ranks"], facts["alpha"]) == ("PEFT folder", [2], 16.0)
    assert facts["matrices"] == {"model.layers.0.self_attn.q_proj": {"shape": [6, 8], "rank": 2}}


def test_export_writes_an_adapter_as_gguf(adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "again.gguf"
    result = miudo("export", TINY, "--adapter", adapter, "--to", "gguf", "--out", out)
    assert (result.exit_code, result.stdout) == (0, f"adapter {out}\n"), result.output
    back = read_gguf_adapter(out, open_model(TINY).config)
    assert back.base == made().base
    for name, part in made().parts.items():
        np.testing.assert_array_equal(back.parts[name].up, part.up)
    for wrong in (
        ["--to", "hf", "--out", tmp_path],
        ["--to", "hf", "--out", tmp_path / "folder.gguf"],
        ["--to", "gguf", "--dtype", "F16", "--out", out],
        ["--to", "gguf", "--out", tmp_path / "folder"],
        ["--to", "gguf", "--out", adapter],
    ):
        assert miudo("export", TINY, "--adapter", adapter, *wrong).exit_code == 2


def test_an_adapter_goes_through_a_peft_folder_and_back(adapter: Path, tmp_path: Path) -> None:
    folder, again = tmp_path / "peft", tmp_path / "again.gguf"
    done = miudo("export", TINY, "--adapter", adapter, "--to", "hf", "--out", folder)
    assert done.exit_code == 0, done.output
    facts = json.loads(miudo("show", folder, "--json").stdout)
    assert (facts["form"], facts["base"]) == ("PEFT folder", made().base)
    done = miudo("export", TINY, "--adapter", folder, "--to", "gguf", "--out", again)
    assert done.exit_code == 0, done.output
    back = read_gguf_adapter(again, open_model(TINY).config)
    for name, part in made().parts.items():
        other = back.parts[name]
        np.testing.assert_allclose(
            other.scale * other.up @ other.down, part.scale * part.up @ part.down, rtol=1e-5
        )
    texts = [
        json.loads(
            miudo("complete", TINY, "Once", "--adapter", a, "--temperature", 0, "--json").stdout
        )["text"]
        for a in (adapter, folder, again)
    ]
    assert texts[0] == texts[1] == texts[2]


def test_template_and_record_travel_with_an_adapter_in_every_form(
    adapter: Path, tmp_path: Path
) -> None:
    """An adapter that learned through a template answers through it, whatever file it lies in."""
    config = open_model(TINY).config
    learned = Record(verb="finetune", name="mine", licence="MIT")
    template = "<|user|>{{ messages[0].content }}<|end|><|assistant|>"
    folder, file, again = tmp_path / "peft", tmp_path / "a.gguf", tmp_path / "again"
    write_peft(folder, made(), config, record=learned, chat_template=template)
    done = miudo("export", TINY, "--adapter", folder, "--to", "gguf", "--out", file)
    assert "note    was trained through a chat template of its own" in done.stdout, done.output
    assert miudo("export", TINY, "--adapter", file, "--to", "hf", "--out", again).exit_code == 0
    texts = []
    for path in (folder, file, again):
        facts = json.loads(miudo("show", path, "--json").stdout)
        assert (facts["chat_template"], facts["licence"]) == (template, "MIT")
        text = miudo("show", path).stdout
        assert "licence          MIT\n" in text
        assert "mine - finetune, " in text
        options = ["--temperature", 0, "--max-tokens", 12, "--json"]
        answer = miudo("run", TINY, "--adapter", path, "--prompt", "Once upon", *options)
        texts.append(json.loads(answer.stdout)["text"])
    assert texts[0] == texts[1] == texts[2]
    assert [p["verb"] for p in facts["record"]["parents"]] == ["export"]
    assert "record           none" in miudo("show", adapter).stdout
