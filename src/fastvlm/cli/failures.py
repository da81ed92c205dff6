"""What a failed command says and returns: one line on stderr, and 2 for bad use or 1 for work that failed.

Exit codes: 0 done; 2 the command line asks for something impossible (a flag, a missing file, a size, a prompt that does
not fit); 1 the work itself failed (a damaged image or checkpoint, no network, a bug); 130 stopped by Ctrl-C; 141 the
reader of our output went away.
"""

from __future__ import annotations

import os
import sys
import traceback

import typer

from fastvlm.cli.terminal import say
from fastvlm.errors import AttentionError, ConfigError, ContextLengthError, FastVlmError, PromptError, UsageError
from fastvlm.import_failures import explain_import_failure

FAILED = 1
BAD_USE = 2
INTERRUPTED = 128 + 2  # as a shell reports a command ended by SIGINT
GONE_READER = 128 + 13  # ... and by SIGPIPE

# typer's base of all mistakes on the command line: click's own class in older releases, a copy of it in newer ones.
COMMAND_LINE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
_BAD_USE = (UsageError, ConfigError, PromptError, ContextLengthError, AttentionError, COMMAND_LINE_ERROR)


def report_failure(error: BaseException, *, is_debug: bool) -> int:
    """Tell the user what went wrong and return the exit code that fits."""
    if isinstance(error, BrokenPipeError):
        _let_go_of_stdout()
        return GONE_READER
    if is_debug:
        traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt):
        if sys.stderr.isatty():
            sys.stderr.write("\n")  # away from the text that was being written
        say("stopped", "by Ctrl-C.")
        return INTERRUPTED
    say("error", _message(error, is_debug=is_debug))
    return BAD_USE if isinstance(error, _BAD_USE) else FAILED


def _message(error: BaseException, *, is_debug: bool) -> str:
    if isinstance(error, COMMAND_LINE_ERROR):
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "fastvlm"
        message: str = error.format_message()  # type: ignore[attr-defined]
        stop = "" if message.endswith((".", "?")) else "."
        return f"{message}{stop} Try: {command} --help"
    if isinstance(error, FastVlmError):
        return str(error)
    explanation = explain_import_failure(error)
    if explanation is not None:
        return str(explanation)
    hint = "" if is_debug else " Run it again with --debug for the traceback."
    return f"{type(error).__name__}: {error}{hint}"


def _let_go_of_stdout() -> None:
    """Point stdout at nothing, so that Python's own flush at exit does not complain about the closed pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
