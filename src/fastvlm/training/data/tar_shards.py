"""WebDataset tar shards as record sources: members are listed once and read by offset.

Members whose names differ only after the first dot of the file name are one record: ``x.jpg`` with ``x.json``
(conversations or messages) or ``x.txt`` (a caption), several images as ``x.0.jpg``, ``x.1.jpg``. The key is the part
before the dot, the kind the part after it, as in webdataset's ``base_plus_ext``.

No member is left out silently: one of an unknown kind, a second of the same kind or a link makes the record bad; labels
and hidden files are listed as unused.
"""

from __future__ import annotations

import json
import tarfile
import zlib
from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastvlm.errors import DataError
from fastvlm.records.source import read_bytes
from fastvlm.records.tar_members import IMAGE_KIND, key_and_kind, tar_members
from fastvlm.training.data.columns import CAPTION_METADATA, IMAGE_COLUMNS, TURN_COLUMNS

TEXT_KINDS = ("json", "txt")
KNOWN_KINDS = ".json, .txt, .jpg, .png, .webp, .gif, .bmp, .tif, and images numbered as .0.jpg"
# Labels and addresses for other purposes (webdataset's `autodecode` reads the first of them as ints).
UNREAD_KINDS = ("cls", "cls2", "class", "count", "index", "inx", "id", "key", "url", "md5", "sha256")
SHOWN_REASONS = 3  # of one record
# The paper's stage 1.5 pairs captions at random with generic questions, the image before or after the question with the
# same probability. Its 300 questions are not published; these are ours.
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
    "Summarize what is shown.",
    "How would you caption this picture?",
    "What is the content of this image?",
)


@dataclass(frozen=True)
class ImageInTar:
    """An image in a shard, read lazily; a file object for :func:`fastvlm.images.open_image`."""

    path: Path
    offset_bytes: int
    num_bytes: int

    @property
    def identity(self) -> str:
        """Identity for digests, without reading the image."""
        return f"{self.num_bytes} bytes"

    def read(self, size: int = -1) -> bytes:
        """The first `size` bytes of the image, or all. Raises OSError, as files do."""
        try:
            return read_bytes(self.path, self.offset_bytes, self.num_bytes if size < 0 else min(size, self.num_bytes))
        except DataError as error:
            raise OSError(str(error)) from error


@dataclass(frozen=True)
class UnusedMember:
    """A member of a shard that is not used, such as ``shard.tar:x.cls``, and the reason."""

    origin: str
    reason: str


