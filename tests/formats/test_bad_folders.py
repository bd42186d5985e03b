"""Model folders that lie: each refused by name, with nothing run, fetched, written or left.

Every generator of `CASES` breaks a good folder in one way. All of them are opened three times:
here, for what the refusal says; by `export`, which must leave nothing; and in a process of its own
under an audit hook, which also bounds the memory.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from miudo.errors import MissingError, ModelFileError
from miudo.formats import ModelFile, open_model
from miudo.formats.export import export
from miudo.formats.hf import write_folder

Make = Callable[..., ModelFile]
Break = Callable[[Path], object]
WEIGHTS, PICKLED = "model.safetensors", "pytorch_model.bin"
GATE = "model.layers.0.mlp.gate_proj.weight"


class Case(NamedTuple):
    row: str
    name: str
    break_: Break
    says: str = ""


def then(*breaks: Break) -> Break:
    """One after the other."""

    def change(folder: Path) -> None:
        for one in breaks:
            one(folder)

    return change


def put(name: str, content: bytes) -> Break:
    """A file's content; the weights are then in that file alone, if it is one for weights."""

    def change(folder: Path) -> None:
        if name.startswith(PICKLED):
            (folder / WEIGHTS).unlink()
        (folder / name).write_bytes(content)

    return change


def edited(name: str, edit: Callable[[bytes], bytes]) -> Break:
    return lambda folder: (folder / name).write_bytes(edit((folder / name).read_bytes()))


def header(edit: Callable[[dict[str, Any]], Any]) -> Break:
    """The header of the safetensors file, changed; its data stays."""

    def change(content: bytes) -> bytes:
        length = int.from_bytes(content[:8], "little")
        values = json.loads(content[8 : 8 + length])
        values = edit(values) or values
        text = values if isinstance(values, bytes) else json.dumps(values).encode()
        return len(text).to_bytes(8, "little") + text + content[8 + length :]

    return edited(WEIGHTS, change)


def field(name: str, value: Any) -> Break:
    return header(lambda h: h[GATE].update({name: value}))


def config(**values: Any) -> Break:
    return edited("config.json", lambda old: json.dumps(json.loads(old) | values).encode())


def tensors(edit: Callable[[dict[str, np.ndarray]], object]) -> Break:
    def change(folder: Path) -> None:
        held = {name: array.copy() for name, array in load_file(folder / WEIGHTS).items()}
        edit(held)
        save_file(held, folder / WEIGHTS)

    return change


def pickled(edit: Callable[[dict[str, torch.Tensor]], object], **how: Any) -> Break:
    """The weights as torch saves them, changed."""

    def change(folder: Path) -> None:
        held = {n: torch.from_numpy(a.copy()) for n, a in load_file(folder / WEIGHTS).items()}
        (folder / WEIGHTS).unlink()
        edit(held)
        torch.save(held, folder / PICKLED, **how)

    return change


def sharded(edit: Callable[[Path, dict[str, str]], object], *, form: str = WEIGHTS) -> Break:
    """Two shards with their index; `edit` changes the folder or the map before it is written."""

    def change(folder: Path) -> None:
        held = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        listed: dict[str, str] = {}
        for i in range(2):
            part = {n: t for j, (n, t) in enumerate(sorted(held.items())) if j % 2 == i}
            shard = f"part-{i}{Path(form).suffix}"
            if form == WEIGHTS:
                save_file(part, folder / shard)
            else:
                torch.save({n: torch.from_numpy(t.copy()) for n, t in part.items()}, folder / shard)
            listed |= dict.fromkeys(part, shard)
        new = edit(folder, listed)
        index = {"weight_map": new if isinstance(new, list | str | dict) else listed}
        (folder / f"{form}.index.json").write_text(json.dumps(index))

    return change


