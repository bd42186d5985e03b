import itertools
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from miudo.report import Line, Section, Table, html_report, text_table

ROWS = [
    {"step": 1, "tokens": 1000, "loss": 5.0},
    {"step": 2, "tokens": 2000, "loss": 4.0, "held_out_loss": 4.2},
    {"step": 3, "tokens": 3000, "loss": float("nan"), "held_out_loss": None},
]


class Balanced(HTMLParser):
    """Collects a page's text; fails on tags that do not close in order."""

    VOID = frozenset({"meta", "br", "hr", "img", "link"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def _parsed(path: Path) -> Balanced:
    parser = Balanced()
    parser.feed(path.read_text())
    parser.close()
    assert not parser.open
    return parser


def test_text_table_aligns_words_left_and_numbers_right() -> None:
    table = Table(["model", "size"], [["a", "1.5 MB"], ["longer", "30 MB"]])
    assert text_table(table).splitlines() == [
        "model     size",
        "------  ------",
        "a       1.5 MB",
        "longer   30 MB",
    ]


def test_a_page_escapes_everything_it_is_given(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>&'
    section = Section(
        evil, [evil], Table([evil], [[evil]], caption=evil), samples=[(evil, evil)], code=evil
    )
    html_report(evil, [section], tmp_path / "r.html", subtitle=evil)
    parsed = _parsed(tmp_path / "r.html")
    assert "script" not in parsed.tags
    assert parsed.words.count(evil) == 11


def test_a_page_loads_nothing_and_knows_dark(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from miudo.report import loss_svg

    svg = loss_svg({"teacher": ROWS, "<student>": ROWS})
    html_report("t", [Section("Loss", svg=svg)], tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    parsed = _parsed(tmp_path / "r.html")
    assert not parsed.tags & {"script", "link", "img", "iframe", "object", "image"}
    assert not re.search(r"(?:src|href)\s*=\s*[\"'](?!#)", page)
    assert not re.search(r"@import|url\((?!#)", page)
    assert "prefers-color-scheme: dark" in page
    assert "teacher held-out" in parsed.words
    assert "<student> held-out" in parsed.words


def test_a_plot_takes_the_colour_of_its_page_and_repeats_itself() -> None:
    pytest.importorskip("matplotlib")
    from miudo.report import line_plot

    lines = [Line("one", [1, 2, 3], [3, 2, 1])]
    first = line_plot(lines, x="tokens", y="loss")
    assert first == line_plot(lines, x="tokens", y="loss")
    assert first.startswith("<svg")
    assert "currentColor" in first
    assert "#010203" not in first


def test_labels_of_one_place_do_not_cover_each_other_and_wide_heights_are_logarithmic() -> None:
    from miudo.report import Point, scatter_plot

    near = [Point(1.0, 40.0 + i / 10, "a", label=f"mark {i}") for i in range(4)]
    places = re.compile(r'y="([\d.]+)"[^>]*>mark')
    for points, wide in ((near, False), ([*near, Point(2.0, 2000.0, "b")], True)):
        drawn = scatter_plot(points, x="size", y="perplexity")
        heights = sorted(map(float, places.findall(drawn)))
        assert len(heights) == 4
        assert all(b - a >= 8.0 for a, b in itertools.pairwise(heights))
        assert (">1k<" in drawn) is wide


@pytest.mark.parametrize(("ending", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_a_loss_plot_is_written_in_the_form_of_its_name(
    tmp_path: Path, ending: str, magic: bytes
) -> None:
    pytest.importorskip("matplotlib")
    from miudo.report import loss_plot

    loss_plot(ROWS, tmp_path / f"loss.{ending}")
    assert (tmp_path / f"loss.{ending}").read_bytes().startswith(magic)
