"""Questions over many images: rows in, rows out, errors as rows; a run that is stopped goes on where it was.

    from fastvlm.captioning import caption

    caption("photos", "captions", "What is this?")

Names are loaded when they are used, so that a run against a server imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastvlm.captioning.engine_captioner import EngineCaptioner, open_captioner
    from fastvlm.captioning.progress import ErrorLimit, Progress, Summary
    from fastvlm.captioning.rows import Answer, Captioner, Prompt, Row
    from fastvlm.captioning.run import CaptionRun, CaptionSettings, caption
    from fastvlm.captioning.shards import Columns
    from fastvlm.captioning.url_captioner import UrlCaptioner
    from fastvlm.captioning.work import Split

_HOME_OF = {
    "Answer": "rows",
    "CaptionRun": "run",
    "CaptionSettings": "run",
    "Captioner": "rows",
    "Columns": "shards",
    "EngineCaptioner": "engine_captioner",
    "ErrorLimit": "progress",
    "Progress": "progress",
    "Prompt": "rows",
    "Row": "rows",
    "Split": "work",
    "Summary": "progress",
    "UrlCaptioner": "url_captioner",
    "caption": "run",
    "open_captioner": "engine_captioner",
}

__all__ = [
    "Answer",
    "CaptionRun",
    "CaptionSettings",
    "Captioner",
    "Columns",
    "EngineCaptioner",
    "ErrorLimit",
    "Progress",
    "Prompt",
    "Row",
    "Split",
    "Summary",
    "UrlCaptioner",
    "caption",
    "open_captioner",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'fastvlm.captioning' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fastvlm.captioning.{_HOME_OF[name]}"), name)
