"""Cold start: commands that answer, fail or say nothing."""

import sys

import pytest

from fastvlm.bench import cold_start
from fastvlm.bench.cold_start import ColdStart, ask_command, transformers_command
from fastvlm.errors import FastVlmError


def python(code, threads=0):
    return ColdStart([sys.executable, "-c", code], threads)


UNTIL_SEEN = """
import pathlib, sys, time
print("a", flush=True)
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.01)
"""


def test_the_first_byte_comes_before_the_end(tmp_path, monkeypatch):
    """The command ends only after its first byte has been timed."""
    moments = []

    def clock():
        moments.append(10.0 ** len(moments))
        if len(moments) == 2:
            (tmp_path / "seen").touch()
        return moments[-1]

    monkeypatch.setattr(cold_start.time, "perf_counter", clock)
    command = [sys.executable, "-c", UNTIL_SEEN, str(tmp_path / "seen")]
    measured = ColdStart(command).cold_start()
    assert (measured.value, measured.parts["to_the_end"]) == (9.0, 99.0)


def test_a_failure_is_told_with_its_last_line():
    with pytest.raises(FastVlmError, match="exit code 1: ValueError: no such thing"):
        python("print('early', flush=True); raise ValueError('no such thing')").cold_start()


@pytest.mark.parametrize("code", ["pass", "import sys; sys.exit(3)"])
def test_silence_is_a_failure(code):
    with pytest.raises(FastVlmError, match="no message"):
        python(code).cold_start()


def test_threads_reach_the_command():
    code = "import os, sys; sys.exit(os.environ.get('OMP_NUM_THREADS') != '7' or print('x'))"
    assert python(code, threads=7).cold_start().value > 0


def test_opening_costs_nothing():
    assert python("").open().value == 0.0


def test_fastvlm_ask_answers(endless, tmp_path):
    from PIL import Image

    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    command = ask_command(str(endless), str(tmp_path / "red.png"), "What is this?")
    assert ColdStart(command).cold_start().value > 0


def test_both_commands_ask_the_same():
    ours, theirs = (make("folder", "p.jpg", "Why?") for make in (ask_command, transformers_command))
    assert {"folder", "p.jpg", "Why?", "2"} <= set(ours) and {"folder", "p.jpg", "Why?", "2"} <= set(theirs)
    assert ours[1:4] == ["-m", "fastvlm", "ask"]
