"""WebDataset tar shards, read as a stream."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from tarfile import TarInfo
from typing import Any, BinaryIO

from fastvlm.captioning.files import is_url, opened
from fastvlm.captioning.rows import Row
from fastvlm.captioning.shards import Wanted
from fastvlm.errors import DataError, UsageError
from fastvlm.images.limits import DEFAULT_LIMITS
from fastvlm.records.tar_members import IMAGE_KIND, key_and_kind, tar_members

_MAX_TEXT_BYTES = 1 << 20  # of a member that is kept beside the image


@dataclass(frozen=True)
class TarShard:
    """Members that follow each other and have the same key are a row: one image, and further members.

    Hidden members are not read.

    Args:
        location, base_name: as of :class:`fastvlm.captioning.shards.Shard`.
        drop: kinds of members that are left out; the others are kept in the column `input`, JSON parsed.
    """

    location: str
    base_name: str
    drop: Collection[str] = field(default=())
    is_ordered: bool = True

    def count(self) -> int | None:
        """Number of keys; None for a URL, whose headers would all have to be fetched."""
        if is_url(self.location):
            return None
        with opened(self.location) as file:
            return sum(1 for _ in groupby(_visible(file, self.location), _key))

    def rows(self, wanted: Wanted) -> Iterator[Row]:
        """A row for each key; the members of one that is not `wanted` are not read."""
        with opened(self.location) as file:
            for number, (key, members) in enumerate(groupby(_visible(file, self.location), _key)):
                if wanted(number):
                    yield self._row(file, key, list(members))
                else:
                    yield Row(key)

    def _row(self, file: BinaryIO, key: str, members: list[TarInfo]) -> Row:
        image, problem, further = b"", "", {}
        for member in members:
            kind = key_and_kind(member.name)[1]
            if kind in self.drop:
                continue
            if not member.isreg() or member.issparse():
                problem = f"{member.name} is a link, a device or a sparse file"
            elif not IMAGE_KIND.fullmatch(kind):
                further[kind or "name"] = self._kept(file, member, kind)
            elif image:
                problem = f"it has more than one image; leave the others out with --drop {kind}"
            elif member.size > DEFAULT_LIMITS.max_bytes:
                problem = f"its image has {member.size} bytes; the limit is {DEFAULT_LIMITS.max_bytes}"
            else:
                image = _content(file, member)
        if not image and not problem:
            problem = "it has no image, or an empty one"
        return Row(key, image, further, problem=f"{self.location}:{key}: {problem}." if problem else "", sidecar=key)

    def _kept(self, file: BinaryIO, member: TarInfo, kind: str) -> Any:
        """A further member as JSON or text. Raises UsageError for anything else."""
        if member.size <= _MAX_TEXT_BYTES:
            try:
                text = _content(file, member).decode()
                return json.loads(text) if kind == "json" else text
            except ValueError:  # no UTF-8, or no JSON
                pass
        raise UsageError(
            f"{self.location} has the member {member.name}, which is no text of at most {_MAX_TEXT_BYTES} bytes and "
            f"cannot be kept in the output. Leave such members out with --drop {kind}."
        )


def _visible(file: BinaryIO, name: str) -> Iterator[TarInfo]:
    """Members without those whose file name begins with a dot, such as macOS's ``._x.jpg``."""
    return (member for member in tar_members(file, name) if not member.name.rpartition("/")[2].startswith("."))


def _key(member: TarInfo) -> str:
    return key_and_kind(member.name)[0]


def _content(file: BinaryIO, member: TarInfo) -> bytes:
    file.seek(member.offset_data)
    content = file.read(member.size)
    if len(content) != member.size:
        raise DataError(f"{member.name} is not whole; the shard has become shorter since it was opened.")
    return content
