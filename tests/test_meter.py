import ctypes
from pathlib import Path

import pytest

from miudo import meter
from miudo.meter import (
    Meter,
    busy_s,
    energy_basis,
    energy_between,
    give_back,
    peak_memory,
    read_counters,
    resident_bytes,
)


def _counter(root: Path, name: str, now: str, span: str = "1000000") -> None:
    folder = root / name
    folder.mkdir()
    (folder / "energy_uj").write_text(now + "\n")
    (folder / "max_energy_range_uj").write_text(span + "\n")


def test_counters_are_whole_packages_only(tmp_path: Path) -> None:
    _counter(tmp_path, "intel-rapl:0", "500")
    _counter(tmp_path, "intel-rapl:0:0", "400")
    _counter(tmp_path, "intel-rapl:1", "no number")
    assert read_counters(tmp_path) == {"intel-rapl:0": (500, 1000000)}


def test_counter_energy_adds_packages_and_survives_wrapping() -> None:
    before = {"a": (100, 1000), "b": (900, 1000)}
    after = {"a": (300, 1000), "b": (100, 1000)}
    energy = energy_between(before, after, cpu_s=9.0, watts=9.0)
    assert energy.energy_j == pytest.approx(400e-6)
    assert not energy.estimate
    assert "counter" in energy.method


def test_without_a_counter_the_basis_is_stated() -> None:
    energy = energy_between({}, {}, cpu_s=2.0, watts=5.0)
    assert energy.energy_j == 10.0
    assert energy.estimate
    assert "5 W" in energy.method
    assert "estimate" in energy.method


def test_meter_measures_a_block(tmp_path: Path) -> None:
    with Meter(watts=3.0, powercap=tmp_path) as block:
        sum(range(200_000))
    assert block.elapsed_s > 0
    assert block.energy.energy_j == pytest.approx(block.cpu_s * 3.0)
    by_name = {m.name: m for m in block.measurements()}
    assert set(by_name) == {"elapsed", "cpu_time", "peak_memory", "energy"}
    assert all(m.method for m in by_name.values())
    assert by_name["energy"].estimate
    assert not by_name["elapsed"].estimate


def test_peak_memory_is_of_this_process() -> None:
    before = peak_memory().value
    block = bytearray(64 << 20)
    block[:: 1 << 12] = b"x" * len(block[:: 1 << 12])
    assert peak_memory().value >= before
    assert peak_memory().value >= 64 << 20


def test_what_others_compute_is_told_of_a_block_that_is_long_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    busy = iter([100.0, 103.5])
    times = iter([0.0, 2.0, 0.0, 0.1])
    cpu = iter([10.0, 10.5, 0.0, 0.1])
    monkeypatch.setattr(meter.time, "perf_counter", lambda: next(times))
    monkeypatch.setattr(meter.time, "process_time", lambda: next(cpu))
    monkeypatch.setattr(meter, "busy_s", lambda: next(busy))
    with Meter() as long:
        pass
    assert long.foreign_cores == pytest.approx((3.5 - 0.5) / 2.0)
    monkeypatch.setattr(meter, "busy_s", lambda: 1.0)
    with Meter() as short:
        pass
    assert short.foreign_cores is None


def test_busy_seconds_are_those_of_all_cores_but_idle_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 20 30 9999 9999 4 5 6 7 8\ncpu0 1 2 3\n")
    monkeypatch.setattr(meter, "_STAT", stat)
    monkeypatch.setattr(meter.os, "sysconf", lambda name: 100)
    assert busy_s() == pytest.approx(1.65)
    stat.write_text("none")
    assert busy_s() is None
    monkeypatch.setattr(meter, "_STAT", tmp_path / "missing")
    assert busy_s() is None


def test_an_energys_basis_has_no_seconds_in_it() -> None:
    estimate = energy_between({}, {}, cpu_s=2.0, watts=5.0)
    assert energy_basis(estimate.method) == (
        "estimate from CPU time x 5 W assumed for a busy hardware thread"
    )
    assert energy_basis("counter: powercap a") == "counter: powercap a"


def test_resident_memory_is_at_most_the_peak() -> None:
    now = resident_bytes()
    assert now is None or 1e6 < now <= peak_memory().value


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="no glibc")
def test_memory_freed_among_what_is_kept_is_given_back() -> None:
    size = 64 * 1024  # too small for a map of its own
    blocks = [bytes([i % 255 + 1]) * size for i in range(2000)]
    kept = blocks[::20]
    del blocks
    before = resident_bytes()
    give_back()
    after = resident_bytes()
    assert before is not None
    assert after is not None
    assert before - after > 0.5 * 1900 * size
    assert kept[1] == bytes([21]) * size
