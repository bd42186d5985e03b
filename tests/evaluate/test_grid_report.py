"""What `miudo bench` shows of a grid."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from miudo.engine.probe import Peaks
from miudo.evaluate.benched import BenchedModel
from miudo.evaluate.grid import Cell, Grid, Phase
from miudo.evaluate.grid_report import bench_json, bench_tables, bench_text, write_page
from miudo.evaluate.roofline import StepWork
from miudo.meter import Energy

PEAKS = Peaks(6_000_000, 25e9, 800e9, 200e9)
PHASE = Phase(
    tokens_per_s=1500.0, lowest=1200.0, highest=1800.0, runs=3, tokens=64,
    work=StepWork(6_000_000, 1000, 12_000_000, 3000), of_bandwidth=0.42, of_arithmetic=0.03,
    ceiling_tokens_per_s=3571.0, energy_per_token_j=0.002,
    energy=Energy(0.384, "estimate: 0.048 CPU s x 8 W assumed for a busy hardware thread", True),
    foreign_cores=0.01,
)  # fmt: skip


@pytest.fixture
def benched() -> BenchedModel:
    cells = (
        Cell(16, 1, PHASE, PHASE, (PEAKS, PEAKS)),
        Cell(16, 8, PHASE, replace(PHASE, runs=1), (PEAKS, replace(PEAKS, read_bytes_per_s=31e9))),
        Cell(512, 1, PHASE, PHASE, (PEAKS, PEAKS)),
    )
    return BenchedModel(
        name="small", path="m.gguf", isa="avx2", threads=2, activations="int8",
        cache="f16", adapter=None, load_s=0.25, weight_bytes=6_000_000, peak_load_bytes=50e6,
        machine_isa="avx512vnni",
        memory=replace(PEAKS, read_bytes=1 << 28, read_bytes_per_s=12.5e9),
        grid=Grid(cells, {"context 8,192, batch 1": "a prompt would take 90 s"}, 60e6),
    )  # fmt: skip


def test_rows_have_the_median_its_spread_and_both_shares(benched: BenchedModel) -> None:
    (table,) = bench_tables(benched.grid)
    assert table.rows[0] == (
        "16", "1", "1,500 ±20%", "42%", "3%", "1,500 ±20%", "42%", "3%", "~2.00 mJ", "",
    )  # fmt: skip
    assert table.rows[1][5] == "1,500 once"
    assert "x 8 W assumed" in table.caption
    assert "0.048" not in table.caption
    assert "Left out, since a prompt would take 90 s: context 8,192, batch 1." in table.caption
    assert "Other programs" not in table.caption


def test_a_disturbed_row_is_marked(benched: BenchedModel) -> None:
    quiet, busy = benched.grid.cells[:2]
    cells = quiet, replace(busy, prompt=replace(PHASE, foreign_cores=1.25))
    (table,) = bench_tables(replace(benched.grid, cells=cells))
    assert [row[-1] for row in table.rows] == ["", "*"]
    assert "* Other programs kept up to 1.2 cores busy" in table.caption


def test_a_counter_is_no_estimate_and_unknown_load_is_no_load(benched: BenchedModel) -> None:
    counted = replace(PHASE, energy=Energy(0.3, "counter: powercap a", False), foreign_cores=None)
    cell = replace(benched.grid.cells[0], prompt=counted, decode=counted)
    (table,) = bench_tables(replace(benched.grid, cells=(cell,)))
    assert table.rows[0][-2:] == ("2.00 mJ", "")
    assert "Energy: counter: powercap a." in table.caption


def test_the_text_tells_of_model_and_machine(benched: BenchedModel) -> None:
    text = bench_text(replace(benched, adapter="mine"))
    assert "native avx2, 2 threads, int8 activations, f16 keys and values" in text
    assert "weights 6.0 MB; the process 60.0 MB at most, 50.0 MB while loading" in text
    assert "25 to 31 GB/s over what a step reads (6.0 MB and more), 12.5 GB/s from memory" in text
    assert "800 Gop/s int8, 200 Gop/s float (avx512vnni)" in text
    assert text.splitlines()[-1].split() == ["adapter", "mine"]


def test_json_holds_every_number(benched: BenchedModel) -> None:
    values = json.loads(json.dumps(bench_json(benched), allow_nan=False))
    assert values["schema"] == 1
    cell = values["grid"]["cells"][0]
    assert cell["decode"]["of_bandwidth"] == 0.42
    assert cell["decode"]["work"]["weight_bytes"] == 6_000_000
    assert cell["peaks"][0]["int8_ops_per_s"] == 800e9


def test_the_page_draws_speeds_under_their_ceiling(benched: BenchedModel, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    write_page(benched, page)
    text = page.read_text()
    assert text.count("<svg") == 3
    assert text.count("what the machine allows") == 3
    for words in ("small", "context (tokens)", "conversations", "prompt (tokens)", "512", "42%"):
        assert words in text
    assert "://" not in text.replace("http://www.w3.org", "")


def test_where_the_time_goes_is_a_table_of_its_own(benched: BenchedModel, tmp_path: Path) -> None:
    told = replace(PHASE, phases_s={"qkv": 0.1, "attention": 0.2, "waiting": 0.1})
    cell = replace(benched.grid.cells[0], prompt=told, decode=told)
    grid = replace(benched.grid, cells=(cell,))
    _, table = bench_tables(grid)
    assert table.headers == ("context", "batch", "", "qkv", "attention", "waiting")
    assert table.rows == [
        ("16", "1", "prompt", "25%", "50%", "25%"), ("16", "1", "new tokens", "25%", "50%", "25%"),
    ]  # fmt: skip
    write_page(replace(benched, grid=grid), tmp_path / "page.html")
    assert "Where the time goes" in (tmp_path / "page.html").read_text()
