"""The command that `fastvlm watch --run` starts: after which answers, with what, and for how long."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import typer

from fastvlm.errors import UsageError

TIMEOUT_S = 60.0


@dataclass(frozen=True)
class CommandChoice:
    """A command, and the word after which it is run.

    Raises:
        UsageError: `when` without `run`; a command that cannot be read or is not there.
    """

    when: Annotated[
        str | None,
        typer.Option("--when", metavar="TEXT", help="Run the command only if this word or phrase is in the answer."),
    ] = None
    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            metavar="COMMAND",
            help="Run this after each answer, without a shell: the JSON line comes in stdin, its values in FASTVLM_*.",
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.when is not None and not self.when.strip():
            raise UsageError("--when is empty; expected a word or phrase, such as yes.")
        if self.when is not None and self.run is None:
            raise UsageError("--when chooses the answers after which a command is run. Give --run 'COMMAND' too.")
        if self.run is not None and shutil.which(self.words[0]) is None:
            raise UsageError(f"--run: there is no program {self.words[0]!r}. For a shell: --run \"sh -c '...'\".")

    @cached_property
    def words(self) -> list[str]:
        """The program and its arguments. Raises UsageError."""
        try:
            words = shlex.split(self.run or "", posix=os.name != "nt")
        except ValueError as error:
            raise UsageError(f"--run is {self.run!r}: {error}. Close the quotes.") from error
        if not words:
            raise UsageError("--run is empty; expected a command, such as notify-send 'At the door'.")
        return words

    def is_triggered_by(self, answer: str) -> bool:
        """True if a command is to be run after `answer`: upper and lower case are the same, parts of words no match."""
        if self.run is None:
            return False
        if self.when is None:
            return True
        return re.search(rf"(?<!\w){re.escape(self.when.strip())}(?!\w)", answer, re.IGNORECASE) is not None

    def start(self, line: dict[str, Any], warn: Callable[[str], None]) -> bool:
        """Run the command to its end, at most :data:`TIMEOUT_S`; True if it succeeded, else `warn` gets a line.

        `line` is the answer as `--json` prints it. What the command prints goes to stderr.
        """
        names = ("answer", "time", "frame", "time_s", "file", "latency_ms")
        values = {name: "" if line[name] is None else str(line[name]).replace("\0", "") for name in names}
        settings = {f"FASTVLM_{name.upper()}": value for name, value in values.items()}
        try:
            done = subprocess.run(  # noqa: S603 - the user's own command, without a shell
                self.words,
                input=json.dumps(line).encode() + b"\n",
                env={**os.environ, **settings},
                stdout=_stderr(),
                check=False,
                timeout=TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            warn(f"--run {self.words[0]} was ended after {TIMEOUT_S:g} s.")
            return False
        except OSError as error:
            warn(f"--run {self.words[0]} could not be started ({error.strerror}).")
            return False
        if done.returncode:
            warn(f"--run {self.words[0]} failed with exit code {done.returncode}.")
        return done.returncode == 0


def _stderr() -> int:
    try:
        return sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):  # replaced by another object
        return subprocess.DEVNULL