def moved(name: str, kind: str) -> Break:
    """Something else in the place of a file."""

    def change(folder: Path) -> None:
        path, outside = folder / name, folder.parent / f"{folder.name}-{name}"
        if path.exists():
            path.rename(outside)
        else:
            outside.write_bytes(b"{}")
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            with socket.socket(socket.AF_UNIX) as server, changed_folder(folder):
                server.bind(name)  # a path in full would be too long
        else:
            path.symlink_to({"loop": path, "outside": outside}.get(kind) or Path("/dev") / kind)

    return change


class changed_folder:  # noqa: N801 - a context, as `contextlib.chdir` is
    def __init__(self, folder: Path) -> None:
        self.folder, self.old = folder, Path.cwd()

    def __enter__(self) -> None:
        os.chdir(self.folder)

    def __exit__(self, *_: object) -> None:
        os.chdir(self.old)


def turned(held: dict[str, Any], name: str = GATE) -> None:
    held[name] = held[name].T if isinstance(held[name], torch.Tensor) else held[name].T.copy()


def renamed(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda held: held.__setitem__(name, held.pop(GATE))


def twice(h: dict[str, Any]) -> bytes:
    one = json.dumps({GATE: h[GATE]})[:-1]
    return f"{one}, {json.dumps(h)[1:]}".encode()


def shifted(by: int) -> Break:
    return header(lambda h: h[GATE].update(data_offsets=[n + by for n in h[GATE]["data_offsets"]]))


def one_shard_more(folder: Path, listed: dict[str, str]) -> None:
    """The first tensor of one shard lies in the other too."""
    name, shard = next(iter(listed.items()))
    other = next(s for s in listed.values() if s != shard)
    if shard.endswith(".bin"):
        held = torch.load(folder / other) | {name: torch.load(folder / shard)[name]}
        torch.save(held, folder / other)
    else:
        held = load_file(folder / other) | {name: load_file(folder / shard)[name]}
        save_file(held, folder / other)


def elsewhere(place: Any) -> Callable[[Path, dict[str, str]], dict[str, Any]]:
    """The first shard's tensors are said to lie at `place`, where a copy of it does lie."""

    def edit(folder: Path, listed: dict[str, str]) -> dict[str, Any]:
        first = next(iter(listed.values()))
        (folder / "inner").mkdir()
        shutil.copy(folder / first, folder / "inner" / first)
        shutil.copy(folder / first, folder.parent / f"{folder.name}-outside{Path(first).suffix}")
        out = folder.parent / f"{folder.name}-outside{Path(first).suffix}"
        (folder / f"link{out.suffix}").symlink_to(out)
        where = place.format(out=out, up=f"../{out.name}", first=first, ext=out.suffix)
        return {n: where if s == first else s for n, s in listed.items()}

    return edit


# Settings that name code, places or people: none may be followed, whatever becomes of the folder.
CODE: dict[str, Any] = {
    "auto_map": {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "someone/else--evil.Config"},
    "trust_remote_code": True,
    "torch_dtype": "os.system",
    "dtype": "__import__('evil')",
    "_attn_implementation": "someone/kernel",
    "_attn_implementation_internal": "evil",
    "attn_implementation": "evil:attention",
    "_name_or_path": "https://example.org/model",
    "base_model_name_or_path": "hf://someone/else",
    "transformers_version": "../../x",
    "custom_pipelines": {"text-generation": {"impl": "evil.Pipeline"}},
    "tokenizer_class": "evil.Tokenizer",
    "model_type": "evil",
    "architectures": ["evil.Model"],
    "hidden_act": "evil.act",
    "quantization_config": {"quant_method": "evil", "modules": ["evil"]},
    "kernel_config": {"path": "/bin/sh"},
    "_commit_hash": "$(touch evil)",
}
ABSURD = {
    "hidden_size": [2**31, -1, 1.5, "32", 10**39],
    "num_hidden_layers": [10**9, -1, 2.0],
    "vocab_size": [2**31, 0],
    "max_position_embeddings": [2**62, -5],
}
NAMES = ["a\0b", "line\nbreak", "../../x", "/etc/passwd", "\u202ertl", "x" * 513, "x" * 10**6, ""]


def flipped(name: str, seed: int) -> Break:
    """A bit of the first 4 KiB of a file of the folder, or of the GGUF file made of it."""

    def change(folder: Path) -> None:
        if name == PICKLED:
            pickled(lambda h: None)(folder)
        elif name == "model.gguf":
            export(folder, folder / name, to="gguf")
        content = bytearray((folder / name).read_bytes())
        at = np.random.default_rng(seed).integers(8 * min(len(content), 4096))
        content[at // 8] ^= 1 << at % 8
        (folder / name).write_bytes(content)

    return change


def _container_cases() -> Iterator[Case]:
    for name in (WEIGHTS, PICKLED, "config.json"):
        for n in range(8):
            yield Case("L1", f"{name} of {n} bytes", put(name, b"\x80\2}.   "[:n]), name)
    for n in (2**64 - 1, 2**63, 100_000_001, 200_000):
        size = n.to_bytes(8, "little")
        yield Case("L2", f"a header of {n}", edited(WEIGHTS, lambda c, s=size: s + c[8:]), str(n))
    yield Case("L3", "a name twice in safetensors", header(twice), "twice")
    yield Case("L4", "overlap", shifted(-4), "overlaps")
    yield Case("L4", "hole", shifted(4), "hole")
    for name, form in ((WEIGHTS, header(lambda h: None)), (PICKLED, pickled(lambda h: None))):
        for at, edit in (("cut", lambda c: c[:-1]), ("longer", lambda c: c + b"\0")):
            yield Case("L4", f"{name} is {at}", then(form, edited(name, edit)), name)
    for value in (-1, 1.0, "2", 2**70, True, None, [64]):
        yield Case("L5", f"a dimension of {value!r}", field("shape", [value, 32]), "shape")
        yield Case("L5", f"an offset of {value!r}", field("data_offsets", [0, value]), GATE)
    for shape in ([2**62, 4], [2**33, 2**33, 4], [2**32, 2**32]):
        yield Case("L6", f"a shape of {shape}", field("shape", shape), GATE)
    for shape in ([0, 2**62], [2**62, 0], [0, 0]):
        yield Case("L7", f"a shape of {shape}", field("shape", shape), GATE)
    for dtype in ("F17", "I8", "F64", "BF16", "", None, ["F32"], "os.system"):
        yield Case("L8", f"a dtype of {dtype!r}", field("dtype", dtype), GATE)
    for dtype in (torch.float64, torch.int8, torch.bool):
        change = pickled(lambda h, d=dtype: h.update({GATE: h[GATE].to(d)}))
        yield Case("L8", f"pickled {dtype}", change, "miudo reads F32, F16 and BF16")
    for name in NAMES:
        yield Case("L10", f"a tensor called {name[:9]!r}", header(renamed(name)))
        yield Case("L10", f"pickled {name[:9]!r}", pickled(renamed(name)))
    for value in ({"a": 1}, {"a": None}, [], "x", {"a": "x" * 2_000_000}, {"a": "x" * 50_000_000}):
        name = f"metadata of {len(str(value))} characters: {str(value)[:12]}"
        yield Case("L11", name, header(lambda h, v=value: h.update(__metadata__=v)), "")


def _model_cases() -> Iterator[Case]:
    edits: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
        "missing": (lambda h: h.pop(GATE), f"{GATE} is missing"),
        "unknown": (lambda h: h.update(more=h[GATE]), "more is unknown"),
        "turned": (turned, f"{GATE} is [32, 64], the config wants [64, 32]"),
        "without a head": (lambda h: h.pop("lm_head.weight"), "lm_head.weight is missing"),
        "of a larger vocabulary": (
            lambda h: h.update({"lm_head.weight": h[GATE][:48]}), "[48, 32], the config wants [40,"
        ),
        "empty": (lambda h: h.clear(), "is missing"),
    }  # fmt: skip
    for name, (edit, says) in edits.items():
        yield Case("L12", name, tensors(edit), says)
        yield Case("L12", f"{name}, pickled", pickled(edit), says)
        old = {"_use_new_zipfile_serialization": False}
        yield Case("L12", f"{name}, in a stream", pickled(edit, **old), says)
    for key, values in ABSURD.items():
        for value in values:
            yield Case("L13", f"{key} of {value!r:.12}", config(**{key: value}), "config.json")
    for text in (b'{"a": 1e999}', b'{"a": NaN}', b"[]", b"\xff", b'{"a": 1, "a": 2}',
                 b'{"a": [' + b"[]," * 10**6 + b"[]]}", b" " * (9 << 20)):  # fmt: skip
        yield Case("L13", f"a config of {text[:16]!r}", put("config.json", text), "config.json")
        if text != b"[]":
            change = then(sharded(lambda f, m: None), put(f"{WEIGHTS}.index.json", text))
            yield Case("L16", f"an index of {text[:16]!r}", change, "index.json")
    for method in ("gptq", "awq", "bitsandbytes"):
        values = {"quant_method": method, "bits": 4}
        yield Case("L13", f"quantised by {method}", config(quantization_config=values), method)
    for value in ({"bits": 4}, {}, "x", [1], 4):
        change = config(quantization_config=value)
        yield Case("L13", f"quantised by {value}", change, "quantization_config says")
    for vocab_size in (39, 41, 64):
        yield Case(
            "L12", f"a vocabulary of {vocab_size}", config(vocab_size=vocab_size), "[40, 32]"
        )


def _index_cases() -> Iterator[Case]:
    for form in (WEIGHTS, PICKLED):
        says = {
            "{up}": "plain file name", "{out}": "plain file name", "./{first}": "plain file name",
            "inner/{first}": "plain file name", "inner\\{first}": "plain file name",
            "..": "names the shard", ".": "names the shard", "": "names the shard",
            "inner": "names the shard", "config.json": "names the shard",
            "link{ext}": "leads out of the folder", "absent{ext}": "lacks 1 of 2 shards",
            "a\0b{ext}": "plain file name", "x" * 300 + "{ext}": "plain file name",
            "https://example.org/x{ext}": "plain file name", "{first}\n": "names the shard",
        }  # fmt: skip
        for place, word in says.items():
            case = sharded(elsewhere(place), form=form)
            yield Case("L16", f"{form}: a shard at {place[:24]!r}", case, word)
        for listed in ([], {}, "x", {"a": 1}, {"a": None}, {"a": ["x"]}, {"a": {"b": "c"}}):
            case = sharded(lambda f, m, v=listed: v, form=form)
            yield Case("L16", f"{form}: a map of {listed}", case, "index.json")
        swap = sharded(lambda f, m: dict(zip(m, reversed(m.values()), strict=True)), form=form)
        yield Case("L16", f"{form}: shards swapped", swap, "the index says part-")
        less = sharded(lambda f, m: {n: s for n, s in m.items() if n != GATE}, form=form)
        yield Case("L16", f"{form}: not listed", less, f"{GATE} is in part-")
        more = sharded(lambda f, m: m.update(more=m[GATE]), form=form)
        yield Case("L16", f"{form}: listed only", more, "more is missing from part-")
        double = sharded(one_shard_more, form=form)
        yield Case("L16", f"{form}: in two shards", double, "the index says part-")
    for name in ("config.json", WEIGHTS, PICKLED, f"{WEIGHTS}.index.json", "tokenizer.json",
                 "tokenizer_config.json", "generation_config.json", "chat_template.jinja",
                 "record.json"):  # fmt: skip
        for kind in ("folder", "pipe", "socket", "loop", "outside", "zero", "random"):
            change = moved(name, kind)
            if name in (PICKLED, f"{WEIGHTS}.index.json"):  # read where there is no WEIGHTS
                change = then(lambda f: (f / WEIGHTS).unlink(), change)
            yield Case("L18", f"{name} is a {kind}", change)


def _foreign_cases(bad: dict[str, tuple[bytes, str]], make: SimpleNamespace) -> Iterator[Case]:
    for name, (content, says) in bad.items():
        yield Case("L15", f"an archive with {name}", put(PICKLED, make.zip(content)), says)
        if "protocol" in name:
            yield Case("L15", f"a pickle of {name}", put(PICKLED, content), "nothing that torch")
    yield Case("L15", "a pickle under another name", put(WEIGHTS, content), WEIGHTS)
    archive = make.zip(make.state(("w", make.view())))
    yield Case("L15", "an archive under another name", put(WEIGHTS, archive), WEIGHTS)
    yield Case("L15", "an archive behind", edited(WEIGHTS, lambda c: c + archive), WEIGHTS)
    change = then(
        edited(WEIGHTS, lambda c: c + archive), lambda f: (f / WEIGHTS).rename(f / PICKLED)
    )
    yield Case("L15", "an archive behind safetensors", change, "nothing that torch")


@pytest.fixture(scope="session")
def good(make_model: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "model"
    write_folder(folder, make_model("llama-untied"))
    (folder / "evil.py").write_text("raise SystemExit(9)")
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return shutil.copytree(good, tmp_path / "model")


STATIC = [*_container_cases(), *_model_cases(), *_index_cases()]


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    """Every file below `root`, links not followed, with size and time of its last change."""
    found = (path for path in sorted(root.rglob("*")))
    return {str(p): (p.lstat().st_size, p.lstat().st_mtime_ns) for p in found}


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=f"{c.row} {c.name}", marks=pytest.mark.row(c.row, "L27")) for c in STATIC],
)
def test_a_folder_that_lies_is_refused_by_name(folder: Path, tmp_path: Path, case: Case) -> None:
    case.break_(folder)
    before = snapshot(tmp_path)
    with pytest.raises((ModelFileError, MissingError)) as caught:
        open_model(folder)
    assert str(folder) in str(caught.value)
    assert case.says in str(caught.value)
    assert str(caught.value).replace("\n", "").isprintable()
    for to, name in (("hf", "out"), ("gguf", "out.gguf")):
        with pytest.raises(type(caught.value)):
            export(folder, tmp_path / name, to=to)  # type: ignore[arg-type]
    assert snapshot(tmp_path) == before


