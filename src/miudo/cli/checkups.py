"""What `miudo doctor` looks at, one function a part: each says what it found and what mends it.

For: a machine on which something does not work, and reports of that.
Not for: how fast it is (`miudo bench`) or whether a model is whole (`miudo show --verify`).
Read next: `miudo.cli.doctoring`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from miudo.errors import MiudoError

__all__ = ["CHECKUPS", "Finding"]

_State = Literal["ok", "note", "failed"]

_NEEDED = ("numpy", "tokenizers", "huggingface_hub", "jinja2", "click", "psutil", "starlette",
           "uvicorn")  # fmt: skip
_MAKING = ("torch", "safetensors", "pyarrow", "datasketch", "matplotlib")
_LITTLE_MEMORY, _LITTLE_DISK = 256 << 20, 1 << 30

_FLOAT_TOLERANCE = 1e-4
"""In a log-probability, against the decoder in PyTorch; 6e-6 was measured on three paths."""

_INT8_TOLERANCE = 0.25
"""The same with activations in 8 bits; 0.07 was measured. A broken kernel is off by whole units."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a part is like; `cure` is what to do about it. Only `failed` fails the checkup."""

    part: str
    state: _State
    found: str
    cure: str | None = None


def _machine() -> Iterator[Finding]:
    import psutil

    from miudo.records import environment

    known = environment()
    cores = f"{psutil.cpu_count(logical=False) or '?'} cores, {os.cpu_count()} threads"
    yield Finding("machine", "ok", f"{known['processor']}; {known['system']}; {cores}")
    yield Finding("python", "ok", f"{known['python']}, miudo {known.get('miudo', 'uninstalled')}")
    memory = psutil.virtual_memory()
    found = f"{memory.available / 1e9:,.1f} GB free of {memory.total / 1e9:,.1f} GB"
    if memory.available < _LITTLE_MEMORY:
        yield Finding("memory", "note", found, "Close other programs, or choose a small model")
    else:
        yield Finding("memory", "ok", found)


def _native() -> Iterator[Finding]:
    from miudo.engine.native_door import load_native

    try:
        native = load_native()
    except MiudoError as error:
        yield Finding("engine", "failed", error.what, error.remedy)
        return
    isas = native.probe_isas()
    found = f"can use {', '.join(isas)}"
    if forced := os.environ.get("MIUDO_ISA"):
        yield Finding(
            "engine", "note", f"{found}; MIUDO_ISA says {forced}", "Unset it for the best"
        )
    elif isas == ["portable"]:
        cure = "Everything works, slowly: this processor has none of the instructions that help"
        yield Finding("engine", "note", found, cure)
    else:
        yield Finding("engine", "ok", found)


def _answer() -> Iterator[Finding]:
    """The engine against what the decoder says of the model inside the package."""
    import numpy as np

    from miudo.evaluate.loading import load_model
    from miudo.files import sha256_file
    from miudo.hub.resolve import embedded_path

    known: Any = json.loads(Path(__file__).parents[1].joinpath("hub/known_answer.json").read_text())
    part = "self-check"
    try:
        path = embedded_path()
        if sha256_file(path) != known["sha256"]:
            yield Finding(part, "failed", f"{path} is damaged or another", _reinstall())
            return
        for activations, allowed in (("float", _FLOAT_TOLERANCE), ("int8", _INT8_TOLERANCE)):
            loaded = load_model(path, activations=activations)  # type: ignore[arg-type]
            if known["ids"][-len(ids := loaded.tokenizer.encode(known["text"])) :] != ids:
                yield Finding(part, "failed", "the tokenizer cuts a text wrongly", _reinstall())
                return
            scores = loaded.engine.score(known["ids"]).logprobs
            off = float(np.abs(scores - np.asarray(known["logprobs"])).max())
            isa = getattr(loaded.engine, "isa", "")
            found = f"{activations} activations on {isa}: off by at most {off:.1g}"
            if not off <= allowed:  # NaN is off too
                cure = "Try MIUDO_ISA=portable, and please report this"
                yield Finding(part, "failed", f"{found}, allowed {allowed:g}", cure)
            else:
                yield Finding(part, "ok", f"{found} from the known answer")
    except MiudoError as error:
        yield Finding(part, "failed", str(error), _reinstall())


def _reinstall() -> str:
    return f"Install miudo anew: {sys.executable} -m pip install --force-reinstall miudo"


def _packages() -> Iterator[Finding]:
    for label, names, extra in (("packages", _NEEDED, ""), ("making", _MAKING, "[make]")):
        found = {name: _version(name) for name in names}
        absent = [name for name, version in found.items() if version is None]
        text = ", ".join(f"{name} {version}" for name, version in found.items() if version)
        if not absent:
            yield Finding(label, "ok", text)
            continue
        cure = f"{sys.executable} -m pip install 'miudo{extra}'"
        missing = f"absent: {', '.join(absent)}"
        if extra:
            yield Finding(label, "note", f"{missing}; training and compressing need them", cure)
        else:
            yield Finding(label, "failed", missing, cure)


def _version(name: str) -> str | None:
    from importlib.util import find_spec

    if find_spec(name) is None:
        return None
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "of unknown version"


def _disk() -> Iterator[Finding]:
    from miudo.hub.cache import cache_folder, cached_models
    from miudo.hub.folders import home_folder, state_folder
    from miudo.hub.store import stored_models

    yield _folder("store", home_folder(), f"{sum(1 for _ in stored_models())} models", "MIUDO_HOME")
    count = sum(1 for _ in cached_models())
    yield _folder("hub cache", cache_folder(), f"{count} models", "HF_HUB_CACHE")
    yield _folder("state", state_folder(), "history, servers", "MIUDO_HOME")


def _folder(part: str, folder: Path, holds: str, variable: str) -> Finding:
    standing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not standing.is_dir() or not os.access(standing, os.W_OK | os.X_OK):
        cure = f"Make it writable, or name another with {variable}"
        return Finding(part, "failed", f"{folder}: {standing} cannot be written into", cure)
    free = shutil.disk_usage(standing).free
    made = "" if folder.exists() else " (made when it is needed)"
    found = f"{folder}{made}: {holds}, {free / 1e9:,.1f} GB free"
    if free < _LITTLE_DISK:
        return Finding(part, "note", found, f"Free some space, or name another with {variable}")
    return Finding(part, "ok", found)


def _settings() -> Iterator[Finding]:
    import difflib

    from miudo.cli.options import own_file
    from miudo.cli.settings import read_toml
    from miudo.cli.variables import VARIABLES

    own = own_file()
    if own is not None:
        try:
            read_toml(own)
            yield Finding("settings", "ok", f"{own} is read")
        except MiudoError as error:
            yield Finding("settings", "failed", str(error), f"Mend {own}")
    if os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE"):
        yield Finding("network", "ok", "switched off by HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE")
    for name in sorted(os.environ):
        if name.startswith("MIUDO_") and name not in VARIABLES:
            near = difflib.get_close_matches(name, VARIABLES, n=1)
            cure = f"Did you mean {near[0]}?" if near else "See `miudo config show`"
            yield Finding("settings", "note", f"miudo heeds no variable {name}", cure)


CHECKUPS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _machine, _native, _answer, _packages, _disk, _settings,
)  # fmt: skip
"""In the order in which they are told."""
