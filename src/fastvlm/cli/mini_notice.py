"""Note on what the shipped checkpoint can and cannot do."""

from __future__ import annotations

from pathlib import Path

from fastvlm.cli.terminal import Notes, say
from fastvlm.cli.user_folders import cache_folder
from fastvlm.errors import CheckpointError
from fastvlm.formats.places import SHIPPED, checkpoint_path

_SHORT = (
    "the mini was trained on drawings, words, receipts and charts, for one question at a time; for photographs use "
    "-m apple/FastVLM-0.5B. See: fastvlm info mini"
)
ABOUT = (
    "A small model that ships with fastvlm, so that everything can be tried without a download. It was trained from "
    "scratch on drawings only. It names colors and shapes, counts to six, says when what is asked for is not there, "
    "reads words of three to eight large letters and every second receipt total, and names 44 things drawn as emoji, "
    "and garments. It answers one short English question about one image: it was not trained on photographs, "
    "screenshots, documents, several images or conversations, and what it says about those means nothing. For them use "
    "a published checkpoint: -m apple/FastVLM-0.5B. Scores: README.md in the folder."
)
SINGLE_TURN = (
    'This model was trained for one question at a time, so ask each in full: "What color is the star?", not "What '
    'color is it?". For conversations use -m apple/FastVLM-0.5B'
)
_MARKER = "mini-notice-shown"


def is_shipped(folder: Path) -> bool:
    """True for the folder of the checkpoint that comes with the package."""
    try:
        return folder == checkpoint_path(SHIPPED)
    except CheckpointError:
        return False


def tell_once(folder: Path, notes: Notes) -> None:
    """Print one line about the shipped checkpoint, on a terminal, once per user."""
    if not notes.is_shown or not is_shipped(folder):
        return
    try:
        marker = cache_folder() / _MARKER
        if marker.exists():
            return
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
    except (OSError, RuntimeError):  # a read-only or missing home: it is said each time
        pass
    say("note", _SHORT)
