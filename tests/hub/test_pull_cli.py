"""`miudo pull` as a user types it, against the hub on loopback."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from miudo.cli.main import cli
from miudo.hub import pull as pulling


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def test_a_name_of_the_catalogue_is_fetched_and_runs(hub: Any, tiny: Any, cache: Path) -> None:
    tiny.card = {"license": "gemma"}
    hub.repositories["google/gemma-3-270m-it"] = tiny
    result = call("pull", "gemma3:270m")
    assert result.exit_code == 0, result.stderr
    assert "google/gemma-3-270m-it is under LicenseRef-Gemma." in result.stderr
    assert "LicenseRef-Gemma" in result.stdout
    assert f"commit   {tiny.commit}" in result.stdout
    assert "MB fetched" in result.stdout
    asked = len(hub.asked)
    ran = call("run", "gemma3:270m", "hello", "--max-tokens", "2")
    assert ran.exit_code == 0, ran.stderr
    assert "Gemma" not in ran.stderr  # said once, when it was pulled
    assert len(hub.asked) == asked  # and no other verb goes to the network
    shown = call("show", "gemma3:270m").stdout
    assert "pull" in shown
    assert "licence          LicenseRef-Gemma" in shown
    assert "note: google/gemma-3-270m-it is under LicenseRef-Gemma" in shown
    again = call("pull", "gemma3:270m")
    assert "was here" in again.stdout
    assert "Gemma." not in again.stderr


def test_the_result_is_json_on_request(hub: Any, tiny: Any) -> None:
    hub.repositories["org/tiny"] = tiny
    result = call("pull", "hf://org/tiny", "--json")
    value = json.loads(result.stdout)
    assert value["record"]["settings"]["commit"] == tiny.commit
    assert value["fetched_bytes"] > 0
    assert os.path.isdir(value["path"])


def test_what_it_made_goes_on_to_other_verbs(hub: Any, tiny: Any, tmp_path: Path) -> None:
    tiny.card = {"license": "cc-by-nc-4.0"}
    hub.repositories["org/tiny"] = tiny
    assert call("pull", "hf://org/tiny").exit_code == 0
    out = tmp_path / "small.gguf"
    assert call("export", "hf://org/tiny", "--to", "gguf", "--out", str(out)).exit_code == 0
    shown = json.loads(call("show", str(out), "--json").stdout)
    assert shown["licence"] == "CC-BY-NC-4.0"
    assert shown["record"]["parents"][0]["verb"] == "pull"
    assert "Not for commercial use" in call("run", str(out), "hi", "--max-tokens", "1").stderr


def test_refusals_end_in_their_codes_with_one_line(hub: Any, tiny: Any) -> None:
    hub.repositories["org/gated"] = tiny
    tiny.gated = 403
    for name, said in (("hf://org/nobody", "no such repository"), ("hf://org/gated", "is gated")):
        result = call("pull", name)
        assert result.exit_code == 4
        assert said in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert result.stdout == ""


def test_an_interruption_says_how_to_go_on(
    hub: Any, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["org/tiny"] = tiny

    def stop(*given: object, **named: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(pulling, "fetch_blob", stop)
    result = call("pull", "hf://org/tiny")
    assert result.exit_code == 130
    assert "miudo pull hf://org/tiny goes on where this stopped" in result.stderr
