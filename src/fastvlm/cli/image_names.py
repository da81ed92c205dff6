"""Image names as people type, paste and drop them: ``~``, quotes, escaped spaces, backslashes, file:// URLs."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from fastvlm.errors import UsageError

_URL = re.compile(r"(https?|data|file):\S*", re.IGNORECASE)
_WINDOWS_PATH = re.compile(r"[A-Za-z]:\\|\\\\|\.{1,2}\\")  # C:\..., \\server\..., ..\...


def is_url(name: str) -> bool:
    """True for an http(s) or file URL or a data URI."""
    return _URL.fullmatch(name) is not None


def file_name(name: str) -> str:
    """`name` as `open` takes it: a file URL as a path, ``~`` expanded, escapes removed where only that is a file.

    Whatever exists as it was typed stays as it is, and so does what exists in no reading.

    Raises:
        UsageError: a file URL of another machine.
    """
    if name.lower().startswith("file:"):
        return _path_of_url(name)
    if is_url(name) or _exists(name):
        return name
    readings = (os.path.expanduser(text) for text in (name, _unquoted(name), re.sub(r"\\(.)", r"\1", name)))  # noqa: PTH111
    return next((reading for reading in readings if _exists(reading)), name)  # of none, what was typed


def split_names(text: str) -> list[str]:
    r"""The names in a line: ``a.png b.png``, ``'my cat.png'``, ``my\ cat.png``, ``C:\Users\me\cat.png``.

    A line that is one existing file as a whole is that file, also with spaces or quotes in its name. A backslash
    separates folders where a path begins as on Windows, and escapes the next character elsewhere.

    Raises:
        UsageError: quotes that are not closed; a file URL of another machine.
    """
    whole = file_name(text.strip())
    if _exists(whole):
        return [whole]
    try:
        words = _split(text, has_escapes=os.name != "nt" and not any(map(_WINDOWS_PATH.match, text.split())))
    except ValueError as error:
        raise UsageError(f"The names {text!r} cannot be read: {error}. Close the quotes.") from error
    return [file_name(word) for word in words]


def _split(text: str, *, has_escapes: bool) -> list[str]:
    lexer = shlex.shlex(text, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.commenters = True, ""
    if not has_escapes:
        lexer.escape = ""
    return list(lexer)


def _path_of_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise UsageError(f"{url!r} is a file of the machine {parts.netloc!r}; expected file:///path, or a plain path.")
    return url2pathname(parts.path) if os.name == "nt" else unquote(parts.path)


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _exists(name: str) -> bool:
    try:
        return Path(name).exists() and bool(name)
    except (OSError, ValueError):  # too long for a name, a null byte
        return False
