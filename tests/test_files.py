"""Durable writes: old or new after a crash at any step, full disks, and paths from outside."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from miudo.errors import (
    DataError,
    MissingError,
    ModelFileError,
    ResourceError,
    UsageError,
)
from miudo.files import (
    atomic_folder,
    atomic_write,
    check_output,
    open_regular,
    refuse_inputs,
    resolve_under,
    sha256_file,
    sync_folder,
)

# Ends the process, without any clean-up, at the k-th event that Python reports to the system.
CRASH = """
import os, sys
from pathlib import Path
from miudo.files import atomic_folder, atomic_write
step, seen = int(sys.argv[1]), 0
def crash(event, arguments):
    global seen
    if event == "open" or event.startswith(("os.", "shutil.", "ctypes.")):
        seen += 1
        if seen == step:
            os._exit(9)
path = Path(sys.argv[2])
os.listdir(path.parent), path.exists()
sys.addaudithook(crash)
"""
WRITE_FILE = "atomic_write(path, lambda file: [file.write(b'new' * 9999) for _ in range(9)])\n"
WRITE_FOLDER = """
with atomic_folder(path) as folder:
    (folder / 'inner').mkdir()
    (folder / 'a').write_bytes(b'new')
    (folder / 'inner' / 'b').write_bytes(b'new')
"""


def crashed(body: str, step: int, path: Path) -> bool:
    command = [sys.executable, "-c", CRASH + body, str(step), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 9), done.stderr
    return done.returncode == 9


def test_a_crash_at_any_step_leaves_the_old_file_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "file"
    seen = set()
    for step in range(1, 100):
        path.write_bytes(b"old")
        ended = not crashed(WRITE_FILE, step, path)
        content = path.read_bytes()
        assert content in (b"old", b"new" * 9999 * 9)
        seen.add(content[:3])
        if ended:
            assert content.startswith(b"new")
            break
    assert step > 2
    assert seen == {b"old", b"new"}


def test_a_crash_at_any_step_leaves_the_old_folder_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for step in range(1, 100):
        with atomic_folder(path) as folder:
            (folder / "old").write_bytes(b"old")
        ended = not crashed(WRITE_FOLDER, step, path)
        files = {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}
        assert files in ({"old": b"old"}, {"a": b"new", "inner/b": b"new"}), (step, files)
        if ended:
            assert "a" in files
            break
    assert step > 5


def test_a_write_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"one", b"two"):
        atomic_write(path, lambda file, content=content: file.write(content))
        assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["file"]


def test_a_failing_writer_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write(file: IO[bytes]) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, write)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_full_disk_is_a_resource_error_with_the_path(tmp_path: Path, code: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write(file: IO[bytes]) -> None:
        raise OSError(code, os.strerror(code))

    with pytest.raises(ResourceError, match=r"file: cannot be written .*Free some space"):
        atomic_write(path, write)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_disk_that_is_full_for_real_is_a_resource_error(tmp_path: Path) -> None:
    program = """
import resource, sys
from pathlib import Path
from miudo.errors import ResourceError
from miudo.files import atomic_folder, atomic_write
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
folder = Path(sys.argv[1])
try:
    atomic_write(folder / "file", lambda file: file.write(b"x" * 100_000))
except ResourceError as error:
    print(error)
try:
    with atomic_folder(folder / "made") as inner:
        (inner / "big").write_bytes(b"x" * 100_000)
except ResourceError as error:
    print(error)
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("cannot be written (File too large)") == 2
    assert os.listdir(tmp_path) == []


def test_a_failing_folder_leaves_the_old_one_and_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with atomic_folder(path) as folder:
        (folder / "old").write_bytes(b"old")

    def fail_halfway() -> None:
        with atomic_folder(path) as folder:
            (folder / "half").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_halfway()
    assert os.listdir(tmp_path) == ["folder"]
    assert os.listdir(path) == ["old"]


def test_folders_are_replaced_whole_also_where_the_system_cannot_exchange(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: object())
    path = tmp_path / "deep" / "folder"
    for name in ("one", "two"):
        with atomic_folder(path) as folder:
            (folder / name).write_bytes(b"x")
        assert os.listdir(path) == [name]
        assert os.listdir(path.parent) == ["folder"]


def test_a_file_in_the_place_of_a_folder_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"precious")
    with pytest.raises(UsageError, match="is a file, not a folder"), atomic_folder(path):
        pytest.fail("the block must not run")
    assert path.read_bytes() == b"precious"


