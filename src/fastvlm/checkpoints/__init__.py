"""Open, convert and register checkpoints of every published layout.

model, processor = fastvlm.load("apple/FastVLM-0.5B")
fastvlm.convert("llava-fastvithd_0.5b_stage3", "fastvlm-0.5b")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastvlm.checkpoints.conversion import convert
    from fastvlm.checkpoints.loading import load
    from fastvlm.checkpoints.registration import register

__all__ = ["convert", "load", "register"]

_HOME_OF = {"convert": "conversion", "load": "loading", "register": "registration"}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'fastvlm.checkpoints' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fastvlm.checkpoints.{_HOME_OF[name]}"), name)
