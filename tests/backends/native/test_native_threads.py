"""Own threads of the compiled kernels, in processes without OpenMP: as many as asked for, asleep when idle."""

import json
import os
import subprocess
import sys

import natives
import pytest
from compiled import LEVEL_NAMES, MODES, is_possible

COUNT = 1 << 20  # numbers: 16 pieces
START = f"""
import ctypes, json, os, sys, threading, time
library, level, action = ctypes.CDLL(sys.argv[1]), *sys.argv[2:4]
gelu = getattr(library, f"fastvlm_{{level}}_gelu")
gelu.argtypes, gelu.restype = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_int], None

def computed(threads):
    numbers = (ctypes.c_float * {COUNT})(*(i / {COUNT} for i in range({COUNT})))
    gelu(numbers, {COUNT}, 1, threads)
    return bytes(numbers)

def num_threads():
    return len(os.listdir("/proc/self/task"))

before = num_threads()
assert getattr(library, f"fastvlm_{{level}}_has_threads")() == 1
expected = computed(1)
result = {{"equal": computed(4) == expected, "made": num_threads() - before}}
"""
ACTIONS = {
    "again": """
result["equal again"] = all(computed(threads) == expected for threads in (4, 2, 3, 4, 1, 4))
result["made again"] = num_threads() - before
""",
    "together": """
found = []
callers = [threading.Thread(target=lambda: found.extend(computed(3) == expected for _ in range(3))) for _ in range(4)]
for caller in callers: caller.start()
for caller in callers: caller.join()
result["equal together"] = len(found) == 12 and all(found)
""",
    "idle": """
started = time.process_time()
time.sleep(1)
result["idle"] = time.process_time() - started < 0.1
""",
    "fork": """
child = os.fork()
is_equal = computed(4) == expected
if not child:
    sys.exit(0 if is_equal and num_threads() == 4 else 1)
result["forked"] = os.waitpid(child, 0)[1] == 0 and is_equal
""",
}


@is_possible
@pytest.mark.skipif("sanitized" in MODES or "arm" in MODES, reason="a plain process of this machine's")
@pytest.mark.parametrize("action", ACTIONS)
def test_a_process_without_openmp_has_threads_of_its_own(action):
    script = f"{START}{ACTIONS[action]}print(json.dumps(result))"
    command = [sys.executable, "-c", script, str(natives.library()), LEVEL_NAMES[0], action]
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result.pop("made") == 3 and result.pop("made again", 3) == 3
    assert result and all(result.values()), result
