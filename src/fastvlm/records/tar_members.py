"""Members of WebDataset tar shards, read as a stream: their keys, their kinds, and whether the file is whole.

The key of a member is the part of its name before the first dot of the file name, its kind the part after it, as in
webdataset's ``base_plus_ext``: ``x.jpg`` and ``x.json`` belong together, and so do ``x.0.jpg`` and ``x.1.jpg``.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from fastvlm.errors import DataError

IMAGE_KIND = re.compile(r"(?:(\d+)\.)?(?:jpe?g|png|webp|gif|bmp|tiff?)", re.IGNORECASE)


def key_and_kind(name: str) -> tuple[str, str]:
    """``folder/x`` and ``0.jpg`` of ``folder/x.0.JPG``."""
    folder, slash, file_name = name.rpartition("/")
    stem, _, kind = file_name.partition(".")
    return f"{folder}{slash}{stem}", kind.lower()


def tar_members(file: BinaryIO, name: str) -> Iterator[tarfile.TarInfo]:
    """Every member but folders, in order. The caller may read `file` meanwhile.

    Args:
        file: an uncompressed tar; it is sought, so that only the headers are read.
        name: what errors call it.

    Raises:
        DataError: no uncompressed tar, or one that was cut; whole members before the cut have been given.
    """
    end = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                tar.members.clear()  # type: ignore[attr-defined]  # it keeps every member otherwise
                if file.seek(0, 2) < member.offset_data + member.size:
                    raise _cut(name)
                if not member.isdir():
                    yield member
    except tarfile.ReadError as error:
        raise DataError(
            f"{name} cannot be read as an uncompressed tar ({error}). Was it compressed, or cut?"
        ) from error
    size = file.seek(0, 2)
    file.seek(min(end, size))
    if size < end or any(file.read(tarfile.BLOCKSIZE)):  # tarfile takes a header that was cut for the end
        raise _cut(name)


def _cut(name: str) -> DataError:
    return DataError(f"{name} was cut: its last member is not whole. Copy it again.")
