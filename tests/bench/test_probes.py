"""The machine's peaks: the best of several ways, over small matrices here."""

import dataclasses

import pytest
import torch

from fastvlm.backends.native.library import cpu_flags
from fastvlm.bench import compiled_peaks, probes
from fastvlm.bench.compiled_peaks import CompiledPeaks
from fastvlm.bench.probes import MachineProbe, best_seconds


@pytest.fixture
def probe(monkeypatch):
    monkeypatch.setattr(probes, "_MATRIX", 64)
    monkeypatch.setattr(probes, "_PACKED_SHAPES", ((64, 32, 32),))
    monkeypatch.setattr(probes, "_STREAM_BYTES", 2**20)
    return MachineProbe()  # not opened, so that nothing is compiled


def test_the_shortest_run_counts_and_the_first_does_not(monkeypatch):
    moments = iter([0.0, 5.0, 10.0, 12.0, 20.0, 23.0])
    calls = []
    monkeypatch.setattr(probes.time, "perf_counter", lambda: next(moments))
    assert best_seconds(lambda: calls.append(1)) == 2.0
    assert len(calls) == 4


def test_the_bandwidth_is_that_of_the_best_way(probe):
    measured = probe.bandwidth()
    assert measured.value == max(measured.parts.values()) > 0
    assert set(measured.parts) == {"sum", "matrix_times_vector"}


@pytest.mark.parametrize("is_fast", [True, False])
def test_bfloat16_is_asked_for_only_where_the_cpu_has_it(probe, monkeypatch, is_fast):
    kernels = dataclasses.replace(probes.cpu_kernels(), has_fast_bfloat16=is_fast)
    monkeypatch.setattr(probes, "cpu_kernels", lambda: kernels)
    measured = probe.multiply_adds()
    assert set(measured.parts) == {"torch float32", *(["torch bfloat16"] if is_fast else [])}
    assert measured.value == max(measured.parts.values()) > 0


def test_a_torch_without_onednn_still_has_a_peak(probe, monkeypatch):
    def missing(*_):
        raise AttributeError("no mkldnn")

    monkeypatch.setattr(MachineProbe, "_packed", staticmethod(missing))
    assert probe.multiply_adds().value > 0


@pytest.fixture(scope="module")
def compiled():
    return CompiledPeaks.compiled(2) or pytest.skip("no compiler, or another CPU")


def test_compiled_peaks_are_by_level_and_number_type(compiled, monkeypatch):
    monkeypatch.setattr(compiled_peaks, "_WINDOW_S", 0.002)
    found = compiled.multiply_adds()
    assert found and all(1e8 < value < 1e15 for value in found.values())
    flags = cpu_flags()
    for name, needed in compiled_peaks._NEEDED.items():
        if flags and not name.startswith(("amx", "neon")):
            assert (name in found) == (needed <= flags)


def test_products_of_registers_are_at_least_as_fast_as_torchs(compiled, probe):
    side_products = probe._products(torch.float32)
    assert max(compiled.multiply_adds().values()) > side_products


def test_memory_is_read_by_all_threads(compiled):
    data = torch.ones(2**20)
    assert compiled.read_bytes(data.data_ptr(), data.nbytes) > 1e8


def test_without_a_compiler_there_are_torchs_peaks(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    assert CompiledPeaks.compiled(1) is None
    monkeypatch.setenv("CXX", "false")  # a compiler that fails
    assert CompiledPeaks.compiled(1) is None


def test_opening_tells_the_threads(probe):
    assert probe.open().facts["threads"] >= 1
