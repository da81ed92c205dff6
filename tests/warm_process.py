"""The command `fastvlm` in a process of its own, forked after the imports, which take most of its time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
from pathlib import Path

__all__ = ["PROCESSES", "run"]

PROCESSES = multiprocessing.get_context("forkserver") if hasattr(os, "fork") else multiprocessing.get_context("spawn")
# Once for all who fork: a test run has one such server a worker, and whoever sets this last would decide.
PROCESSES.set_forkserver_preload(
    [
        "pytest",
        "torch",
        "fastvlm.cli.main",
        "fastvlm.cli.opening",
        "fastvlm.engine.engine",
        "fastvlm.hf.loading",
        "fastvlm.server.process",
        "fastvlm.training.run.training_run",
    ]
)
_TIMEOUT_S = 550  # less than the limit of a test, to say which command it was


def run(
    arguments: list[str], environment: dict[str, str], stdin: bytes = b"", *, code: str = ""
) -> tuple[int, str, str]:
    """Run ``fastvlm`` with `arguments` in the current directory.

    Args:
        environment: all of it.
        stdin: what is in its standard input, a pipe; less than 64 KiB.
        code: Python that runs before the command; there is none after ``raise SystemExit``.

    Returns:
        Exit code (minus the signal that ended it), stdout, stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        child = PROCESSES.Process(target=_child, args=(arguments, environment, str(Path.cwd()), stdin, code, out, err))
        child.start()
        child.join(_TIMEOUT_S)
        if child.exitcode is None:
            child.kill()
            child.join()
            raise TimeoutError(f"fastvlm {' '.join(arguments)} ran longer than {_TIMEOUT_S} s")
        return child.exitcode, out.read_text(), err.read_text()


def _child(
    arguments: list[str], environment: dict[str, str], folder: str, stdin: bytes, code: str, out: Path, err: Path
) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    reader, writer = os.pipe()
    os.write(writer, stdin)
    os.close(writer)
    os.dup2(reader, 0)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
    sys.argv = ["fastvlm", *arguments]
    from fastvlm.cli.main import run as run_command

    exec(code, {"__name__": "__main__"})
    run_command()
