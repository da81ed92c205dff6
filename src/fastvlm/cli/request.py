"""Checks of the images and the question on the command line, before anything slow is imported."""

from __future__ import annotations

import re
import shlex
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from fastvlm.cli.image_names import file_name, is_url
from fastvlm.errors import UsageError

STDIN = "-"
_FILE_NAME = re.compile(r"\S*[^\s.]\.[A-Za-z]\w{2,3}")  # cat.png, photos/cat.webp: no question reads like that
UNQUOTED_HINT = "If that is a part of the question: the question is one argument, in quotes, after the images."
_SHOWN = 80  # characters of an argument that a message repeats
_USAGE = 'Usage: fastvlm ask [IMAGE...] "QUESTION"'


def complete_question(sources: Sequence[str], question: str | None, default: str | None) -> tuple[list[str], str]:
    """Images and question, where a template may have the question (`default`) and the last argument is an image.

    Raises UsageError without a question.
    """
    if default is not None and question is not None and (_is_image_name(question) or _FILE_NAME.fullmatch(question)):
        return [*sources, question], default
    question = default if question is None else question
    if question is None:
        raise UsageError(f"There is no question. {_USAGE}")
    return [*sources], question


def check_order(images: Sequence[str], question: str) -> None:
    """Raise UsageError, with the corrected command, if the last argument is an image and another one is not."""
    if not _is_image_name(question):
        return
    texts = [name for name in images if not _is_image_name(name)]
    if len(texts) == 1 and not _FILE_NAME.fullmatch(texts[0]):
        images = [name for name in (*images, question) if name is not texts[0]]
        command = shlex.join(
            ["fastvlm", "ask", *(name if len(name) <= _SHOWN else "data:..." for name in images), texts[0]]
        )
        raise UsageError(
            f"{_shown(question)} is an image and {_shown(texts[0])} is not: the question comes last. Try: {command}"
        )


def _is_image_name(text: str) -> bool:
    return text == STDIN or is_url(text) or _kind(file_name(text)) == "file"


def check_question(question: str) -> None:
    """Raise UsageError if `question` is empty, not valid text, or the name of an image."""
    if not question.strip():
        raise UsageError(f"The question is empty. {_USAGE}")
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"The question is not valid UTF-8 (character {error.start}). Check the terminal's encoding."
        ) from error
    if _is_image_name(question):
        raise UsageError(f"There is no question, only {_shown(question)}: the last argument is the question. {_USAGE}")
    if _FILE_NAME.fullmatch(question):
        raise UsageError(f"There is no question, and no file {_shown(question)}. {_USAGE}")


def check_images(images: Sequence[str], hint: str = "") -> None:
    """Raise UsageError for a missing file, a folder, or stdin given twice.

    `hint` ends the error about a missing file.
    """
    if images.count(STDIN) > 1:
        raise UsageError(f"'-' stands {images.count(STDIN)} times, but stdin can be read only once.")
    if STDIN in images and sys.stdin.isatty():
        raise UsageError(
            "'-' reads an image from stdin, but stdin is the terminal. Try: fastvlm ask - \"...\" < cat.png"
        )
    for image in images:
        if image != STDIN and not is_url(image):
            _check_file(image, hint)


def _check_file(image: str, hint: str) -> None:
    kind = _kind(image)
    if kind == "folder":
        raise UsageError(f"{_shown(image)} is a folder; expected an image file. Try: {image.rstrip('/')}/*.png")
    if kind is None:
        raise UsageError(f"There is no file {_shown(image)}. {hint}".rstrip())


def _kind(text: str) -> str | None:
    """``"file"`` (a pipe too), ``"folder"``, or None if `text` is not an existing path."""
    try:
        mode = Path(text).stat().st_mode
    except (OSError, ValueError):  # not there, too long for a name, a null byte: text, not a path
        return None
    return "folder" if stat.S_ISDIR(mode) else "file"


def _shown(text: str) -> str:
    """`text` in quotes, cut if it is long; backslashes as they were typed."""
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...").replace("\\\\", "\\")
