"""One contestant in a process of its own: ``python -m fastvlm.bench.worker KIND OPTIONS_JSON``.

Reads one JSON object a line from stdin and answers each with one line on stdout:

    {"do": "encode", "side_px": 1024}  ->  {"ok": true, "value": 0.52, "parts": {}, "check": [1.3, ...]}
    {"do": "encode", "side_px": 100}   ->  {"ok": false, "error": "one line", "kind": "UsageError"}

`value` is in seconds, tokens a second or bytes, as the measurement's unit says; `parts` are the components of
the value; `check` holds numbers by which contestants are compared. The process ends with its stdin. What libraries
print to stdout goes to stderr.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, TextIO

from fastvlm.errors import UsageError

# Kind -> module and class; each is imported only in its own process.
KINDS = {
    "fastvlm": ("fastvlm.bench.fastvlm_engine", "FastVlmEngine"),
    "transformers": ("fastvlm.bench.transformers_peer", "TransformersModel"),
    "openvino": ("fastvlm.bench.encoder_peers", "OpenVinoEncoder"),
    "onnxruntime": ("fastvlm.bench.encoder_peers", "OnnxRuntimeEncoder"),
    "llama.cpp": ("fastvlm.bench.llama_cpp_peer", "LlamaCppDecoder"),
    "openvino-decoder": ("fastvlm.bench.openvino_peer", "OpenVinoDecoder"),
    "command": ("fastvlm.bench.cold_start", "ColdStart"),
    "probe": ("fastvlm.bench.probes", "MachineProbe"),
}


@dataclass(frozen=True)
class Measured:
    """What one command of a worker returns; see the module's docstring."""

    value: float
    parts: dict[str, float] = field(default_factory=dict)
    check: list[float] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def contestant(kind: str, options: dict[str, Any]) -> Any:
    """A contestant, not opened; its public methods are its commands.

    Raises:
        UsageError: there is no such kind.
    """
    if kind not in KINDS:
        raise UsageError(f"There is no worker {kind!r}; expected one of {', '.join(KINDS)}.")
    module, name = KINDS[kind]
    return getattr(importlib.import_module(module), name)(**options)


def answer(line: str, of: Callable[[], Any]) -> dict[str, Any]:
    """The answer to one line; an exception becomes one line of text."""
    try:
        command = json.loads(line)
        name = command.pop("do")
        method = None if name.startswith("_") else getattr(of(), name, None)
        if method is None:
            raise UsageError(f"There is no command {name!r} here.")
        return {"ok": True, **asdict(method(**command))}
    except Exception as error:  # noqa: BLE001  # the parent decides what a failure means
        words = " ".join(str(error).split())[:500]
        return {"ok": False, "error": words or type(error).__name__, "kind": type(error).__name__}


def serve(kind: str, options: dict[str, Any], lines: Iterator[str], answers: TextIO) -> None:
    """Answer every line; the contestant is created for the first one."""
    first_use = functools.cache(lambda: contestant(kind, options))
    for line in lines:
        if line.strip():
            answers.write(json.dumps(answer(line, first_use)) + "\n")
            answers.flush()


def main(arguments: list[str]) -> int:
    """Run the worker over this process's stdin and stdout."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and ends the workers
    kind, options = arguments
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        serve(kind, json.loads(options), iter(sys.stdin.readline, ""), answers)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
