"""The settings that two runs must share to work on the same folder, kept there as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def differences(file: Path, identity: Mapping[str, Any]) -> str:
    """Settings of `identity` that `file` has otherwise: ``size 256, now 512``; "" if there are none, or no file.

    A file that is not JSON differs in all of them.
    """
    if not file.is_file():
        return ""
    try:
        earlier = dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        earlier = {}
    now = json.loads(json.dumps(dict(identity)))
    other = [name for name in now if earlier.get(name) != now[name]]
    return ", ".join(f"{name} {earlier.get(name)!r}, now {now[name]!r}" for name in other)
