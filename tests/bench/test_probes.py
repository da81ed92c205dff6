"""The machine's peaks: the best of several ways, over small matrices here."""

import dataclasses

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


@pytest.mark.parametrize("is_fast", [True, False])
def test_bfloat16_is_asked_for_only_where_the_cpu_has_it(probe, monkeypatch, is_fast):
    kernels = dataclasses.replace(probes.cpu_kernels(), has_fast_bfloat16=is_fast)
    monkeypatch.setattr(probes, "cpu_kernels", lambda: kernels)
    assert any("bfloat16" in name for name in probe.matrix_peak().parts) == is_fast


def test_a_torch_without_onednn_still_has_a_peak(probe, monkeypatch):
    def missing(*_):
        raise AttributeError("no mkldnn")

    monkeypatch.setattr(MachineProbe, "_packed", staticmethod(missing))
    assert {name.partition("_")[0] for name in probe.matrix_peak().parts} == {"matmul"}


def test_opening_tells_the_threads(probe):
    assert probe.open().facts["threads"] >= 1
