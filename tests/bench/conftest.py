"""A tiny checkpoint whose replies never end, and workers that do what a test tells them."""

import json
import os
import sys
from pathlib import Path

import parrot
import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # for `import fake_worker`

from fastvlm.bench.plan import Contestant  # noqa: E402


@pytest.fixture(scope="session")
def endless(tmp_path_factory):
    return parrot.save(tmp_path_factory.mktemp("bench") / "endless", is_endless=True)


@pytest.fixture
def fake():
    """``fake("label", {"encode": {"value": 1.0}}, measures={"encode"})``: see fake_worker.py."""

    def make(label, script=None, measures=("encode", "decode"), **options) -> Contestant:
        program = (sys.executable, str(HERE / "fake_worker.py"))
        return Contestant(label, "fake", {"script": script or {}, **options}, frozenset(measures), program=program)

    return make


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.fixture
def running():
    return is_running


def log_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def read_log():
    return log_of