AUDITED = """
import json, resource, sys, time, warnings
from pathlib import Path
from miudo.errors import MiudoError
from miudo.formats import open_model

warnings.simplefilter("ignore")
good, *folders = json.loads(Path(sys.argv[1]).read_text())
root, seen = None, []
bad = ("import", "socket", "subprocess", "os.", "shutil", "exec", "compile", "ctypes", "pickle",
       "marshal", "urllib", "tempfile")

def hook(event, args):
    if root is None or event in ("os.listdir", "os.scandir", "object.__getattr__"):
        return
    if event == "open":
        path, mode, flags = args
        held = isinstance(path, int)  # a descriptor that an earlier event was about
        beside = root.parent / "record.json"  # a file's own record
        known = not held and Path(path).absolute() in (beside, root)
        outside = not (held or known or Path(path).absolute().is_relative_to(root))
        if outside or flags & 3 or set(str(mode or "r")) & set("wax+"):
            seen.append(f"{event} {args}")
    elif event.startswith(bad):
        seen.append(f"{event} {args[:1]}")

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

def peak():  # not ru_maxrss, which a process inherits from the one that started it
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024

for path in good:  # what is imported at need is there from now on
    try:
        open_model(Path(path))
    except MiudoError as error:
        str(error)
sys.addaudithook(hook)
start = resident()
for path in folders:
    seen, before, root = [], time.process_time(), Path(path).resolve()
    try:
        open_model(root)
        said = None
    except MiudoError as error:
        said = type(error).__name__
        str(error)
    root, spent = None, time.process_time() - before
    print(json.dumps([path, said, seen, spent, peak() - start]), flush=True)
"""