def test_an_output_that_is_an_input_or_holds_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "model")
    for inner in ("model", "model/x.gguf", "model/../model", "link/x"):
        with pytest.raises(UsageError, match="would overwrite what it is made from"):
            refuse_inputs(tmp_path / "model", None, tmp_path / inner)
    refuse_inputs(tmp_path / "model" / "x.gguf", tmp_path / "model")
    refuse_inputs(tmp_path / "model", tmp_path / "model2", None)


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk" / "real").mkdir(parents=True)
    (tmp_path / "link").symlink_to("disk/real")
    with atomic_folder(tmp_path / "link") as folder:
        (folder / "a").write_bytes(b"x")
    assert (tmp_path / "link").is_symlink()
    assert os.listdir(tmp_path / "disk" / "real") == ["a"]


def test_hash_is_that_of_the_standard(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-4, the example for the message "abc".
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(tmp_path / "abc") == expected
    sync_folder(tmp_path)


def test_a_regular_file_opens_for_reading(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("a")
    for name in ("a", "link"):
        with open_regular(tmp_path / name) as file:
            assert file.read() == b"abc"


@pytest.mark.row("L18")
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "a").write_bytes(b"")
    odd = [tmp_path, tmp_path / "pipe", tmp_path / "loop", tmp_path / "a" / "b", tmp_path / "x\0"]
    for path in [*odd, Path("/dev/zero"), Path("/dev/null"), tmp_path / ("x" * 300)]:
        with pytest.raises(ModelFileError):
            open_regular(path)
    with pytest.raises(DataError, match="is not a regular file"):
        open_regular(tmp_path, DataError)
    with pytest.raises(MissingError, match="no such file"):
        open_regular(tmp_path / "absent")


@pytest.mark.enable_socket
@pytest.mark.row("L18")
def test_a_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket has at most 107 bytes
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        with pytest.raises(ModelFileError, match="cannot be opened"):
            open_regular(Path("socket"))


def test_a_name_inside_the_folder_resolves(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    assert resolve_under(tmp_path, "a") == tmp_path.resolve() / "a"
    assert resolve_under(tmp_path, "sub/../a") == tmp_path.resolve() / "a"


@pytest.mark.row("L16")
def test_names_that_lead_out_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "out").symlink_to(tmp_path)
    (root / "loop").symlink_to("loop")
    inside = str(root.resolve() / "a")
    names = ["../a", "../../etc/passwd", "/etc/passwd", inside, "out/a", "a/../../b", "x\0y"]
    for name in [*names, "loop/a", "../root-other/a"]:
        with pytest.raises(ModelFileError, match="leads out of the folder"):
            resolve_under(root, name)


def test_links_of_a_snapshot_may_lead_to_the_blobs_of_its_cache_only(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    root = repository / "snapshots" / "abc"
    for folder in (root, repository / "blobs", tmp_path / "blobs", tmp_path / "outside"):
        folder.mkdir(parents=True)
        (folder / "there").write_text("x")
    (root / "own").symlink_to("../../blobs/there")
    (root / "shared").symlink_to("../../../blobs/there")
    (root / "out").symlink_to("../../../outside/there")
    (repository / "blobs" / "far").symlink_to("../../outside/there")
    (root / "through").symlink_to("../../blobs/far")
    assert resolve_under(root, "own") == (repository / "blobs" / "there").resolve()
    assert resolve_under(root, "shared") == (tmp_path / "blobs" / "there").resolve()
    for name in ("out", "through", "../../blobs/there", "../../../outside/there"):
        with pytest.raises(ModelFileError, match="leads out of the folder"):
            resolve_under(root, name)
    repository.rename(tmp_path / "name")  # no cache any more
    with pytest.raises(ModelFileError, match="leads out of the folder"):
        resolve_under(tmp_path / "name" / "snapshots" / "abc", "own")


def test_an_output_that_could_not_be_written_is_told_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_output(tmp_path / "new.json")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="is a folder"):
        check_output(tmp_path)
    with pytest.raises(MissingError, match="absent: no such folder"):
        check_output(tmp_path / "absent" / "new.json")

    def refuse(**options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(ResourceError, match=r"new\.json: cannot be written \(Permission denied\)"):
        check_output(tmp_path / "new.json")
