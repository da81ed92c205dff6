"""Worker process that renders untrusted chat templates; started by file path, imports only jinja2.

A template is a program. jinja2's sandbox protects files and Python's internals, but not against nested loops or strings
that double in size: only a separate process can be stopped inside a long operation of C code.

Protocol: a line of JSON in (`template`, `messages`, `variables`, `max_characters`), a line of JSON out: `text`, or
`error` and whether a `limit` was exceeded. A render that exceeds its processor time ends the process (SIGPROF).
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import signal
import sys
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

CPU_S = 0.5  # processor time, not the clock's: a busy machine is no reason to fail
MEMORY_BYTES = 512 << 20  # of address space


def main() -> None:
    """Answer requests until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    _limit_memory()
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(json.dumps(_answer(json.loads(line))).encode() + b"\n")
        sys.stdout.buffer.flush()


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no such limits, macOS not this one
        import resource  # noqa: PLC0415

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    _set_timer(CPU_S)
    try:
        return _rendered(**request)
    except MemoryError:
        return {"error": f"it needs more than {MEMORY_BYTES >> 20} MiB of memory", "limit": True}
    except RecursionError:
        return {"error": "it is nested or calls itself too deeply", "limit": True}
    except Exception as error:  # noqa: BLE001  # whatever a template stumbles over
        line = getattr(error, "lineno", None)
        place = f" (line {line})" if line else ""
        return {"error": f"{type(error).__name__}: {str(error)[:500]}{place}", "limit": False}
    finally:
        _set_timer(0)


def _set_timer(seconds: float) -> None:
    if hasattr(signal, "setitimer"):  # not on Windows: there the parent's clock is the only limit
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _rendered(template: str, messages: Any, variables: dict[str, Any], max_characters: int) -> dict[str, Any]:
    parts: list[str] = []
    length = 0
    for part in _compiled(template).generate(messages=messages, **variables):
        length += len(part)
        if length > max_characters:
            return {"error": f"it wrote more than {max_characters} characters", "limit": True}
        parts.append(part)
    return {"text": "".join(parts)}


@functools.lru_cache(8)
def _compiled(template: str) -> Template:
    """Compiled with what transformers gives to a chat template (5.23, ``utils/chat_template_utils.py``)."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    return environment.from_string(_without_generation_marks(template))


def _without_generation_marks(template: str) -> str:
    """Without ``{% generation %}``, which marks replies for training and renders nothing."""
    return re.sub(r"\{%(-?)\s*(?:end)?generation\s*(-?)%\}", r"{%\1 if true \2%}{%\1 endif \2%}", template)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


if __name__ == "__main__":
    main()
