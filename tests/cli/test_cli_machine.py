"""What tells of this machine: `doctor`, `ps`, `config show`, `completion`, parts of the help."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from miudo.cli import checkups
from miudo.cli.main import _ELSEWHERE, ALIASES, SECTIONS, VERBS, cli
from miudo.cli.variables import VARIABLES
from miudo.serve.registered import registered, running_servers

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "data" / "tiny"


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def told(*arguments: str, code: int = 0) -> Any:
    result = call(*arguments, "--json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def states(value: Any) -> dict[str, str]:
    return {f["part"]: f["state"] for f in value["findings"]}


def test_doctor_finds_this_machine_sound_and_checks_the_engine() -> None:
    value = told("doctor")
    assert value["ok"]
    assert states(value)["self-check"] == "ok"
    checked = [f["found"] for f in value["findings"] if f["part"] == "self-check"]
    assert [text.split()[0] for text in checked] == ["float", "int8"]
    shown = call("doctor").stdout
    assert re.search(r"^ok +self-check +float activations on \w+: off by", shown, re.MULTILINE)
    assert shown.endswith("miudo works here\n")


def test_doctor_fails_where_the_engine_answers_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkups, "_FLOAT_TOLERANCE", 1e-9)
    value = told("doctor", code=3)
    assert (value["ok"], states(value)["engine"]) == (False, "ok")
    (failed,) = [f for f in value["findings"] if f["state"] == "failed"]
    assert failed["part"] == "self-check"
    assert "allowed 1e-09" in failed["found"]
    assert "1 of" in call("doctor").stdout


def test_doctor_names_a_damaged_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from miudo.hub.resolve import embedded_path

    bad = tmp_path / "m.gguf"
    shutil.copy(embedded_path(), bad)
    with bad.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(b"\xff")
    monkeypatch.setattr("miudo.hub.resolve.embedded_path", lambda: bad)
    (failed,) = [f for f in told("doctor", code=3)["findings"] if f["state"] == "failed"]
    assert "is damaged or another" in failed["found"]
    assert "pip install" in failed["cure"]


def test_doctor_says_how_to_install_what_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkups, "_MAKING", ("torch", "nosuch_package"))
    (making,) = [f for f in told("doctor")["findings"] if f["part"] == "making"]
    assert making["state"] == "note"
    assert "absent: nosuch_package" in making["found"]
    assert making["cure"].endswith("-m pip install 'miudo[make]'")
    monkeypatch.setattr(checkups, "_NEEDED", ("nosuch_package",))
    assert states(told("doctor", code=3))["packages"] == "failed"


def test_doctor_finds_a_store_that_cannot_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MIUDO_HOME", str(tmp_path / "file" / "home"))
    value = told("doctor", code=3)
    assert states(value)["store"] == "failed"
    monkeypatch.setenv("MIUDO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MIUDO_HOMES", "x")
    (setting,) = [f for f in told("doctor")["findings"] if f["part"] == "settings"]
    assert (setting["state"], setting["cure"]) == ("note", "Did you mean MIUDO_HOME?")


def test_every_variable_that_is_read_is_listed() -> None:
    source = "".join(p.read_text("utf-8") for p in (ROOT / "src" / "miudo").rglob("*.py"))
    read = set(re.findall(r'(?:environ\.get\(|environ\[|envvar=)"(MIUDO_\w+)"', source))
    assert {"MIUDO_HOME", "MIUDO_HOST", "MIUDO_DEBUG"} <= read
    assert read <= VARIABLES.keys()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "miudo", "serve", str(TINY), "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    yield process
    process.kill()
    process.communicate()


def test_ps_lists_a_server_while_it_lives(server: subprocess.Popen[str]) -> None:
    assert "no server runs here" in call("ps").stdout
    assert server.stdout is not None
    url = re.search(r"http://[\d.:]+", server.stdout.readline())
    assert url is not None
    (row,) = told("ps")["servers"]
    assert (row["pid"], row["url"]) == (server.pid, url[0])
    assert list(row["models"].values()) == [str(TINY)]
    assert row["memory_bytes"] > 1e6
    assert url[0] in call("ps").stdout
    server.send_signal(signal.SIGTERM)
    server.wait(30)
    assert told("ps")["servers"] == []


def test_a_server_that_was_killed_is_forgotten(
    server: subprocess.Popen[str], tmp_path: Path
) -> None:
    assert server.stdout is not None
    server.stdout.readline()
    assert len(running_servers()) == 1
    server.kill()
    server.wait()
    folder = Path(os.environ["XDG_STATE_HOME"]) / "miudo" / "servers"
    assert [p.stat().st_mode & 0o777 for p in folder.iterdir()] == [0o600]
    assert running_servers() == []
    assert list(folder.iterdir()) == []


def test_what_is_no_registration_is_passed_over(tmp_path: Path) -> None:
    folder = Path(os.environ["XDG_STATE_HOME"]) / "miudo" / "servers"
    with registered("http://127.0.0.1:1", {"m": TINY}):
        (folder / "7.json").write_text("{")
        (folder / "8.json").mkdir()
        assert [s.pid for s in running_servers()] == [os.getpid()]
    assert running_servers() == []


def test_a_state_folder_that_cannot_be_keeps_no_server_from_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MIUDO_HOME", str(tmp_path / "file"))
    with registered("http://127.0.0.1:1", {"m": TINY}):
        assert running_servers() == []


def settings(*arguments: str) -> dict[str, tuple[Any, str]]:
    result = call("config", "show", "--json", *arguments)
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["settings"]
    return {row["name"]: (row["value"], row["from"]) for row in rows}


@pytest.fixture
def own() -> Path:
    path = Path(os.environ["XDG_CONFIG_HOME"]) / "miudo" / "config.toml"
    path.parent.mkdir(parents=True)
    path.write_text("[run]\ntemperature = 0.1\ntop-k = 4\nseed = 1\n[serve]\nport = 1234\n")
    return path


def test_config_tells_what_wins_and_where_it_came_from(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "c.toml"
    file.write_text("seed = 2\nmin-p = 0.2\nmax-tokens = 9\n")
    given = ("--config", str(file), "--set", "max_tokens=8", "--set", "top_p=0.5", "--top-p", "0.4")
    found = settings("run", "--", *given)
    assert found["temperature"] == (0.1, str(own))
    assert found["top_k"] == (4, str(own))
    assert found["seed"] == (2, "--config")
    assert found["min_p"] == (0.2, "--config")
    assert found["max_tokens"] == (8, "--set")
    assert found["top_p"] == (0.4, "flag")
    assert found["repetition_penalty"] == (1.0, "default")
    monkeypatch.setenv("MIUDO_HOST", "127.0.0.9")
    assert settings("serve")["address"] == ("127.0.0.9", "variable MIUDO_HOST")
    assert settings("serve")["port"] == (1234, str(own))
    assert settings("eval")["model"] == (None, "default")
    assert "flag" not in call("config", "show", "run", "--no-origin", "--", "--seed", "3").stdout


def test_a_verb_heeds_the_users_own_file_and_can_be_told_not_to(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.write_text("[version]\nnope = 1\n")
    result = call("version")
    assert result.exit_code == 2
    assert f"{own}: version: no setting is called 'nope'" in result.stderr
    monkeypatch.setenv("MIUDO_CONFIG", "")
    assert call("version").exit_code == 0
    monkeypatch.setenv("MIUDO_CONFIG", str(own.parent / "other.toml"))
    assert call("version").exit_code == 4
    (own.parent / "other.toml").write_text("[complete]\nmax-tokens = 1\n")
    result = call("complete", str(TINY), "Um gato", "--json")
    assert json.loads(result.stdout)["usage"]["completion_tokens"] == 1
    (own.parent / "other.toml").write_text("[cmoplete]\n")
    result = call("version")
    assert (result.exit_code, "Did you mean 'complete'?" in result.stderr) == (2, True)
    (own.parent / "other.toml").write_text("run = 3\n")
    assert "Give a table of settings" in call("run", "a b").stderr


def test_config_hides_secrets_and_takes_a_verbs_arguments_behind_two_dashes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MIUDO_API_KEY", "hush")
    result = call("config", "show")
    assert "hush" not in result.stdout
    assert re.search(r"^MIUDO_API_KEY +\(set\)", result.stdout, re.MULTILINE)
    result = call("config", "show", "run", "--set", "seed=3")
    assert (result.exit_code, "behind --" in result.stderr) == (2, True)
    assert call("config", "show", "nope").exit_code == 2
    assert call("config", "show", "run", "--", "--seed", "x").exit_code == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell: str) -> None:
    script = call("completion", shell).stdout
    assert f"_MIUDO_COMPLETE={shell}_complete" in script
    assert told("completion", shell)["script"] + "\n" == script
    assert call("completion", "tcsh").exit_code == 2


def test_bash_completes_verbs_options_and_models_without_numpy(tmp_path: Path) -> None:
    stored = Path(os.environ["XDG_DATA_HOME"]) / "miudo" / "models"
    (stored / "mine" / "latest").mkdir(parents=True)
    (stored / "mine" / "q4").mkdir()
    code = (
        "import sys\nfrom miudo.cli.main import main\nsys.argv[0] = 'miudo'\n"
        "try:\n    main()\nfinally:\n    assert not {'numpy', 'torch'} & set(sys.modules)\n"
    )

    def offered(line: str) -> list[str]:
        words = line.split(" ")
        variables = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
        environment = {**os.environ, "_MIUDO_COMPLETE": "bash_complete", **variables}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return [text.partition(",")[2] for text in done.stdout.split()]

    assert offered("miudo com") == ["complete", "compare", "completion"]
    assert offered("miudo run --spec") == ["--speculate"]
    assert offered("miudo show mi") == ["miudo-6m", "mine", "mine:q4"]


def test_help_has_parts_by_what_one_wants_to_do() -> None:
    shown = call("--help").stdout
    places = [shown.index(f"\n{title}:") for title in SECTIONS.values()]
    assert places == sorted(places)
    assert next(iter(VERBS)) in SECTIONS
    assert SECTIONS.keys() <= VERBS.keys()
    assert all(shown.count(f"\n  {name} ") == 1 for name in VERBS)


def test_ls_is_list_and_other_programs_words_lead_here() -> None:
    assert call("ls").stdout == call("list").stdout
    assert {*ALIASES.values(), *_ELSEWHERE.values()} <= VERBS.keys()
    assert not {*ALIASES, *_ELSEWHERE} & VERBS.keys()
    assert "Did you mean `complete`?" in call("generate", "x").stderr
