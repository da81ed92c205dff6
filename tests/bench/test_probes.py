"""The machine's peaks: the best of several ways, over small matrices here."""

import pytest

from fastvlm.bench import probes
from fastvlm.bench.probes import MachineProbe, best_seconds


@pytest.fixture
def probe(monkeypatch):
    monkeypatch.setattr(probes, "_MATRIX", 64)
    monkeypatch.setattr(probes, "_PACKED_SHAPES", ((64, 32, 32),))
    monkeypatch.setattr(probes, "_STREAM_BYTES", 2**20)
    return MachineProbe()


def test_the_shortest_run_counts_and_the_first_does_not(monkeypatch):
    moments = iter([0.0, 5.0, 10.0, 12.0, 20.0, 23.0])
    calls = []
    monkeypatch.setattr(probes.time, "perf_counter", lambda: next(moments))
    assert best_seconds(lambda: calls.append(1)) == 2.0
    assert len(calls) == 4


@pytest.mark.parametrize("name", ["matrix_peak", "bandwidth"])
def test_the_peak_is_the_best_way(probe, name):
    measured = getattr(probe, name)()
    assert measured.value == max(measured.parts.values()) > 0
    assert len(measured.parts) >= 2


def test_a_torch_without_onednn_still_has_a_peak(probe, monkeypatch):
    def missing(*_):
        raise AttributeError("no mkldnn")

    monkeypatch.setattr(MachineProbe, "_packed", staticmethod(missing))
    assert set(probe.matrix_peak().parts) == {"matmul_float32", "matmul_bfloat16"}


def test_opening_tells_the_threads(probe):
    assert probe.open().facts["threads"] >= 1
