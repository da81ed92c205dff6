"""A warmed process that forks one command after the other, each with a fault at one of its changes to the disk.

Reads one JSON object a line: `arguments` of the command, `inside` (the folder whose changes count), `at` (from 1; 0 for
none), `how` ("count", "kill", "once", "from": at this change, or from this one on), `error` (an errno), `kinds` (names
of kinds of changes), `log` (a file, or null). Writes one JSON object a line: `status` (exit code, or minus the signal),
`out`, `err`.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import tempfile
import traceback
import warnings
from typing import Any

KINDS = {"create": 1, "write": 2, "sync": 4, "name": 8, "remove": 16}
HOW = ("count", "kill", "once", "from")


def prepare(warm_up: list[list[str]]) -> None:
    """Import what the commands need, by running them once; one thread, or a fork would lose the others."""
    import torch

    torch.set_num_threads(1)
    from fastvlm.training.run import training_run

    training_run._reporters = list  # TensorBoard writes in a thread of its own, when it likes
    for arguments in warm_up:
        status = run(arguments)
        assert status == 0, (arguments, status)


def run(arguments: list[str]) -> int:
    from fastvlm.cli.main import main

    with warnings.catch_warnings():
        return main(arguments)


def in_child(request: dict[str, Any], out: int, err: int) -> None:
    """Never returns."""
    status = 99
    try:
        os.dup2(out, 1)
        os.dup2(err, 2)
        log = -1 if request["log"] is None else os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        library = ctypes.CDLL(None)
        kinds = sum(KINDS[kind] for kind in request["kinds"])
        how = HOW.index(request["how"])
        library.faults_arm(request["inside"].encode(), request["at"], how, request["error"], kinds, log)
        status = run(request["arguments"])
        sys.stdout.flush()
        sys.stderr.flush()
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 98
    except BaseException:  # noqa: BLE001  # what a test has to see
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def answered(request: dict[str, Any]) -> dict[str, Any]:
    """What the command did."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            in_child(request, out.fileno(), err.fileno())
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode(errors="replace"))
    return {"status": status, "out": texts[0], "err": texts[1]}


def main() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    prepare(json.loads(sys.stdin.readline()))
    print("ready", file=replies, flush=True)  # nothing may be left in a buffer that a fork would copy
    for line in sys.stdin:
        print(json.dumps(answered(json.loads(line))), file=replies, flush=True)


if __name__ == "__main__":
    main()
