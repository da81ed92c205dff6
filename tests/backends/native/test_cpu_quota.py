"""Limits of CPU time: control groups of both versions, and the number of threads of a process."""

import os
import subprocess
import sys

import pytest

from fastvlm.backends.native.cpu_quota import cpu_quota

CONTAINER = "0::/\n"
POD = "0::/kubepods/pod1/fastvlm\n"
V1 = "5:cpu,cpuacct:/x\n0::/\n"  # what version 1 names; the container sees its own group at the mount


def write(root, files):
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        (CONTAINER, {"cpu.max": "150000 100000\n"}, 1.5),
        (CONTAINER, {"cpu.max": "max 100000\n"}, None),
        (CONTAINER, {}, None),
        (POD, {"kubepods/pod1/fastvlm/cpu.max": "400000 100000", "kubepods/cpu.max": "200000 100000"}, 2),
        (POD, {"kubepods/pod1/fastvlm/cpu.max": "max 100000", "cpu.max": "50000 100000"}, 0.5),
        (
            "5:cpu,cpuacct:/x\n0::/\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "300000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            3,
        ),
        ("1:cpu:/x\n", {"cpu/x/cpu.cfs_quota_us": "-1\n", "cpu/x/cpu.cfs_period_us": "100000\n"}, None),
        ("1:cpu:/x\n", {"cpu/x/cpu.cfs_quota_us": "100000\n", "cpu/x/cpu.cfs_period_us": "50000\n"}, 2),
        ("4:memory:/x\n", {"memory/x/cpu.max": "100000 100000"}, None),
        (CONTAINER, {"cpu.max": "a word"}, None),
        (CONTAINER, {"cpu.max": "100000 0"}, None),
        ("", {"cpu.max": "100000 100000"}, None),
    ],
)
def test_the_smallest_limit_of_all_groups_holds(groups, files, expected, tmp_path):
    write(tmp_path, {"groups": groups})
    mount = tmp_path / "mount"
    write(mount, files)
    assert cpu_quota(tmp_path / "groups", mount) == expected


def test_without_control_groups_there_is_no_limit(tmp_path):
    assert cpu_quota(tmp_path / "missing", tmp_path / "missing") is None


CODE = """
import os, sys
from fastvlm.backends.native import openmp
openmp.cpu_quota = lambda: {quota}
openmp.num_cores = lambda: 4
openmp.configure_openmp()
assert "torch" not in sys.modules
print(os.environ.get("OMP_NUM_THREADS"), os.environ.get("GOMP_SPINCOUNT"))
"""


@pytest.mark.parametrize(
    ("quota", "environment", "expected"),
    [
        (2.5, {}, "2 1000"),
        (0.3, {}, "1 1000"),
        (8, {}, "None 1000"),
        (None, {}, "None 1000"),
        (2, {"OMP_NUM_THREADS": "3"}, "3 1000"),
        (2, {"OMP_WAIT_POLICY": "active"}, "2 None"),
    ],
)
def test_a_limit_of_cpu_time_is_one_of_threads(quota, environment, expected):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    code = CODE.format(quota=quota)
    run = subprocess.run(
        [sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == expected
