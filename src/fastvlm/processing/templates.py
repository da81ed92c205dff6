"""Renders untrusted chat templates in a process with limits on time, memory and output.

Built-in templates are rendered directly. The process is started for the first template, is kept, and serves all threads
one after the other; a template that exceeds a limit ends it, and the next one gets a new process.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

from fastvlm.errors import PromptError

_RUN = (
    "import json, runpy, sys; sys.path[:] = json.loads(sys.argv[1]); runpy.run_path(sys.argv[2], run_name='__main__')"
)
_WORKER = Path(__file__).with_name("template_worker.py")
_SPARE_CHARACTERS = 1_000_000  # that a template may write beside what it was given
_WALL_S = 60.0 if hasattr(signal, "setitimer") else 5.0  # the process stops itself by processor time, where it can


class TemplateLimitError(PromptError):
    """A chat template that exceeded its processor time, memory or output."""


class _Worker:
    """One process; not for several threads at once."""

    def __init__(self) -> None:
        command = [sys.executable, "-I", "-S", "-c", _RUN, json.dumps(sys.path), str(_WORKER)]
        try:
            self._process = subprocess.Popen(  # noqa: S603  # our own file, by our own interpreter
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError as error:
            raise PromptError(
                f"A chat template that is not fastvlm's own is rendered in a process of its own, which cannot be "
                f"started: {error}. Pass chat_template='default' for the template that the model was trained with."
            ) from error
        # Unbuffered, so that a fork of this process holds nothing that it could write as well.
        self._requests = cast("io.BufferedWriter", self._process.stdin).detach()
        self._answers = cast("IO[bytes]", self._process.stdout)

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer; raises TemplateLimitError or PromptError if the process ended instead."""
        timer = threading.Timer(_WALL_S, self._process.kill)
        timer.daemon = True
        timer.start()
        try:
            with contextlib.suppress(BrokenPipeError):
                left = memoryview(json.dumps(request).encode() + b"\n")
                while left:
                    left = left[self._requests.write(left) :]
            line = self._answers.readline()
        finally:
            timer.cancel()
        if line.endswith(b"\n"):
            answer: dict[str, Any] = json.loads(line)
            return answer
        self.stop()
        return {"error": self._why_it_ended(), "limit": True}

    def _why_it_ended(self) -> str:
        code = self._process.returncode
        if hasattr(signal, "SIGPROF") and code == -signal.SIGPROF:
            return "it took more than half a second of processor time"
        return f"the process that rendered it ended (exit code {code})"

    def stop(self) -> None:
        """End the process and wait for it."""
        self._process.kill()
        self._process.wait()
        for stream in (self._requests, self._answers):
            with contextlib.suppress(OSError):  # what was not written yet finds no reader
                stream.close()

    def forget(self) -> None:
        """Let go of a process that belongs to the parent of this one."""
        for stream in (self._requests, self._answers):
            with contextlib.suppress(OSError):
                stream.close()
        self._process.returncode = 0  # or Popen would wait for it


class _Workers:
    """The one process of this interpreter, started when needed."""

    def __init__(self) -> None:
        self._lock, self._worker = threading.Lock(), None
        atexit.register(self.stop)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    _worker: _Worker | None

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        with self._lock:
            if self._worker is None or not self._worker.is_alive:
                self._stop()
                self._worker = _Worker()
            return self._worker.ask(request)

    def stop(self) -> None:
        with self._lock:
            self._stop()

    def _stop(self) -> None:
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def _after_fork(self) -> None:
        if self._worker is not None:
            self._worker.forget()
        self._lock, self._worker = threading.Lock(), None


_WORKERS = _Workers()


def render_template(template: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
    """What `template` makes of `messages`; as transformers' renderer, with limits.

    Args:
        template: Jinja source.
        messages: of one conversation, plain data.
        variables: handed to the template; tools may be functions, of which it gets the JSON schemas.

    Raises:
        TemplateLimitError: more than half a second of processor time, 512 MiB of memory, or a million characters
            beyond what was given.
        PromptError: a template that cannot be compiled or that fails, and variables that are no plain data.
    """
    given = {"tools": None, "documents": None, **variables}
    if given["tools"]:
        given["tools"] = [_schema(tool) if callable(tool) else tool for tool in given["tools"]]
    try:
        num_characters = len(json.dumps([template, list(messages), given]))
    except (TypeError, ValueError) as error:
        raise PromptError(f"What is handed to a chat template must be plain data, as in JSON: {error}.") from error
    answer = _WORKERS.ask(
        {
            "template": template,
            "messages": list(messages),
            "variables": given,
            "max_characters": num_characters + _SPARE_CHARACTERS,
        }
    )
    if "text" in answer:
        return str(answer["text"])
    kind = TemplateLimitError if answer["limit"] else PromptError
    raise kind(f"The chat template failed: {answer['error']}.")


def _schema(tool: Callable[..., Any]) -> Any:
    from transformers.utils import get_json_schema  # noqa: PLC0415  # imports for a second

    return get_json_schema(tool)
