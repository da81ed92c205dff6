"""What was asked: the pictures and the question as typed, checked before anything heavy is loaded."""

from __future__ import annotations

import re
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from fastvlm.errors import UsageError

__all__ = ["STDIN", "UNQUOTED_HINT", "check_pictures", "check_question"]

STDIN = "-"
_URL = re.compile(r"(https?|data|file):\S*", re.IGNORECASE)
_FILE_NAME = re.compile(r"\S*[^\s.]\.[A-Za-z]\w{2,3}")  # cat.png, photos/cat.webp: no question reads like that
UNQUOTED_HINT = "If that is a part of the question: the question is one argument, in quotes, after the pictures."
_USAGE = 'Usage: fastvlm ask [PICTURE...] "QUESTION"'


def check_question(question: str) -> None:
    """Raise UsageError if `question` is empty, is no text, or is rather a picture whose question was forgotten."""
    if not question.strip():
        raise UsageError(f"The question is empty. {_USAGE}")
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"The question is not valid UTF-8 (character {error.start}). Check the terminal's encoding."
        ) from error
    if question == STDIN or _URL.fullmatch(question) or _kind(question) == "file":
        raise UsageError(f"There is no question, only {_shown(question)}: the last argument is the question. {_USAGE}")
    if _FILE_NAME.fullmatch(question):
        raise UsageError(f"There is no question, and no file {_shown(question)}. {_USAGE}")


def check_pictures(pictures: Sequence[str], hint: str = "") -> None:
    """Raise UsageError for a picture that cannot be there: a missing file, a folder, two readers of stdin.

    `hint` says what else a name without a file may have been.
    """
    if pictures.count(STDIN) > 1:
        raise UsageError(f"'-' stands {pictures.count(STDIN)} times, but stdin can be read only once.")
    if STDIN in pictures and sys.stdin.isatty():
        raise UsageError(
            "'-' reads a picture from stdin, but stdin is the terminal. Try: fastvlm ask - \"...\" < cat.png"
        )
    for picture in pictures:
        if picture != STDIN and not _URL.fullmatch(picture):
            _check_file(picture, hint)


def _check_file(picture: str, hint: str) -> None:
    kind = _kind(picture)
    if kind == "folder":
        raise UsageError(f"{_shown(picture)} is a folder; expected a picture file. Try: {picture.rstrip('/')}/*.png")
    if kind is None:
        raise UsageError(f"There is no file {_shown(picture)}. {hint}".rstrip())


def _kind(text: str) -> str | None:
    """``"file"`` (a pipe too), ``"folder"``, or None if `text` is no path that exists."""
    try:
        mode = Path(text).stat().st_mode
    except (OSError, ValueError):  # not there, too long for a name, a null byte: text, not a path
        return None
    return "folder" if stat.S_ISDIR(mode) else "file"


def _shown(text: str, limit: int = 80) -> str:
    return repr(text if len(text) <= limit else f"{text[:limit]}...")
