"""Object positions in images and the objects that replies refer to: two optional columns of a record.

``objects``: ``[{"name": "star", "colour": "red", "box": [x0, y0, x1, y1], "picture": 0}, ...]``, boxes in pixels of the
stored image. ``looks``: ``[{"reply": 0, "at": 6, "objects": [0], "words": ["star"]}, ...]``: the objects that the text
from character `at` of a reply is about (at the reply's length: its end), and the words of the question that identify
them. Only the auxiliary losses use these columns, see `objective.py`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastvlm.errors import DataError
from fastvlm.records.field_names import with_nearest
from fastvlm.training.data.columns import GROUNDING_COLUMNS, refuse_unknown

NAMES_FILE = "names.json"
NAMES_FORM = '{"objects": ["star", ...], "colours": ["red", ...]}'
EMPTY = 0  # the class of cells without an object; names count from 1
_OBJECT_KEYS = ("name", "colour", "box", "picture")
_LOOK_KEYS = ("reply", "at", "objects", "words")
IGNORED = -100  # a cell without annotation
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class GroundedObject:
    """An object in image number `image` of a sample; `box` is in pixels of the stored image, `color` may be ""."""

    name: str
    color: str
    box: Box
    image: int


@dataclass(frozen=True)
class Look:
    """Objects that character `at` of reply `reply` refers to, and the question's words that identify them."""

    reply: int
    at: int
    objects: tuple[int, ...]
    words: frozenset[str]


@dataclass(frozen=True)
class Grounding:
    """Grounding of a record; `objects` is None if its images are not annotated."""

    objects: tuple[GroundedObject, ...] | None
    looks: tuple[Look, ...]


def read_grounding(
    record: Mapping[str, Any],
    num_images: int,
    messages: Sequence[Mapping[str, Any]],
    *,
    ignored: Collection[str] = (),
) -> Grounding | None:
    """Read the columns `objects` and `looks` of a record; None if it has neither.

    Args:
        record: the value in the file.
        num_images: of the record.
        messages: of the record, as :func:`fastvlm.training.data.messages.read_record` returns them.
        ignored: columns, and keys of their entries, that are left out.

    Raises:
        DataError: an invalid list, or a reference to a missing image or object; the text is the reason alone.
    """
    stored, looks = (None if column in ignored else record.get(column) for column in GROUNDING_COLUMNS)
    if stored is None and looks is None:
        return None
    entries = None if stored is None else _entries(stored, "objects", _OBJECT_KEYS, ignored)
    objects = None if entries is None else tuple(_object(entry, num_images) for entry in entries)
    replies = [
        "".join(item["text"] for item in message["content"]) for message in messages if message["role"] == "assistant"
    ]
    found = tuple(
        _look(entry, len(objects or ()), replies) for entry in _entries(looks or [], "looks", _LOOK_KEYS, ignored)
    )
    return Grounding(objects, found)


def _entries(value: Any, column: str, known: Sequence[str], ignored: Collection[str]) -> list[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
        raise DataError(f"its {column!r} is {str(value)[:60]}; expected a list of objects")
    for entry in value:
        refuse_unknown(entry, known, f"an entry of {column!r} has", ignored=ignored)
    return value


def _object(entry: Mapping[str, Any], num_images: int) -> GroundedObject:
    name, box, image = entry.get("name"), entry.get("box"), entry.get("picture") or 0
    if not isinstance(name, str) or not name:
        raise DataError(f"an entry of 'objects' has the name {name!r}; expected a text")
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(edge, (int, float)) for edge in box):
        raise DataError(f"the object {name!r} has the box {box!r}; expected [left, top, right, bottom] in pixels")
    left, top, right, bottom = (float(edge) for edge in box)
    if not (left <= right and top <= bottom):
        raise DataError(f"the object {name!r} has the box {box!r}, whose right or bottom comes before its left or top")
    if not isinstance(image, int) or not 0 <= image < num_images:
        raise DataError(f"the object {name!r} is in image {image!r}; the record has {num_images}, counted from 0")
    return GroundedObject(name, str(entry.get("colour") or ""), (left, top, right, bottom), image)


def _look(entry: Mapping[str, Any], num_objects: int, replies: Sequence[str]) -> Look:
    reply, at = entry.get("reply", 0), entry.get("at", 0)
    if not isinstance(reply, int) or not 0 <= reply < len(replies):
        raise DataError(f"an entry of 'looks' is about reply {reply!r}; there are {len(replies)}, counted from 0")
    if not isinstance(at, int) or not 0 <= at <= len(replies[reply]):
        raise DataError(f"a look is at character {at!r} of reply {reply}, which has {len(replies[reply])}")
    objects, words = entry.get("objects") or [], entry.get("words") or []
    if not all(isinstance(number, int) and 0 <= number < num_objects for number in objects):
        raise DataError(f"a look names the objects {objects}; there are {num_objects}, counted from 0")
    if not all(isinstance(word, str) for word in words):
        raise DataError(f"a look names the words {words}; expected texts")
    return Look(reply, at, tuple(objects), frozenset(word.lower() for word in words))


@dataclass(frozen=True)
class ObjectNames:
    """Class indices of all object names and colors of a dataset, from NAMES_FILE next to its records.

    Args:
        objects: name -> class, from 1.
        colors: color -> class, from 0.
    """

    objects: Mapping[str, int]
    colors: Mapping[str, int]

    @classmethod
    def next_to(cls, sources: Iterable[Path]) -> ObjectNames:
        """Read all NAMES_FILEs in the sources' folders. Raises DataError if there is none or one is damaged."""
        objects: set[str] = set()
        colors: set[str] = set()
        folders = dict.fromkeys(source if source.is_dir() else source.parent for source in sources)
        for file in (folder / NAMES_FILE for folder in folders):
            if file.is_file():
                found = _stored_names(file)
                objects |= found["objects"]
                colors |= found["colours"]
        if not objects:
            raise DataError(
                f"grounding.objects needs the names of all objects: a file {NAMES_FILE} in "
                f"{' or '.join(map(str, folders))}, {NAMES_FORM}. Without it set grounding.objects=0."
            )
        return cls(
            {name: number for number, name in enumerate(sorted(objects), EMPTY + 1)},
            {name: number for number, name in enumerate(sorted(colors))},
        )

    @property
    def num_classes(self) -> int:
        """Number of classes, with that of empty cells."""
        return len(self.objects) + 1

    def class_of(self, name: str) -> int:
        """Class of an object name. Raises DataError if it is unknown."""
        if name not in self.objects:
            raise DataError(f"its object {name!r} is not among the {len(self.objects)} names of {NAMES_FILE}")
        return self.objects[name]

    def color_of(self, color: str) -> int:
        """Class of a color; IGNORED if it is unknown or empty."""
        return self.colors.get(color, IGNORED)


def _stored_names(file: Path) -> dict[str, set[str]]:
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        unknown = sorted(set(stored) - {"objects", "colours"})
        found = {column: {str(name) for name in stored.get(column, ())} for column in ("objects", "colours")}
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{file} cannot be read ({error}); expected {NAMES_FORM}.") from error
    if unknown:
        raise DataError(f"{file} has {with_nearest(unknown, ('objects', 'colours'))}; expected {NAMES_FORM}.")
    return found