def audited(program_input: Path, good: list[Path], folders: list[Path]) -> list[list[Any]]:
    """Opens `folders` under the hook: path, error, what was seen, seconds, growth at its peak."""
    program_input.write_text(json.dumps([[str(p) for p in good], *map(str, folders)]))
    command = [sys.executable, "-c", AUDITED, os.fspath(program_input)]
    source = os.fspath(Path(__file__).parents[2] / "src")
    environment = os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


MOST_MEMORY = 64 << 20


@pytest.mark.row("L14", "L28")
def test_no_folder_runs_imports_fetches_writes_or_fills_the_memory(
    folder: Path,
    tmp_path: Path,
    bad_pickles: dict[str, tuple[bytes, str]],
    torch_files: SimpleNamespace,
) -> None:
    cases = [*STATIC, *_foreign_cases(bad_pickles, torch_files)]
    cases += [Case("L14", f"{key} names code", config(**{key: v})) for key, v in CODE.items()]
    cases += [Case("L14", "all that names code", config(**CODE))]
    good = [folder, tmp_path / "good-pickled", tmp_path / "good-shards"]
    for path in good[1:]:
        shutil.copytree(folder, path)
    pickled(lambda h: None)(good[1])
    sharded(lambda f, m: None)(good[2])
    for name in (WEIGHTS, PICKLED, "config.json", "model.gguf"):
        cases += [Case("L29", f"bit {i} of {name}", flipped(name, i)) for i in range(20)]
    built = [shutil.copytree(folder, tmp_path / f"case-{i:04}") for i in range(len(cases))]
    for case, path in zip(cases, built, strict=True):
        case.break_(path)
    built = [path / "model.gguf" if (path / "model.gguf").exists() else path for path in built]
    before = snapshot(tmp_path)
    found = audited(tmp_path / "input.json", [*good, built[0], built[-1]], [*good, *built])
    after = snapshot(tmp_path)
    del after[str(tmp_path / "input.json")]
    assert after == before
    for case, (_, said, seen, _, _) in zip(cases, found[len(good) :], strict=True):
        assert not seen, (case.name, seen)
        assert said in ("ModelFileError", "MissingError") or case.row in ("L14", "L29"), case.name
    for path, said, seen, _, _ in found[: len(good)]:
        assert (said, seen) == (None, []), path
    assert found[-1][-1] < MOST_MEMORY, grown(found)
    slow = max(found, key=lambda f: f[3])
    print(f"{len(found)} folders, slowest {slow[3]:.2f} s, memory {found[-1][-1] / 2**20:.0f} MiB")
    print("slowest:", cases[found.index(slow) - len(good)].name)


