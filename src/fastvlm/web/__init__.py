"""The web page of `fastvlm serve`: static files without a build step, which use only the public API `/v1`."""

from __future__ import annotations

from pathlib import Path

__all__ = ["page_folder"]


def page_folder() -> Path:
    """Folder of the page's files; `index.html` is the page."""
    return Path(__file__).parent / "page"