@dataclass
class _Members:
    """Members of one record: (offset, bytes) of images by number and of texts by kind, and errors."""

    images: dict[int, tuple[int, int]] = field(default_factory=dict)
    texts: dict[str, tuple[int, int]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


class TarShard:
    """Records of one shard; each takes about 60 bytes of memory plus its name.

    Args:
        path: of the shard.
        ignored: kinds of members (``seg.png``) and file names that are left out without being listed.

    Attributes:
        unused: members that are in no record.
    """

    def __init__(self, path: Path, ignored: Collection[str] = ()) -> None:
        self.path, self.folder = path, path.parent
        self._names: list[str] = []
        self._texts = array("Q")  # offset and bytes of .json and .txt, four numbers a record; 0 bytes: not there
        self._first_image = array("Q", [0])  # of each record, and the end
        self._images = array("Q")  # offset and bytes
        self._wrong: dict[int, str] = {}
        records, self.unused = _grouped(path, ignored)
        for name, members in records.items():
            if members.wrong:
                self._wrong[len(self._names)] = _joined(members.wrong)
            self._names.append(name)
            for kind in TEXT_KINDS:
                self._texts.extend(members.texts.get(kind, (0, 0)))
            for _, place in sorted(members.images.items()):
                self._images.extend(place)
            self._first_image.append(len(self._images) // 2)

    def __len__(self) -> int:
        return len(self._names)

    def origin(self, index: int) -> str:
        """``shard-000.tar:folder/x``: the names up to the first dot."""
        return f"{self.path}:{self._names[index]}"

    def record(self, index: int) -> dict[str, Any]:
        """The record's JSON, or its caption as messages, with its images.

        Raises:
            DataError: neither or both are there, no JSON, or a member that would be left out.
        """
        if index in self._wrong:
            raise DataError(self._wrong[index])
        images = [
            ImageInTar(self.path, self._images[2 * k], self._images[2 * k + 1])
            for k in range(self._first_image[index], self._first_image[index + 1])
        ]
        stored, caption = self._json(index), self._text(index, "txt")
        has_turns = any(stored.get(name) for name in TURN_COLUMNS)
        if not has_turns:
            return _captioned(stored, caption, images, self._names[index])
        if caption is not None:
            raise DataError("it has turns in its .json and a caption in its .txt; take one out, or give --ignore txt")
        if images:  # the members, because the JSON names the files that they were made from
            stored = {key: value for key, value in stored.items() if key not in IMAGE_COLUMNS}
            stored["images"] = images
        return stored

    def _json(self, index: int) -> dict[str, Any]:
        text = self._text(index, "json")
        if text is None:
            return {}
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"its .json is not valid JSON ({error.msg}, line {error.lineno})") from error
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


def _captioned(stored: Mapping[str, Any], caption: str | None, images: list[ImageInTar], name: str) -> dict[str, Any]:
    """A captioned image as a record; its JSON has metadata only."""
    if caption is None:
        raise DataError("it has no .json with 'conversations' or 'messages', and no .txt with a caption")
    if len(images) != 1:
        raise DataError(f"it has a caption and {len(images)} images; expected one")
    left_out = {*CAPTION_METADATA, *IMAGE_COLUMNS, *TURN_COLUMNS}
    others = {key: value for key, value in stored.items() if key not in left_out}
    return {**others, "messages": caption_messages(caption, name), "images": images}


def caption_messages(caption: str, key: str) -> list[dict[str, Any]]:
    """Convert a caption to a conversation; question and image position are chosen by a hash of `key`."""
    choice = zlib.crc32(key.encode())
    question = {"type": "text", "text": CAPTION_QUESTIONS[choice // 2 % len(CAPTION_QUESTIONS)]}
    items = [{"type": "image"}, question]
    return [
        {"role": "user", "content": items if choice % 2 else items[::-1]},
        {"role": "assistant", "content": caption.strip()},
    ]


def _grouped(path: Path, ignored: Collection[str]) -> tuple[dict[str, _Members], list[UnusedMember]]:
    """Group a shard's members: (records by name, in order of their first member; unused members)."""
    records: dict[str, _Members] = {}
    with path.open("rb") as file:
        unused = [
            UnusedMember(f"{path}:{member.name}", reason)
            for member in tar_members(file, str(path))
            if (reason := _add(records, member, ignored))
        ]
    return records, unused


def _add(records: dict[str, _Members], member: tarfile.TarInfo, ignored: Collection[str]) -> str:
    """Add a member to its record; return the reason if it is unused, else ""."""
    key, kind = key_and_kind(member.name)
    file_name, stem = member.name.rpartition("/")[2], key.rpartition("/")[2]
    if kind in ignored or file_name in ignored:
        return ""
    if not stem:
        return "its name begins with a dot, so that it has no key"
    if kind in UNREAD_KINDS:
        return f"nothing is learned from members of the kind {kind!r}"
    members = records.setdefault(key, _Members())
    place = (member.offset_data, member.size)
    reason = _unusable(member, stem, kind)
    if not reason and (image := IMAGE_KIND.fullmatch(kind)):
        if members.images.setdefault(int(image[1] or -1), place) is not place:
            reason = "it is a second image in the same place; number them .0.jpg, .1.jpg"
    elif not reason and members.texts.setdefault(kind, place) is not place:
        reason = f"it is a second .{kind}"
    if reason:
        members.wrong.append(f"{file_name}: {reason}")
    return ""


def _unusable(member: tarfile.TarInfo, stem: str, kind: str) -> str:
    """The reason why a member cannot be used in its record, or ""."""
    if not member.isreg() or member.issparse():
        return "it is a link, a device or a sparse file; store the file itself"
    if kind in TEXT_KINDS:
        return "" if member.size else "it is empty"
    if IMAGE_KIND.fullmatch(kind):
        return ""
    if not kind:
        return f"it has no kind after a dot; known are {KNOWN_KINDS}"
    last = kind.rpartition(".")[2]
    if last in TEXT_KINDS or IMAGE_KIND.fullmatch(last):
        return f"the key ends at the first dot, so this is the kind {kind!r} of {stem!r}; write the key without dots"
    return f"the kind {kind!r} cannot be read; known are {KNOWN_KINDS}. Convert it, or give --ignore {kind}"


def _joined(reasons: Sequence[str]) -> str:
    more = len(reasons) - SHOWN_REASONS
    return "; ".join(reasons[:SHOWN_REASONS]) + (f"; and {more} more" if more > 0 else "")
