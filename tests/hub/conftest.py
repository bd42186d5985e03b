"""A hub on loopback: the part of the Hugging Face hub's protocol that `miudo pull` speaks."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import close_session, constants

from miudo.hub import download

TINY = Path(__file__).parents[1] / "data" / "tiny"


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@dataclass
class Repository:
    """Files by name, those in `large` served from elsewhere, as the hub does with LFS."""

    files: dict[str, bytes]
    commit: str = "a" * 40
    large: frozenset[str] = frozenset()
    card: dict[str, Any] = field(default_factory=lambda: {"license": "apache-2.0"})
    gated: int | None = None
    listing: Any = None  # instead of the honest answer

    def digest(self, name: str) -> str:
        data = self.files[name]
        return hashlib.sha256(data).hexdigest() if name in self.large else git_hash(data)

    def honest(self) -> dict[str, Any]:
        siblings = []
        for name, data in self.files.items():
            sibling: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": "0" * 40}
            if name in self.large:
                lfs = {"sha256": self.digest(name), "size": len(data), "pointerSize": 134}
                sibling["lfs"] = lfs
            else:
                sibling["blobId"] = self.digest(name)
            siblings.append(sibling)
        return {"id": "x/y", "sha": self.commit, "siblings": siblings, "cardData": self.card}


class Hub:
    """Serves `repositories`; the other attributes say how it misbehaves.

    `asked` holds (method and path, headers) of every request.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.cut: dict[str, list[int]] = {}  # name -> after how many bytes, call by call
        self.instead: dict[str, bytes] = {}  # name -> other bytes than were promised
        self.ignores_range = False
        self.silent = threading.Event()  # set: accept, and never answer
        self.hold = threading.Event()  # set: stop in the middle of a file until cleared
        self.elsewhere: str | None = None  # where large files are redirected to
        self.circle = False  # set: to where they are
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def fetched(self, name: str) -> list[dict[str, str]]:
        """Headers of the requests for the bytes of `name`."""
        return [headers for path, headers in self.asked if path.endswith(f"/{name}")]

    def stop(self) -> None:
        self.silent.clear()
        self.hold.clear()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def _handler(hub) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - the handler has its own self
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                path = unquote(parts.path)
                hub.asked.append((path, {k.lower(): v for k, v in self.headers.items()}))
                while hub.silent.is_set():
                    threading.Event().wait(0.02)
                if path.startswith("/api/models/"):
                    assert "blobs" in parse_qs(parts.query)
                    return self.describe(path.removeprefix("/api/models/"))
                if path.startswith("/storage/"):
                    return self.send_file(path.rsplit("/", 1)[1], path)
                return self.resolve(path)

            def describe(self, rest: str) -> None:
                repo_id, _, revision = rest.partition("/revision/")
                repository = hub.repositories.get(repo_id)
                if repository is None:
                    return self.refuse(404, "RepoNotFound")
                if revision not in ("main", "v1", repository.commit):
                    return self.refuse(404, "RevisionNotFound")
                listing = repository.listing
                answer = repository.honest() if listing is None else listing
                body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.answer(200, body)
                return None

            def resolve(self, path: str) -> None:
                repo_id, _, rest = path.removeprefix("/").partition("/resolve/")
                _, _, name = rest.partition("/")
                repository = hub.repositories[repo_id]
                if repository.gated is not None:
                    return self.refuse(repository.gated, "GatedRepo")
                if name not in repository.files:
                    return self.refuse(404, "EntryNotFound")
                if name in repository.large:
                    target = hub.elsewhere or f"{hub.url}/storage"
                    self.send_response(302)
                    there = self.path if hub.circle else f"{target}/{repo_id}/{name}"
                    self.send_header("Location", there)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return None
                return self.send_file(name, f"/storage/{repo_id}/{name}")

            def send_file(self, name: str, path: str) -> None:
                repo_id = path.removeprefix("/storage/").removesuffix(f"/{name}")
                repository = hub.repositories.get(repo_id)
                known = {} if repository is None else repository.files
                data = hub.instead.get(name, known.get(name, b""))
                wanted = self.headers.get("range")
                start = 0
                if wanted and not hub.ignores_range:
                    start = int(wanted.removeprefix("bytes=").rstrip("-"))
                body = data[start:]
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                cuts = hub.cut.get(name, [])
                if cuts:
                    self.wfile.write(body[: cuts.pop(0)])
                    self.close_connection = True
                    self.connection.shutdown(2)
                    return
                half = 0 if start and hub.hold.is_set() else len(body) // 2
                self.wfile.write(body[:half])
                self.wfile.flush()
                while hub.hold.is_set() and name.startswith("model"):
                    threading.Event().wait(0.02)
                self.wfile.write(body[half:])

            def refuse(self, status: int, code: str) -> None:
                self.answer(status, b'{"error": "no"}', **{"X-Error-Code": code})

            def answer(self, status: int, body: bytes, **headers: str) -> None:
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        return Handler


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache of one test; the library read its variables when it was imported."""
    folder = tmp_path / "hub-cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 1)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    monkeypatch.setattr(download, "_WAITS", (0.0, 0.0, 0.0))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    return folder


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    found = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", found.url)
    yield found
    found.stop()


@pytest.fixture(scope="session", autouse=True)
def _session() -> Iterator[None]:
    yield
    close_session()


@pytest.fixture
def tiny() -> Repository:
    """The tiny model as a repository, with what a model does not need beside it."""
    files = {path.name: path.read_bytes() for path in sorted(TINY.iterdir())}
    del files["record.json"]
    files |= {
        "README.md": b"# A card",
        "modeling_tiny.py": b"raise SystemExit('this must never run')",
        "pytorch_model.bin": b"a pickle",
        "flax_model.msgpack": b"another copy",
        "onnx/model.onnx": b"a third",
    }
    return Repository(files, large=frozenset({"model.safetensors", "pytorch_model.bin"}))
