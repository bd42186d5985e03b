"""`pull` from a hub on loopback: what comes, what is checked, and every way it can go wrong."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from huggingface_hub import constants, snapshot_download, try_to_load_from_cache
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from miudo.errors import MissingError, MiudoError, ModelFileError, ResourceError, UsageError
from miudo.formats import open_model
from miudo.formats.hf import verify_folder
from miudo.hub import pull as pulling
from miudo.hub.cache import cached_models, cached_path
from miudo.hub.licences import Licence
from miudo.hub.pull import Pulled, pull, pulled_offline
from miudo.names import HubRef, parse_reference
from miudo.records import Record

REF = HubRef("org", "tiny")
NEEDED = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


def fetch(reference: HubRef = REF, told: list[Licence] | None = None) -> Pulled:
    return pull(
        reference,
        tell=(told if told is not None else []).append,
        progress=lambda here, total: None,
        waiting=lambda name: None,
    )


def blobs(cache: Path) -> set[str]:
    return {path.name for path in cache.glob("models--*/blobs/*")}


def nothing_linked(cache: Path) -> bool:
    return not any(cache.glob("models--*/snapshots/*/*"))


def test_what_can_reach_the_network_is_named() -> None:
    """Pulling, a teacher at an address, and the server: each where it is asked for by its verb."""
    source = Path(pulling.__file__).parents[1]
    found = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*.py")
        if re.search(r"^\s*(?:from|import) (?:httpx|requests|urllib\.request|socket|http\.)",
                     path.read_text("utf-8"), re.MULTILINE)
    }  # fmt: skip
    assert found == {"hub/download.py", "hub/remote.py", "engine/remote.py", "serve/run.py"}


# What comes


def test_a_model_comes_with_what_it_needs_and_nothing_else(
    hub: Any, tiny: Any, cache: Path
) -> None:
    hub.repositories["org/tiny"] = tiny
    pulled = fetch()
    assert pulled.path == cache / "models--org--tiny" / "snapshots" / tiny.commit
    assert {path.name for path in pulled.path.iterdir()} == {*NEEDED, "record.json"}
    asked = {path.rsplit("/", 1)[1] for path, _ in hub.asked if "/api/" not in path}
    assert asked == NEEDED
    assert pulled.fetched_bytes == sum(len(tiny.files[name]) for name in NEEDED)


def test_the_record_says_where_it_came_from_and_travels_with_the_model(hub: Any, tiny: Any) -> None:
    hub.repositories["org/tiny"] = tiny
    path = fetch(HubRef("org", "tiny", None, "v1")).path
    record = open_model(path).record
    assert record is not None
    assert record.verb == "pull"
    assert record.licence == "Apache-2.0"
    assert record.settings == {
        "reference": "hf://org/tiny@v1",
        "revision": "v1",
        "commit": tiny.commit,
        "endpoint": hub.url,
    }
    wanted = {name: hashlib.sha256(tiny.files[name]).hexdigest() for name in NEEDED}
    assert record.outputs == wanted
    verify_folder(path)


def test_other_programs_find_it_in_the_cache(hub: Any, tiny: Any, cache: Path) -> None:
    hub.repositories["org/tiny"] = tiny
    path = fetch().path
    asked = len(hub.asked)
    assert try_to_load_from_cache("org/tiny", "config.json", cache) == str(path / "config.json")
    found = snapshot_download("org/tiny", cache_dir=cache, local_files_only=True)
    assert Path(found) == path
    assert len(hub.asked) == asked
    assert (path / "model.safetensors").resolve().name == tiny.digest("model.safetensors")


def test_what_another_program_fetched_is_checked_and_not_fetched_again(
    hub: Any, tiny: Any, cache: Path
) -> None:
    hub.repositories["org/tiny"] = tiny
    blob = cache / "models--org--tiny" / "blobs" / tiny.digest("model.safetensors")
    blob.parent.mkdir(parents=True)
    blob.write_bytes(tiny.files["model.safetensors"])
    fetch()
    assert not hub.fetched("model.safetensors")
    blob.write_bytes(tiny.files["model.safetensors"][:-1] + b"!")
    shutil.rmtree(cache / "models--org--tiny" / "snapshots")
    fetch()
    assert hub.fetched("model.safetensors")
    assert blob.read_bytes() == tiny.files["model.safetensors"]


def test_a_second_pull_asks_only_whether_there_is_something_new(hub: Any, tiny: Any) -> None:
    hub.repositories["org/tiny"] = tiny
    first = fetch()
    hub.asked.clear()
    second = fetch()
    assert second.path == first.path
    assert second.fetched_bytes == 0
    assert [path for path, _ in hub.asked] == ["/api/models/org/tiny/revision/main"]


def test_a_second_pull_writes_nothing(hub: Any, tiny: Any, cache: Path) -> None:
    hub.repositories["org/tiny"] = tiny
    first = fetch()
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    assert fetch() == Pulled(first.path, first.record, 0)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before


def test_without_links_the_snapshot_holds_the_files(
    hub: Any, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True)
    hub.repositories["org/tiny"] = tiny
    path = fetch().path
    assert not any(file.is_symlink() for file in path.iterdir())
    verify_folder(path)


def test_a_new_commit_comes_beside_the_old_one(hub: Any, tiny: Any) -> None:
    hub.repositories["org/tiny"] = tiny
    old = fetch().path
    tiny.commit = "b" * 40
    tiny.files["generation_config.json"] = b'{"eos_token_id": 1}'
    hub.asked.clear()
    new = fetch().path
    assert new != old
    assert cached_path(REF) == new
    assert cached_path(HubRef("org", "tiny", None, "a" * 40)) == old
    assert not hub.fetched("model.safetensors")
    assert {m.reference.revision for m in cached_models()} == {"main", "a" * 40}


def test_an_older_model_stays_until_the_newer_is_whole(
    hub: Any, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["org/tiny"] = tiny
    old = fetch().path
    tiny.commit = "b" * 40
    tiny.files["generation_config.json"] = b'{"eos_token_id": 1}'

    def stop(record: Record, folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Record, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            fetch()
    assert cached_path(REF) == old
    assert cached_path(HubRef("org", "tiny", None, "a" * 40)) == old
    assert fetch().path != old


def sharded(tiny: Any) -> None:
    whole = tiny.files.pop("model.safetensors")
    shards = {"model-00001-of-00002.safetensors": whole, "model-00002-of-00002.safetensors": b"2"}
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors",
                            "b": "model-00002-of-00002.safetensors"}}  # fmt: skip
    tiny.files |= shards | {"model.safetensors.index.json": json.dumps(index).encode()}
    tiny.large = frozenset(shards)


def test_shards_are_those_of_the_index(hub: Any, tiny: Any) -> None:
    sharded(tiny)
    tiny.files["model-00003-of-00003.safetensors"] = b"of another save"
    hub.repositories["org/tiny"] = tiny
    names = {path.name for path in fetch().path.iterdir()}
    assert {name for name in names if name.endswith((".safetensors", ".index.json"))} == {
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    }


def test_a_pickle_comes_only_where_there_is_nothing_better(hub: Any, tiny: Any) -> None:
    del tiny.files["model.safetensors"]
    hub.repositories["org/tiny"] = tiny
    assert (fetch().path / "pytorch_model.bin").read_bytes() == b"a pickle"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": ["FalconForCausalLM"]}, "config.json: architecture 'FalconForCausalLM'"),
        ({"architectures": ["MixtralForCausalLM"]}, "is a mixture of experts"),
        ({"quantization_config": {"quant_method": "awq"}}, "the weights are quantised"),
    ],
)
def test_what_cannot_be_opened_is_refused_before_its_weights_come(
    hub: Any, tiny: Any, cache: Path, changes: dict[str, Any], said: str
) -> None:
    config = json.loads(tiny.files["config.json"]) | changes
    tiny.files["config.json"] = json.dumps(config).encode()
    hub.repositories["org/tiny"] = tiny
    with pytest.raises(ModelFileError, match=r"hf://org/tiny: config\.json") as caught:
        fetch()
    assert said in str(caught.value)
    assert not hub.fetched("model.safetensors")
    assert nothing_linked(cache)


@pytest.mark.parametrize("name", ["tiny.gguf", "files/q8/tiny.gguf"])
def test_one_named_gguf_file_comes_alone(hub: Any, tiny: Any, name: str) -> None:
    tiny.files |= {"tiny.gguf": b"GGUF one", "files/q8/tiny.gguf": b"GGUF two"}
    hub.repositories["org/tiny"] = tiny
    reference = HubRef("org", "tiny", name)
    pulled = fetch(reference)
    assert pulled.path.read_bytes() == tiny.files[name]
    assert cached_path(reference) == pulled.path
    assert len([path for path, _ in hub.asked if "/api/" not in path]) == 1
    assert Record.read(pulled.path.parent).outputs.keys() == {"tiny.gguf"}  # type: ignore[union-attr]
    assert [m.reference for m in cached_models()] == [reference]


def test_a_folder_and_a_file_of_one_commit_share_the_record(hub: Any, tiny: Any) -> None:
    tiny.files["tiny.gguf"] = b"GGUF one"
    hub.repositories["org/tiny"] = tiny
    fetch(HubRef("org", "tiny", "tiny.gguf"))
    record = open_model(fetch().path).record
    assert record is not None
    assert record.outputs.keys() == {*NEEDED, "tiny.gguf"}


def test_a_gguf_file_that_is_not_there_brings_the_names_of_those_that_are(
    hub: Any, tiny: Any
) -> None:
    tiny.files |= {"a.gguf": b"1", "b.gguf": b"2"}
    hub.repositories["org/tiny"] = tiny
    with pytest.raises(MissingError, match=r"no such file. It has a\.gguf, b\.gguf"):
        fetch(HubRef("org", "tiny", "c.gguf"))
    with pytest.raises(UsageError, match=r"names no GGUF file. It has a\.gguf, b\.gguf"):
        fetch(HubRef("org", "tiny", "config.json"))
    del tiny.files["config.json"]
    with pytest.raises(MissingError, match=r"no config.json.*GGUF files.*: a\.gguf, b\.gguf"):
        fetch()


def test_the_record_of_a_model_made_by_miudo_becomes_the_parent(hub: Any, tiny: Any) -> None:
    own = Record(verb="train", name="tiny")
    tiny.files["record.json"] = json.dumps(own.to_json()).encode()
    hub.repositories["org/tiny"] = tiny
    for _ in range(2):
        record = open_model(fetch().path).record
        assert record is not None
        assert [parent.verb for parent in record.parents] == ["train"]
    tiny.files["record.json"] = b'["of another program"]'
    tiny.commit = "c" * 40
    assert open_model(fetch().path).record.parents == ()  # type: ignore[union-attr]


# Interruptions


@pytest.mark.parametrize("range_ignored", [False, True])
def test_a_connection_that_breaks_is_taken_up_where_it_broke(
    hub: Any, tiny: Any, range_ignored: bool
) -> None:
    hub.repositories["org/tiny"] = tiny
    hub.ignores_range = range_ignored
    hub.cut["model.safetensors"] = [20_000, 30_000]
    path = fetch().path
    verify_folder(path)
    # Each is asked twice: of the hub, and of where it redirects to.
    starts = [headers.get("range") for headers in hub.fetched("model.safetensors")]
    second = "bytes=30000-" if range_ignored else "bytes=50000-"
    assert starts == [None, None, "bytes=20000-", "bytes=20000-", second, second]


def test_what_came_before_a_failure_is_not_fetched_again(hub: Any, tiny: Any, cache: Path) -> None:
    hub.repositories["org/tiny"] = tiny
    hub.cut["model.safetensors"] = [50_000, 0, 0, 0]
    with pytest.raises(MissingError, match=r"hf://org/tiny: cannot reach http") as caught:
        fetch()
    assert caught.value.exit_code == 4
    assert nothing_linked(cache)
    assert cached_path(REF) is None
    (part,) = cache.glob("models--*/blobs/*.incomplete")
    assert part.stat().st_size == 50_000
    hub.cut.clear()
    hub.asked.clear()
    verify_folder(fetch().path)
    assert {h.get("range") for h in hub.fetched("model.safetensors")} == {"bytes=50000-"}
    assert not list(cache.glob("models--*/blobs/*.incomplete"))


def test_a_killed_process_resumes(hub: Any, tiny: Any, cache: Path) -> None:
    hub.repositories["org/tiny"] = tiny
    hub.hold.set()
    program = [sys.executable, "-m", "miudo", "pull", "hf://org/tiny"]
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(cache)}
    first = subprocess.Popen(program, env=environment, stderr=subprocess.DEVNULL)
    half = len(tiny.files["model.safetensors"]) // 2
    deadline = time.monotonic() + 60
    while not any(p.stat().st_size > half // 2 for p in cache.glob("*/blobs/*.incomplete")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    here = next(cache.glob("*/blobs/*.incomplete")).stat().st_size
    hub.hold.clear()
    hub.asked.clear()
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {h.get("range") for h in hub.fetched("model.safetensors")} == {f"bytes={here}-"}
    verify_folder(Path(cached_path(REF) or ""))


@pytest.mark.parametrize("rubbish", [b"x" * 100, b"x" * 10_000_000])
def test_a_part_of_something_else_does_no_harm(
    hub: Any, tiny: Any, cache: Path, rubbish: bytes
) -> None:
    hub.repositories["org/tiny"] = tiny
    digest = tiny.digest("model.safetensors")
    part = cache / "models--org--tiny" / "blobs" / f"{digest}.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(rubbish)
    if len(rubbish) == 100:  # shorter than the file: only the hash can tell
        with pytest.raises(ModelFileError, match="other bytes than the hub states"):
            fetch()
        assert not part.exists()
    verify_folder(fetch().path)


def test_two_at_once_fetch_each_file_once(hub: Any, tiny: Any) -> None:
    hub.repositories["org/tiny"] = tiny
    done: list[Pulled] = []
    threads = [threading.Thread(target=lambda: done.append(fetch())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 4
    assert len({pulled.path for pulled in done}) == 1
    for name in NEEDED:
        paths = [path for path, _ in hub.asked if path.startswith("/org/")]
        assert len([path for path in paths if path.endswith(f"/{name}")]) == 1
    verify_folder(done[0].path)


def test_waiting_for_another_program_is_told(hub: Any, tiny: Any, cache: Path) -> None:
    hub.repositories["org/tiny"] = tiny
    folder = cache / ".locks" / "models--org--tiny"
    folder.mkdir(parents=True)
    lock = FileLock(folder / f"{tiny.digest('config.json')}.lock")
    lock.acquire()
    told: list[str] = []

    def waiting(name: str) -> None:
        told.append(name)
        lock.release()

    pull(REF, tell=lambda licence: None, progress=lambda here, total: None, waiting=waiting)
    assert told == ["config.json"]


# Wrong bytes and hostile answers


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("change", ["flip", "longer", "empty"])
def test_other_bytes_than_promised_are_thrown_away(
    hub: Any, tiny: Any, cache: Path, name: str, change: str
) -> None:
    hub.repositories["org/tiny"] = tiny
    data = tiny.files[name]
    wrong = {"flip": data[:-1] + bytes([data[-1] ^ 1]), "longer": data + b"x" * 5000, "empty": b""}
    hub.instead[name] = wrong[change]
    with pytest.raises(MiudoError, match=r"hf://org/tiny") as caught:
        fetch()
    assert caught.value.exit_code == (4 if change == "empty" else 1)
    assert name in str(caught.value) or change == "empty"
    assert nothing_linked(cache)
    assert tiny.digest(name) not in blobs(cache)
    hub.instead.clear()
    verify_folder(fetch().path)


def test_an_endless_file_is_left_at_its_size(hub: Any, tiny: Any) -> None:
    hub.repositories["org/tiny"] = tiny
    size = len(tiny.files["tokenizer.json"])
    hub.instead["tokenizer.json"] = tiny.files["tokenizer.json"] + b"x" * 50_000_000
    seen: list[int] = []
    with pytest.raises(ModelFileError, match="other bytes"):
        pull(
            REF,
            tell=lambda licence: None,
            progress=lambda here, total: seen.append(here),
            waiting=lambda name: None,
        )
    assert size < max(seen) < size + 5_000_000


@pytest.mark.parametrize(
    "name",
    [
        "../evil.safetensors", "/etc/passwd", "a/../../b", "..", "model\n.safetensors", "",
        "modeling_tiny.py", "below/model.safetensors", 7,
    ],
)  # fmt: skip
def test_an_index_that_leads_elsewhere_is_refused(
    hub: Any, tiny: Any, cache: Path, name: Any
) -> None:
    """Elsewhere, or to what is no weights."""
    sharded(tiny)
    tiny.files["model.safetensors.index.json"] = json.dumps({"weight_map": {"a": name}}).encode()
    tiny.files[str(name)] = b"evil"
    hub.repositories["org/tiny"] = tiny
    with pytest.raises(ModelFileError, match="shard"):
        fetch()
    assert nothing_linked(cache)


@pytest.mark.parametrize(
    "index", [b"[]", b"{}", b"not json", b'{"weight_map": 3}', b'{"weight_map": {"a": "gone"}}']
)
def test_an_index_that_is_none_is_refused(hub: Any, tiny: Any, cache: Path, index: bytes) -> None:
    sharded(tiny)
    tiny.files["model.safetensors.index.json"] = index
    hub.repositories["org/tiny"] = tiny
    with pytest.raises(ModelFileError):
        fetch()
    assert nothing_linked(cache)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10**6) | st.text(max_size=20)
    | st.sampled_from(["../../evil", "/etc/evil", "a" * 40, "f" * 64, "main", "config.json"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)  # fmt: skip


@settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(data=st.data())
def test_any_answer_gives_a_typed_error_and_no_file_outside_the_cache(
    hub: Any, tiny: Any, cache: Path, data: st.DataObject
) -> None:
    answer: dict[str, Any] = tiny.honest()
    where: Any = answer
    key: Any = data.draw(st.sampled_from(["sha", "siblings", "cardData"]))
    if key == "siblings" and data.draw(st.booleans()):
        where = data.draw(st.sampled_from(answer["siblings"]))
        key = data.draw(st.sampled_from(["rfilename", "size", "blobId", "lfs"]))
    where[key] = data.draw(JSON)
    hub.repositories["org/tiny"] = tiny
    tiny.listing = answer
    before = {path for path in cache.parent.rglob("*") if cache not in path.parents}
    try:
        pulled = fetch()
    except MiudoError:
        pass
    else:
        assert pulled.path.is_relative_to(cache / "models--org--tiny" / "snapshots")
    after = {path for path in cache.parent.rglob("*") if cache not in path.parents}
    assert after - before <= {cache}
    shutil.rmtree(cache, ignore_errors=True)


@pytest.mark.parametrize("answer", [b"", b"<html>", b"[]", b"3", b"\xff", b"[" * 100_000])
def test_what_is_no_answer_of_a_hub_says_so(hub: Any, tiny: Any, answer: bytes) -> None:
    tiny.listing = answer
    hub.repositories["org/tiny"] = tiny
    with pytest.raises(ModelFileError, match=r"none of a hub .*Check HF_ENDPOINT"):
        fetch()


# Refusals


def test_a_missing_repository_and_revision_are_named(hub: Any, tiny: Any) -> None:
    with pytest.raises(MissingError, match=r"hf://org/tiny: there is no such repository") as caught:
        fetch()
    assert caught.value.exit_code == 4
    hub.repositories["org/tiny"] = tiny
    with pytest.raises(MissingError, match=r"has no revision 'v9'"):
        fetch(HubRef("org", "tiny", None, "v9"))


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_repository_says_how_to_get_in(
    hub: Any, tiny: Any, cache: Path, status: int
) -> None:
    tiny.gated = status
    hub.repositories["org/tiny"] = tiny
    with pytest.raises(MissingError, match="is gated") as caught:
        fetch()
    said = str(caught.value)
    assert f"{hub.url}/org/tiny" in said
    assert "HF_TOKEN" in said
    assert nothing_linked(cache)


def test_the_token_goes_to_the_hub_and_nowhere_else(
    hub: Any, tiny: Any, request: pytest.FixtureRequest
) -> None:
    other = type(hub)()
    request.addfinalizer(other.stop)
    hub.repositories["org/tiny"] = other.repositories["org/tiny"] = tiny
    hub.elsewhere = f"http://localhost:{other.server.server_port}/storage"
    verify_folder(fetch().path)
    assert {h.get("authorization") for _, h in hub.asked} == {"Bearer hf_secret"}
    assert other.asked
    assert all("authorization" not in headers for _, headers in other.asked)
    tiny.commit = "d" * 40
    tiny.files["model.safetensors"] += b"x"
    other.instead["model.safetensors"] = b"y" * len(tiny.files["model.safetensors"])
    with pytest.raises(ModelFileError, match="other bytes"):
        fetch()


@pytest.mark.parametrize("target", ["file:///etc", "gopher://127.0.0.1", "http://[", "//"])
def test_a_redirect_to_no_web_address_is_refused(
    hub: Any, tiny: Any, cache: Path, target: str
) -> None:
    hub.repositories["org/tiny"] = tiny
    hub.elsewhere = target
    with pytest.raises(MissingError, match="cannot reach"):
        fetch()
    assert nothing_linked(cache)


def test_a_redirect_in_a_circle_ends(hub: Any, tiny: Any) -> None:
    hub.repositories["org/tiny"] = tiny
    hub.circle = True
    with pytest.raises(MissingError, match="cannot reach"):
        fetch()
    assert len(hub.fetched("model.safetensors")) < 100


# No network, no room


def test_a_server_that_never_answers_is_given_up_in_time(hub: Any, tiny: Any) -> None:
    hub.repositories["org/tiny"] = tiny
    hub.silent.set()
    begin = time.monotonic()
    with pytest.raises(MissingError, match="cannot reach"):
        fetch()
    assert time.monotonic() - begin < 5


def test_a_server_that_stops_in_the_middle_is_given_up_in_time(hub: Any, tiny: Any) -> None:
    hub.repositories["org/tiny"] = tiny
    hub.hold.set()
    begin = time.monotonic()
    with pytest.raises(MissingError, match="cannot reach"):
        fetch()
    assert time.monotonic() - begin < 20


def test_without_a_network_it_says_so_at_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    begin = time.monotonic()
    with pytest.raises(MissingError, match=r"cannot reach http://127\.0\.0\.1:9"):
        fetch()
    assert time.monotonic() - begin < 3


def test_offline_takes_what_is_here_and_asks_nobody(
    hub: Any, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["org/tiny"] = tiny
    with pytest.raises(MissingError, match="this is offline"):
        pulled_offline(REF)
    path = fetch().path
    hub.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert pulled_offline(REF).path == path
    with pytest.raises(MissingError, match="offline mode is on"):
        fetch()
    assert not hub.asked


def test_a_disk_too_small_is_told_before_the_first_byte(
    hub: Any, tiny: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    hub.repositories["org/tiny"] = tiny
    with pytest.raises(ResourceError, match=r"MB are to come.*HF_HUB_CACHE") as caught:
        fetch()
    assert caught.value.exit_code == 5
    assert not [path for path, _ in hub.asked if "/api/" not in path]


def test_a_disk_that_fills_up_is_told_and_what_came_is_kept(
    hub: Any, tiny: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["org/tiny"] = tiny

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ResourceError, match=r"cannot be written .*HF_HUB_CACHE"):
            fetch()
    assert nothing_linked(cache)
    verify_folder(fetch().path)


# Licences


@pytest.mark.parametrize(
    ("card", "licence", "commercial"),
    [
        ({"license": "apache-2.0"}, "Apache-2.0", "yes"),
        ({"license": ["mit"]}, "MIT", "yes"),
        ({"license": "gemma"}, "LicenseRef-Gemma", "conditions"),
        ({"license": "cc-by-nc-4.0"}, "CC-BY-NC-4.0", "no"),
        ({"license": "other", "license_name": "qwen-research"}, "LicenseRef-Qwen-Research", "no"),
        ({"license": "other"}, "LicenseRef-other", "unknown"),
        ({"license": "strange one!"}, "LicenseRef-strange-one", "unknown"),
        ({"license": ["mit", "gemma"]}, "LicenseRef-mit-OR-gemma", "unknown"),
        ({}, "NOASSERTION", "unknown"),
        ({"license": 3}, "NOASSERTION", "unknown"),
    ],
)
def test_the_card_decides_the_licence(
    hub: Any, tiny: Any, card: dict[str, Any], licence: str, commercial: str
) -> None:
    tiny.card = card
    hub.repositories["org/tiny"] = tiny
    told: list[Licence] = []
    pulled = fetch(told=told)
    assert [(t.id, t.commercial) for t in told] == [(licence, commercial)]
    assert pulled.record.licence == licence
    assert bool(pulled.record.notes) == (commercial != "yes")
    assert not any("NOASSERTION" in note for note in pulled.record.notes)


def test_a_card_without_a_licence_leaves_it_to_the_catalogue(hub: Any, tiny: Any) -> None:
    tiny.card = {}
    hub.repositories["stabilityai/stablelm-zephyr-3b"] = tiny
    reference = parse_reference("hf://stabilityai/stablelm-zephyr-3b")
    assert isinstance(reference, HubRef)
    assert fetch(reference).record.licence == "LicenseRef-StabilityAI-Non-Commercial"


def test_the_licence_is_told_before_the_first_byte(hub: Any, tiny: Any) -> None:
    hub.repositories["org/tiny"] = tiny

    def stop(licence: Licence) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(REF, tell=stop, progress=lambda here, total: None, waiting=lambda name: None)
    assert [path for path, _ in hub.asked] == ["/api/models/org/tiny/revision/main"]
