from pathlib import Path

import pytest

from miudo.meter import Meter, energy_between, peak_memory, read_counters


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
    with Meter(watts=3.0, powercap=tmp_path) as meter:
        sum(range(200_000))
    assert meter.elapsed_s > 0
    assert meter.energy.energy_j == pytest.approx(meter.cpu_s * 3.0)
    by_name = {m.name: m for m in meter.measurements()}
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
