"""The verbs that make models, a step or two each: folders, records, resuming, refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from miudo.cli.main import cli
from miudo.formats import open_model
from miudo.tensors import DType, parameter_count

SHORT = ["--batch-size", "2", "--length", "16", "--set", "compile=off", "--set", "precision=f32"]


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def values(*arguments: str | Path) -> Any:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("making")


@pytest.fixture(scope="module")
def data(work: Path) -> Path:
    text = work / "text.jsonl"
    lines = (
        f"The {n} cats of house {n * n} sleep; os gatos da casa {n} dormem." for n in range(200)
    )
    text.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    made = values(
        "prepare", text, "--out", work / "data", "--vocab-size", "320", "--held-out", "0.1"
    )
    assert made["tokens"]["held_out"] > 0
    return work / "data"


@pytest.fixture(scope="module")
def teacher(work: Path, data: Path) -> Path:
    made = values(
        "train", "--data", data, "--out", work / "teacher", "--steps", "2", "--seed", "4",
        "--chat-template", "default", *SHORT,
    )  # fmt: skip
    assert made["fit"]["steps"] == 2
    return Path(made["model"])


def test_a_trained_model_is_whole_and_knows_where_it_came_from(teacher: Path, data: Path) -> None:
    model = open_model(teacher)
    assert model.config.vocab_size == 320
    assert model.chat_template is not None
    shown = values("show", teacher)
    assert shown["record"]["verb"] == "train"
    assert shown["record"]["seed"] == 4
    assert shown["record"]["parents"][0]["verb"] == "prepare"
    assert shown["record"]["command"][:2] == ["miudo", "train"]
    assert shown["record"]["parents"][0]["command"][:2] == ["miudo", "prepare"]
    assert values("eval", teacher, "--data", data)["ppl"] > 1


def test_pruning_with_recovery_gives_a_smaller_model(teacher: Path, data: Path, work: Path) -> None:
    made = values(
        "prune", teacher, "--data", data, "--out", work / "pruned", "--depth", "1", "--width",
        "0.5", "--steps", "1", "--set", "calibration_tokens=64", "--set", "calibration_length=16",
        *SHORT,
    )  # fmt: skip
    before, after = open_model(teacher).config, open_model(Path(made["model"])).config
    assert after.n_layers == before.n_layers - 1
    assert {layer.d_ff for layer in after.layers} == {before.layers[0].d_ff // 2}
    assert made["fit"]["steps"] == 1


def test_every_way_of_pruning_in_one_go(teacher: Path, data: Path, work: Path) -> None:
    out = work / "all"
    made = values(
        "prune", teacher, "--data", data, "--out", out, "--depth", "1", "--hidden", "0.75",
        "--heads", "0.5", "--width", "0.75", "--pattern", "2:4", "--method", "wanda", "--repair",
        "--set", "calibration_tokens=256", "--set", "calibration_length=16",
    )  # fmt: skip
    record = values("show", made["model"])["record"]
    names = [method["method"] for method in record["settings"]["methods"]]
    assert names == ["depth", "hidden", "heads", "width", "sparse"]
    assert record["settings"]["methods"][4]["settings"]["method"] == "wanda"
    assert record["settings"]["repair"] == 0.01
    before, after = open_model(teacher).config, open_model(Path(made["model"])).config
    assert after.d_model < before.d_model
    assert after.layers[0].n_heads < before.layers[0].n_heads


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--sparsity", "0.5", "--pattern", "1:4"), "is 1:4, and --sparsity is 0.5"),
        (("--method", "wanda"), "--sparsity or --pattern"),
        (("--pattern", "4:2"), "pattern is '4:2'"),
        (("--heads", "0"), "heads is 0.0"),
    ],
)
def test_pruning_that_cannot_be(
    options: tuple[str, ...], message: str, teacher: Path, data: Path, tmp_path: Path
) -> None:
    result = invoke("prune", teacher, "--data", data, "--out", tmp_path / "o", *options)
    assert result.exit_code == 2
    assert message in result.stderr


def test_pruning_alone_learns_nothing(teacher: Path, data: Path, work: Path) -> None:
    options = ["--set", "calibration_tokens=64", "--set", "calibration_length=16"]
    out = work / "cut"
    made = values("prune", teacher, "--data", data, "--out", out, "--depth", "1", *options)
    assert "fit" not in made


def test_distilling_gives_a_student_of_the_share_asked_for(
    teacher: Path, data: Path, work: Path
) -> None:
    made = values(
        "distill", teacher, "--data", data, "--out", work / "student", "--student", "0.3",
        "--steps", "1", "--temperature", "1.5", "--loss", "skew-kl", "--features", "uniform",
        *SHORT,
    )  # fmt: skip
    sizes = [
        parameter_count(open_model(path).config, embeddings=False)
        for path in (teacher, Path(made["model"]))
    ]
    assert 0.2 < sizes[1] / sizes[0] < 0.4
    record = values("show", made["model"])["record"]
    response, text, features = record["settings"]["loss"]["terms"]
    assert (response["kind"], response["temperature"]) == ("skew-kl", 1.5)
    assert (text["kind"], features["kind"], features["schedule"]) == (
        "cross-entropy", "hidden", "fall",
    )  # fmt: skip


def test_a_recipe_names_terms_and_layers_name_a_student(
    teacher: Path, data: Path, work: Path
) -> None:
    recipe = work / "recipe.toml"
    recipe.write_text(
        'steps = 1\n[[terms]]\nkind = "reverse-kl"\nweight = 0.5\n'
        '[[terms]]\nkind = "minilm-v2"\nheads = 2\n',
        encoding="utf-8",
    )
    made = values(
        "distill", teacher, "--data", data, "--out", work / "of-layers", "--student-layers", "0,1",
        "--config", recipe, *SHORT,
    )  # fmt: skip
    assert open_model(Path(made["model"])).config.n_layers == 2
    terms = values("show", made["model"])["record"]["settings"]["loss"]["terms"]
    assert [term["kind"] for term in terms] == ["reverse-kl", "minilm-v2"]
    refused = invoke(
        "distill", teacher, "--data", data, "--out", work / "both", "--config", recipe,
        "--loss", "skew-kl", *SHORT,
    )  # fmt: skip
    assert refused.exit_code == 2
    assert "--loss" in refused.stderr


def test_distilling_to_a_type_gives_a_file_of_the_teachers_shape(
    teacher: Path, data: Path, work: Path
) -> None:
    made = values(
        "distill", teacher, "--data", data, "--out", work / "rounded", "--dtype", "q4_0",
        "--tables", "Q8_0", "--steps", "2", *SHORT,
    )  # fmt: skip
    model = open_model(Path(made["model"]))
    assert Path(made["model"]).name == "model.gguf"
    assert model.config.layers == open_model(teacher).config.layers
    assert model.weights["layers.0.attn.q.weight"].dtype is DType.Q4_0
    assert model.weights["embed.weight"].dtype is DType.Q8_0
    record = values("show", made["model"])["record"]
    assert record["settings"]["fit"]["optimizer"] == "adamw"
    assert [term["weight"] for term in record["settings"]["loss"]["terms"]] == [1.0, 0.0]


def test_a_second_run_into_a_folder_is_refused_and_resume_gives_the_model_again(
    teacher: Path, data: Path
) -> None:
    out = teacher.parent
    before = (teacher / "model.safetensors").read_bytes()
    refused = invoke("train", "--data", data, "--out", out, "--steps", "2", *SHORT)
    assert refused.exit_code == 2
    assert "--resume" in refused.stderr
    assert values("train", "--out", out, "--resume")["fit"]["steps"] == 2
    assert (teacher / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "--out", "{out}", "--steps", "1"], 2, "--data"),
        (["train", "--data", "{data}", "--out", "{out}"], 2, "--tokens, --steps and --minutes"),
        (
            ["train", "--data", "{data}", "--out", "{out}", "--steps", "1", "--tokens", "1"],
            2,
            "--tokens, --steps and --minutes",
        ),
        (
            ["train", "--data", "{data}", "--out", "{out}", "--steps", "1", "--set", "lrr=1"],
            2,
            "Did you mean 'lr'?",
        ),
        (
            ["train", "--data", "{data}", "--out", "{out}", "--steps", "1", "--set", "prepare.x=1"],
            2,
            "'x'",
        ),
        (
            ["train", "--data", "{data}", "--out", "{out}", "--steps", "1", "--preset", "9m"],
            2,
            "1m",
        ),
        (["train", "--data", "no.txt", "--out", "{out}", "--steps", "1"], 4, "no.txt"),
        (["train", "--out", "{out}", "--resume"], 4, "holds no run"),
        (
            ["prune", "{teacher}", "--data", "{data}", "--out", "{out}"],
            2,
            "nothing is to be pruned",
        ),
        (["prune", "{teacher}", "--data", "{data}", "--out", "{out}", "--depth", "9"], 2, "drop"),
        (["quantize", "{teacher}", "--out", "{out}"], 2, ".gguf"),
        (["prepare", "none.txt", "--out", "{out}"], 4, "none.txt"),
    ],
)
def test_what_cannot_be_made_is_told_and_nothing_is_left(
    teacher: Path, data: Path, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    out = tmp_path / "out"
    result = invoke(*(a.format(out=out, data=data, teacher=teacher) for a in arguments))
    assert (result.exit_code, message in result.stderr) == (code, True), result.stderr
    assert not (out / "model").exists()
