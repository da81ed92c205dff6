"""Workers that die, hang or talk nonsense: one clear line each, and nothing is left running."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from fastvlm.bench.processes import WorkerProcess, all_ended
from fastvlm.errors import MeasurementError

PATIENCE_S = 240  # only where something is wrong is it waited for that long


@pytest.fixture
def start(fake):
    started = []

    def make(script=None, **options):
        contestant = fake("the fake", script, **options)
        started.append(WorkerProcess("the fake", contestant.arguments, contestant.program, threads=1))
        return started[-1]

    yield make
    for worker in started:
        worker.end()


def test_commands_are_answered_in_turn(start):
    worker = start({"encode": {"value": 0.25, "parts": {"a": 1.0}, "check": [3.0]}})
    assert worker.ask({"do": "open"}, PATIENCE_S).value == 1.0
    measured = worker.ask({"do": "encode", "side_px": 64}, PATIENCE_S)
    assert (measured.value, measured.parts, measured.check) == (0.25, {"a": 1.0}, [3.0])
    assert worker.is_alive
    worker.leave()
    assert not worker.is_alive


def test_a_refusal_leaves_the_worker_alive(start):
    worker = start({"encode": "refuse"})
    with pytest.raises(MeasurementError, match="the fake: cannot do that"):
        worker.ask({"do": "encode"}, PATIENCE_S)
    assert worker.is_alive and worker.ask({"do": "open"}, PATIENCE_S).value == 1.0


def test_a_death_is_told_with_its_last_words(start):
    worker = start({"encode": "die"})
    with pytest.raises(MeasurementError) as told:
        worker.ask({"do": "encode"}, PATIENCE_S)
    assert str(told.value) == "the fake ended with exit code 3 during 'encode': out of memory, says the fake"
    assert not worker.is_alive
    with pytest.raises(MeasurementError, match="ended with exit code 3 during 'decode'"):
        worker.ask({"do": "decode"}, PATIENCE_S)


def test_a_kill_is_told_by_its_signal(start):
    worker = start()
    worker.ask({"do": "open"}, PATIENCE_S)
    os.kill(worker._process.pid, 9)
    with pytest.raises(MeasurementError, match="by signal SIGKILL during 'encode'"):
        worker.ask({"do": "encode"}, PATIENCE_S)


def test_a_worker_that_hangs_is_ended(start, running):
    worker = start({"encode": "hang"})
    worker.ask({"do": "open"}, PATIENCE_S)
    with pytest.raises(MeasurementError, match="did not answer 'encode' within 0 s and was ended"):
        worker.ask({"do": "encode"}, 0.2)
    assert not worker.is_alive and not running(worker._process.pid)


def test_nonsense_ends_the_worker(start):
    worker = start({"encode": "garbage"})
    with pytest.raises(MeasurementError, match="answered 'encode' with 'this is no JSON'"):
        worker.ask({"do": "encode"}, PATIENCE_S)
    assert not worker.is_alive


def test_threads_are_passed_on(start):
    environment = Path(f"/proc/{start()._process.pid}/environ")
    if not environment.exists():
        pytest.skip("no /proc")
    assert b"OMP_NUM_THREADS=1" in environment.read_bytes()


def children_of(pid):
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(word) for word in found.stdout.split()]


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, MeasurementError])
def test_nothing_is_left_of_workers_and_what_they_started(start, running, error):
    workers = {name: start(child=True) for name in "ab"}
    for worker in workers.values():
        worker.ask({"do": "open"}, PATIENCE_S)
    pids = [worker._process.pid for worker in workers.values()]
    pids += [child for pid in pids for child in children_of(pid)]
    assert len(pids) == 4
    try:
        with all_ended(workers):
            if error is not None:
                raise error
    except (KeyboardInterrupt, MeasurementError):
        pass
    deadline = time.monotonic() + PATIENCE_S  # the system takes its time with processes that were killed
    while any(map(running, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(running, pids))


def test_the_log_of_the_fake_is_what_was_sent(start, tmp_path):
    worker = start(log=str(tmp_path / "log"))
    worker.ask({"do": "encode", "side_px": 64}, PATIENCE_S)
    assert json.loads((tmp_path / "log").read_text()) == {"who": None, "do": "encode", "side_px": 64}
