"""What a plain user's Python sees: no settings of ours."""

import os
import signal
import subprocess
import sys


def hear_ctrl_c() -> None:
    """For `preexec_fn`: a shell starts what it puts in the background, this test run perhaps, deaf to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def plain_environment() -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
    return {**environment, "HF_HUB_OFFLINE": "1", "TERM": "xterm"}


def start(*arguments, **pipes) -> subprocess.Popen:
    """The command in a process of its own, which hears Ctrl-C."""
    command = [sys.executable, "-u", "-m", "fastvlm", *map(str, arguments)]
    pipes |= {"stderr": subprocess.PIPE, "preexec_fn": hear_ctrl_c}
    return subprocess.Popen(command, env=plain_environment(), **pipes)
