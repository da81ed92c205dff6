"""The page that `fastvlm serve` shows: static files that talk to `/v1` like any stranger. No build step."""

from __future__ import annotations

from pathlib import Path

__all__ = ["page_folder"]


def page_folder() -> Path:
    """Where the page's files are; `index.html` is the page."""
    return Path(__file__).parent / "page"
