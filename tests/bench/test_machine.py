"""The environment card."""

import json
import os

import pytest

import fastvlm
from fastvlm.bench import machine
from fastvlm.bench.machine import INSTRUCTION_SETS, environment_card, hardware_slug, source_commit


def test_the_card_is_json_and_has_what_a_result_needs():
    card = json.loads(json.dumps(environment_card()))
    assert card["fastvlm"] == fastvlm.__version__
    for name in ("cpu", "os", "python", "torch", "transformers", "safetensors", "torch_cpu_capability"):
        assert card[name], name
    assert card["cores"] == len(os.sched_getaffinity(0))
    assert set(card["instruction_sets"]) <= set(INSTRUCTION_SETS)
    assert len(card["load_average"]) == 3
    assert card["memory_bytes"] > 2**30


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", "xeon-platinum-8481c-2c"),
        ("AMD EPYC 9R14", "epyc-9r14-2c"),
        ("AMD Ryzen 7 7840U w/ Radeon 780M Graphics", "ryzen-7-7840u-w-radeon-780m-graphics-2c"),
        ("AMD EPYC 9654 96-Core Processor", "epyc-9654-2c"),
        ("", "2c"),
    ],
)
def test_hardware_as_a_part_of_a_file_name(name, slug):
    assert hardware_slug(name, 2) == slug


def test_cpu_facts_come_from_cpuinfo(tmp_path, monkeypatch):
    text = "processor : 0\nmodel name\t: Some CPU 9000\nflags\t\t: fpu avx2 amx_bf16\nbugs : none\n"
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(text)
    card = environment_card()
    assert card["cpu"] == "Some CPU 9000" and card["instruction_sets"] == ["avx2", "amx_bf16"]
    (tmp_path / "cpuinfo").write_text("Features\t: fp asimd bf16\n")
    assert environment_card()["instruction_sets"] == ["asimd", "bf16"]
    (tmp_path / "cpuinfo").unlink()
    assert environment_card()["instruction_sets"] == [] and environment_card()["cpu"]


def test_a_package_that_is_not_there_has_no_version():
    assert machine._version("no-such-package-at-all") is None


def test_the_commit_is_none_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(machine.fastvlm, "__file__", str(tmp_path / "a" / "b" / "c.py"))
    assert source_commit() is None
    (tmp_path / ".git").mkdir()  # not really one: git fails
    assert source_commit() is None
