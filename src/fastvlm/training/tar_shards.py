"""webdataset's tar shards as record sources: where each member lies is listed once, members are read by offset.

Members whose names differ only after the first dot of the file name are one record: ``x.jpg`` with ``x.json``
(conversations or messages) or ``x.txt`` (a caption), several pictures as ``x.0.jpg``, ``x.1.jpg``.
"""

from __future__ import annotations

import json
import re
import tarfile
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastvlm.errors import DataError
from fastvlm.training.message_records import IMAGE_COLUMNS, TURN_COLUMNS
from fastvlm.training.record_source import read_bytes

__all__ = ["CAPTION_QUESTIONS", "PictureInTar", "TarShard", "caption_messages", "open_shards"]

PICTURE = re.compile(r"(?:(\d+)\.)?(?:jpe?g|png|webp|gif|bmp|tiff?)", re.IGNORECASE)
TEXT_KINDS = ("json", "txt")
# A caption has no question. The paper's stage 1.5 pairs captions at random with generic questions, the picture before
# or after the question with the same probability; its 300 questions are not published, these are ours.
CAPTION_QUESTIONS = (
    "Describe the image.",
    "What is in this picture?",
    "Write a caption for this image.",
    "What does the image show?",
    "Tell what can be seen here.",
    "Give a description of the picture.",
    "Explain what this image contains.",
    "What do you see in the image?",
    "Describe this picture in your own words.",
    "Summarise what is shown.",
    "How would you caption this picture?",
    "What is the content of this image?",
)


@dataclass(frozen=True)
class PictureInTar:
    """A member of a shard, read when it is asked for; what :func:`fastvlm.pictures.open_picture` takes as a file."""

    path: Path
    offset_bytes: int
    num_bytes: int

    def read(self, size: int = -1) -> bytes:
        """The first `size` bytes of the picture, or all. Raises OSError, as files do."""
        try:
            return read_bytes(self.path, self.offset_bytes, self.num_bytes if size < 0 else min(size, self.num_bytes))
        except DataError as error:
            raise OSError(str(error)) from error


@dataclass
class _Members:
    """What one record of a shard consists of: (number of the picture, offset, bytes), and texts by their kind."""

    pictures: list[tuple[int, int, int]]
    texts: dict[str, tuple[int, int]]


class TarShard:
    """The records of one shard: some 60 bytes of memory each, and their names."""

    def __init__(self, path: Path) -> None:
        self.path, self.folder = path, path.parent
        self._names: list[str] = []
        self._texts = array("Q")  # offset and bytes of .json and .txt, four numbers a record; 0 bytes: not there
        self._first_picture = array("Q", [0])  # of each record, and the end
        self._pictures = array("Q")  # offset and bytes
        for name, members in _grouped(path).items():
            self._names.append(name)
            for kind in TEXT_KINDS:
                self._texts.extend(members.texts.get(kind, (0, 0)))
            for _, offset, num_bytes in sorted(members.pictures):
                self._pictures.extend((offset, num_bytes))
            self._first_picture.append(len(self._pictures) // 2)

    def __len__(self) -> int:
        return len(self._names)

    def origin(self, index: int) -> str:
        """``shard-000.tar:folder/x``: the names without what follows the first dot."""
        return f"{self.path}:{self._names[index]}"

    def record(self, index: int) -> dict[str, Any]:
        """Its JSON, or its caption as messages, with its pictures. Raises DataError: neither is there, or no JSON."""
        pictures = [
            PictureInTar(self.path, self._pictures[2 * k], self._pictures[2 * k + 1])
            for k in range(self._first_picture[index], self._first_picture[index + 1])
        ]
        stored = self._json(index)
        if not any(stored.get(name) for name in TURN_COLUMNS):
            caption = self._text(index, "txt")
            if caption is None:
                raise DataError("it has no .json with 'conversations' or 'messages', and no .txt with a caption")
            if len(pictures) != 1:
                raise DataError(f"it has a caption and {len(pictures)} pictures; expected one")
            return {"messages": caption_messages(caption, self._names[index]), "images": pictures}
        if pictures:  # the members count, not what the JSON says of where they once lay
            stored = {key: value for key, value in stored.items() if key not in IMAGE_COLUMNS}
            stored["images"] = pictures
        return stored

    def _json(self, index: int) -> dict[str, Any]:
        text = self._text(index, "json")
        if text is None:
            return {}
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"its .json is no JSON ({error.msg}, line {error.lineno})") from error
        if not isinstance(value, dict):
            raise DataError(f"its .json is a {type(value).__name__}; expected an object")
        return value

    def _text(self, index: int, kind: str) -> str | None:
        place = 4 * index + 2 * TEXT_KINDS.index(kind)
        offset, num_bytes = self._texts[place], self._texts[place + 1]
        if not num_bytes:
            return None
        try:
            return read_bytes(self.path, offset, num_bytes).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"its .{kind} is not UTF-8 (byte {error.start})") from error


def open_shards(paths: Sequence[Path]) -> list[TarShard]:
    """Shards, each listed once.

    Raises:
        DataError: no tar, a compressed one (its members cannot be read by offset), or one that was cut.
    """
    return [TarShard(path) for path in paths]


def caption_messages(caption: str, key: str) -> list[dict[str, Any]]:
    """A caption as a conversation; the question and the picture's place follow from `key`, so they never change."""
    choice = zlib.crc32(key.encode())
    question = {"type": "text", "text": CAPTION_QUESTIONS[choice // 2 % len(CAPTION_QUESTIONS)]}
    items = [{"type": "image"}, question]
    return [
        {"role": "user", "content": items if choice % 2 else items[::-1]},
        {"role": "assistant", "content": caption.strip()},
    ]


def _grouped(path: Path) -> dict[str, _Members]:
    """The records of a shard by name, in the order in which they begin."""
    records: dict[str, _Members] = {}
    end = 0
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if member.isfile():
                    _add(records, member)
                tar.members.clear()  # type: ignore[attr-defined]  # it keeps every member otherwise
    except tarfile.ReadError as error:
        raise DataError(
            f"{path} cannot be read as an uncompressed tar ({error}). Was it compressed, or cut?"
        ) from error
    _refuse_cut(path, end)
    return records


def _refuse_cut(path: Path, end: int) -> None:
    """tarfile takes a header that was cut for the end. Raise DataError unless nothing but zeros comes after `end`."""
    if path.stat().st_size < end or any(read_bytes(path, end, min(path.stat().st_size - end, tarfile.BLOCKSIZE))):
        raise DataError(f"{path} was cut: its last member is not whole. Copy it again.")


def _add(records: dict[str, _Members], member: tarfile.TarInfo) -> None:
    folder, slash, file_name = member.name.rpartition("/")
    stem, _, kind = file_name.partition(".")
    kind = kind.lower()
    picture = PICTURE.fullmatch(kind)
    if picture is None and kind not in TEXT_KINDS:
        return
    members = records.setdefault(f"{folder}{slash}{stem}", _Members([], {}))
    if picture is None:
        members.texts[kind] = (member.offset_data, member.size)
    else:
        members.pictures.append((int(picture[1] or -1), member.offset_data, member.size))