def grown(found: list[list[Any]]) -> list[tuple[str, int]]:
    """Where the memory grew, in MiB, for the message of a failure."""
    pairs = itertools.pairwise(found)
    return [(b[0], (b[4] - a[4]) >> 20) for a, b in pairs if b[4] - a[4] > 1 << 20]


@pytest.mark.parametrize(
    "program",
    [
        "import wave",
        "open('/etc/passwd')",
        "open(root / 'x', 'w')",
        "import socket; socket.socket()",
        "import os; os.system('true')",
        "import pickle; pickle.loads(b'cos\\nsystem\\n.')",
        "eval('1')",
    ],
)
def test_the_hook_sees_what_must_not_happen(folder: Path, tmp_path: Path, program: str) -> None:
    """A guard that saw nothing would let all of the above pass."""
    import_ = f"def open_model(root):\n    if root.name == 'case':\n        {program}\n"
    shutil.copytree(folder, tmp_path / "case")
    text = AUDITED.replace("from miudo.formats import open_model\n", import_)
    (tmp_path / "x.json").write_text(json.dumps([[], str(tmp_path / "case")]))
    command = [sys.executable, "-c", text, os.fspath(tmp_path / "x.json")]
    environment = os.environ | {"PYTHONPATH": os.fspath(Path(__file__).parents[2] / "src")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert json.loads(done.stdout.splitlines()[0])[2], done.stdout + done.stderr
