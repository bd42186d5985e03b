"""What the machine can do: rates that a processor can have, on every set of instructions."""

import math

import pytest

from miudo.engine.native_door import call, load_native
from miudo.engine.probe import beyond_cache_bytes, measure_peaks, probe_isa
from miudo.errors import RequestError, ResourceError

# 6 GHz, four units, 128 operations an instruction: what a compiler took out is beyond it.
MOST = 6e9 * 4 * 128


def test_peaks_are_rates_that_a_processor_can_have() -> None:
    peaks = measure_peaks(1, 1 << 20)
    assert peaks.read_bytes == 1 << 20
    assert 1e8 < peaks.read_bytes_per_s < MOST
    assert 1e8 < peaks.float_ops_per_s < peaks.int8_ops_per_s < MOST


def test_every_set_of_instructions_of_this_machine_can_be_asked_for() -> None:
    native = load_native()
    names = native.probe_isas()
    assert names[0] == probe_isa()
    assert names[-1] == "portable"
    for name in names:
        for kind in (0, 1, 2):
            rates = native.probe(kind, name, 2, 1 << 16, 0.001, 2)
            assert len(rates) == 2
            assert all(math.isfinite(rate) and 1e6 < rate < 2 * MOST for rate in rates)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((0, "mmx", 1, 4096, 0.001, 1), RequestError),
        ((0, None, 1, 4096, 0.0, 1), RequestError),
        ((0, None, -1, 4096, 0.001, 1), RequestError),
        ((0, None, 1, 1 << 63, 0.001, 1), ResourceError),
        ((0, None, 1, 1 << 62, 0.001, 1), ResourceError),
    ],
)
def test_what_is_no_probe_is_refused(arguments: tuple[object, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        call(load_native().probe, *arguments)


def test_no_cache_holds_what_is_beyond_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert beyond_cache_bytes() >= 256 << 20

    def unknown(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr("miudo.engine.probe.os.sysconf", unknown)
    assert beyond_cache_bytes() == 256 << 20
