"""The page's files as they are sent; what a browser makes of them is tests/whole/test_page.py's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import miudo.serve.page as page
from miudo.serve.page.routes import POLICY, page_paths

HERE = Path(page.__file__).parent
ELSEWHERE = re.compile(
    r"(?:https?:)?//[\w.-]+\.\w+|\beval\(|innerHTML|outerHTML|insertAdjacentHTML"
)
KINDS = {"/": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
NAMESPACE = "http://www.w3.org/2000/svg"  # a name, which nobody fetches


@pytest.mark.parametrize("path", page_paths())
def test_every_file_is_sent_under_the_policy(server: Any, path: str) -> None:
    reply = server.ask("GET", path)
    assert reply.status == 200
    assert reply.headers["content-security-policy"] == POLICY
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert reply.headers["content-type"].startswith(KINDS[path.rpartition(".")[2]])
    again = server.ask("GET", path, if_none_match=reply.headers["etag"])
    assert (again.status, again.body) == (304, b"")


def test_the_page_needs_no_key_and_shows_no_secret(locked: Any) -> None:
    for path in page_paths():
        assert locked.ask("GET", path).status == 200
        assert locked.ask("GET", path + "/").status == 401
    assert locked.ask("GET", "/page/").status == 401


@pytest.mark.parametrize(
    "path", ["/page/routes.py", "/page/../app.py", "/page/%2e%2e/app.py", "/page/", "/page/x.js"]
)
def test_nothing_else_is_sent(server: Any, path: str) -> None:
    assert server.ask("GET", path).status == 404


@pytest.mark.parametrize("file", sorted(p.name for p in HERE.glob("*.[!p]*")))
def test_files_ask_for_nothing_elsewhere_and_make_no_markup_of_text(file: str) -> None:
    text = (HERE / file).read_text(encoding="utf-8").replace(NAMESPACE, "")
    assert not ELSEWHERE.search(text)
    assert " style=" not in text  # the policy would refuse it
    assert len(text.splitlines()) <= 320
