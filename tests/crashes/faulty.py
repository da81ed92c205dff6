"""Runs commands in the warmed process of ``faulty_process.py``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ALL_KINDS = ("create", "write", "sync", "name", "remove")


@dataclass(frozen=True)
class Done:
    """What a command did: its exit code, or minus the signal that ended it, and what it said."""

    status: int
    out: str
    err: str


class Faulty:
    """The process of ``faulty_process.py``."""

    def __init__(self, library: Path, warm_up: list[list[str]], **environment: str) -> None:
        settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "faulty_process.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **settings, **environment, "LD_PRELOAD": str(library)},
        )
        try:
            assert self._asked(warm_up) == "ready\n", "the process could not be warmed; its stderr says why"
        except BaseException:
            self.end()
            raise

    def _asked(self, request: Any) -> str:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()

    def run(
        self,
        arguments: list[str],
        inside: Path,
        *,
        at: int = 0,
        how: str = "count",
        error: int = 0,
        kinds: tuple[str, ...] = ALL_KINDS,
        log: Path | None = None,
    ) -> Done:
        """Run the command in a fork, with the fault."""
        request = {"arguments": arguments, "inside": str(inside), "at": at, "how": how, "error": error}
        reply = self._asked({**request, "kinds": kinds, "log": None if log is None else str(log)})
        return Done(**json.loads(reply))

    def end(self) -> None:
        """Close its input, at which it ends when it has answered."""
        self.process.communicate()
