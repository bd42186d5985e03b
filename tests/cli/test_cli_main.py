"""The command line as a whole: help, exit codes, errors, pipes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from miudo import __version__
from miudo import errors as miudo_errors
from miudo.cli.main import VERBS, _say, cli


def _command(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "miudo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload,no-any-return]


def _raising(error: Exception) -> Callable[[], None]:
    def body() -> None:
        raise error

    return body


@pytest.fixture
def broken_verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], None]:
    """Makes `miudo version` raise."""

    def use(error: Exception) -> None:
        command = click.Command("version", callback=_raising(error))
        monkeypatch.setattr("miudo.cli.showing.version", command)

    return use


def test_help_lists_every_verb_with_its_line() -> None:
    done = _command("--help")
    assert done.returncode == 0
    for name, (_, text) in VERBS.items():
        assert name in done.stdout
        assert text in done.stdout


@pytest.mark.parametrize("name", list(VERBS))
def test_every_verb_exists_helps_and_takes_json(name: str) -> None:
    module, _, attribute = VERBS[name][0].partition(":")
    command = getattr(import_module(module), attribute)
    assert command.name == name
    assert command.help
    under = list(command.commands) if isinstance(command, click.Group) else []
    for verb in [[name, each] for each in under] or [[name]]:
        result = CliRunner().invoke(cli, [*verb, "-h"])
        assert result.exit_code == 0
        assert "--json" in result.output
        assert "--set" in result.output
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name != "as_json":
            assert parameter.opts[0].startswith("--")


def test_versions() -> None:
    assert CliRunner().invoke(cli, ["--version"]).output == f"miudo {__version__}\n"
    result = CliRunner().invoke(cli, ["version", "--json"])
    assert json.loads(result.output)["python"].startswith("3.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shwo"], "Did you mean `show`?"),
        (["rum"], "Did you mean `rm` or `run`?"),
        (["zzzz"], "See `miudo --help`"),
        (["version", "--nope"], "--nope"),
        (["version", "--set", "nope"], "Write --set key=value"),
        (["version", "--set", "nope=1"], "no setting is called 'nope'"),
        (["eval", "m", "--data", "d", "--set", "strid=3"], "Did you mean 'stride'?"),
        (["eval", "m", "--data", "d", "--set", "stride=many"], "not a valid integer"),
        (["show"], "MODEL"),
        (["show", ""], "names no model"),
    ],
)
def test_usage_errors_exit_2_and_say_the_cure(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not result.stdout


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (miudo_errors.MiudoError("w", where="here", remedy="Do it"), 1, "error: here: w. Do it"),
        (miudo_errors.CheckFailedError("no"), 3, "error: no"),
        (miudo_errors.MissingError("gone"), 4, "error: gone"),
        (miudo_errors.ResourceError("full"), 5, "error: full"),
        (MemoryError(), 5, "too little memory"),
        (OSError(28, "No space left on device", "out.gguf"), 5, "out.gguf: No space left"),
        (FileNotFoundError(2, "No such file", "in.txt"), 4, "in.txt: No such file"),
        (PermissionError(13, "Permission denied", "x"), 1, "x: Permission denied"),
        (ModuleNotFoundError("no", name="torch.nn"), 4, "pip install 'miudo[make]'"),
        (ModuleNotFoundError("no x", name="x"), 1, "internal error: ModuleNotFoundError: no x"),
        (ZeroDivisionError("oops"), 1, "internal error: ZeroDivisionError: oops"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_become_exit_codes_and_one_line(
    broken_verb: Callable[[BaseException], None], error: BaseException, code: int, message: str
) -> None:
    broken_verb(error)
    result = CliRunner().invoke(cli, ["version"])
    assert result.exit_code == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not result.stdout


def test_debug_shows_where_an_error_arose(
    broken_verb: Callable[[Exception], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIUDO_DEBUG", "1")
    broken_verb(ZeroDivisionError("oops"))
    result = CliRunner().invoke(cli, ["version"])
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert "body" in result.stderr


def test_a_closed_pipe_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "miudo", "version"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert done.returncode == 0
    assert not done.stderr


def test_options_come_from_a_file_then_set_then_flags(tmp_path: Path) -> None:
    from miudo.cli.options import verb

    @verb("probe", takes_settings=True)
    @click.option("--steps", type=int, default=1)
    @click.option("--max-tokens", type=int, default=1)
    @click.option("--raw", is_flag=True)
    @click.option("--data", multiple=True)
    def probe(as_json: bool, extra: dict[str, object], **options: object) -> None:
        click.echo(json.dumps({**options, "extra": extra}))

    path = tmp_path / "c.toml"
    path.write_text(
        'steps = 2\nmax-tokens = 2\nraw = true\ndata = ["a", "b"]\nlr = 0.5\n[bench]\nrepeats = 3\n'
    )
    arguments = ["--steps", "9", "--set", "max_tokens=5", "--set", "bench.new_tokens=7"]
    result = CliRunner().invoke(probe, [*arguments, "--config", str(path)])
    assert json.loads(result.output) == {
        "steps": 9,
        "max_tokens": 5,
        "raw": True,
        "data": ["a", "b"],
        "extra": {"lr": 0.5, "bench": {"repeats": 3, "new_tokens": 7}},
    }


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [(b"steps 3", 2, "not TOML"), (b"\xff = 1", 2, "not TOML"), (None, 4, "no such file")],
)
def test_a_settings_file_that_is_none(
    tmp_path: Path, content: bytes | None, code: int, message: str
) -> None:
    path = tmp_path / "c.toml"
    if content is not None:
        path.write_bytes(content)
    result = CliRunner().invoke(cli, ["version", "--config", str(path)])
    assert result.exit_code == code
    assert message in result.stderr


def test_a_warning_is_a_sentence_without_a_place(capsys: pytest.CaptureFixture[str]) -> None:
    _say(UserWarning("weights that are not finite"), UserWarning, "loading.py", 59)
    assert capsys.readouterr().err == "warning: weights that are not finite\n"
