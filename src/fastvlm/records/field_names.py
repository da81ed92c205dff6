"""Field names of records: unknown names, and the known name that is nearest to each."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

# Names in other layouts that are not spelled like ours; each is suggested only if our name is known in its place.
_ALIASES = {
    "img": "image",
    "imgs": "images",
    "picture": "image",
    "pictures": "images",
    "photo": "image",
    "photos": "images",
    "file_name": "image_path",
    "filename": "image_path",
    "dialog": "conversations",
    "color": "colour",
    "colors": "colours",
    "bbox": "box",
    "prompt": "question",
    "query": "question",
    "instruction": "question",
    "text": "question",
    "label": "answers",
    "target": "answers",
    "ground_truth": "answers",
    "gt": "answers",
    "candidates": "choices",
}


def is_given(value: Any) -> bool:
    """False for null, an empty text, list or object, because Arrow gives each record all columns of its file."""
    return value is not None and not (isinstance(value, (str, bytes, list, tuple, Mapping)) and not value)


def unknown_names(names: Iterable[str], known: Collection[str], ignored: Collection[str] = ()) -> list[str]:
    """The names that are neither known nor to be ignored, in their order."""
    return [name for name in names if name not in known and name not in ignored]


def with_nearest(names: Sequence[str], known: Collection[str]) -> str:
    """The names for an error text, each with the known one that it is nearest to: ``'img' (did you mean 'image'?)``."""
    return ", ".join(f"{name!r}{_nearest(name, known)}" for name in names)


def _nearest(name: str, known: Collection[str]) -> str:
    lower = name.lower()
    alias = _ALIASES.get(lower)
    near = [alias] if alias in known else difflib.get_close_matches(lower, sorted(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
