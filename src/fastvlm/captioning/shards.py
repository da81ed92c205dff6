"""Input shards: the protocol, folders of images and list files.

A shard is one file or one folder. Its rows have a fixed order. Output parts are named by it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Protocol

from fastvlm.captioning.files import entries, joined, opened, parent
from fastvlm.captioning.rows import Row
from fastvlm.errors import DataError

IMAGE_SUFFIXES = frozenset(
    f".{kind}"
    for kind in (
        *("png", "jpg", "jpeg", "jfif", "webp", "gif", "bmp", "tif", "tiff"),
        *("ppm", "pgm", "pbm", "ico", "jp2", "qoi", "avif", "heic", "heif"),
    )
)
SHARD_SUFFIXES = frozenset({".tar", ".parquet"})  # found in folders; list files and JSON Lines are named themselves
_MAX_LINE_BYTES = 1 << 16  # of a list file
Wanted = Callable[[int], bool]


@dataclass(frozen=True)
class Columns:
    """Which columns of Parquet and JSON Lines (and which members of tar shards) are what.

    Args:
        image: the column with the image's bytes or place; None for the first of :data:`IMAGE_COLUMNS`.
        id: the column with the id; None for the first of :data:`ID_COLUMNS`, or else the row's number.
        prompt: the column with the row's own prompt; None if all rows have the run's prompts.
        drop: columns, or kinds of tar members, that are left out; all others are kept in the column `input`.
    """

    image: str | None = None
    id: str | None = None
    prompt: str | None = None
    drop: Collection[str] = ()


IMAGE_COLUMNS = (
    "image",
    "image_bytes",
    "bytes",
    "jpg",
    "jpeg",
    "png",
    "webp",
    "image_path",
    "file_name",
    "path",
    "url",
)
ID_COLUMNS = ("id", "__key__", "key")


class Shard(Protocol):
    """One input file or folder."""

    @property
    def location(self) -> str:
        """Absolute path or URL."""
        ...

    @property
    def base_name(self) -> str:
        """What its output parts are named by, if no other shard has that name."""
        ...

    @property
    def is_ordered(self) -> bool:
        """Whether a row is known by its number.

        False for a folder, whose rows are known by their ids, because files may be added to it between two runs.
        """
        ...

    def count(self) -> int | None:
        """Number of rows; None if only reading the whole shard tells it."""
        ...

    def rows(self, wanted: Wanted) -> Iterator[Row]:
        """All rows in order. A row whose number (from 0) is not `wanted` may have its id alone.

        Raises:
            DataError: the shard cannot be read any further.
        """
        ...


@dataclass
class FolderShard:
    """The images in a folder and its subfolders, in order of their paths; the files of a folder before its subfolders.

    Attributes:
        num_unused: files that are neither images nor shards, by suffix; known after :meth:`survey`.
    """

    location: str
    base_name: str = "images"
    is_ordered: bool = False
    num_unused: Counter[str] = field(default_factory=Counter)
    _num_images: int | None = None

    def survey(self) -> list[str]:
        """Count images and unused files; return the places of shard files."""
        shards, self._num_images = [], 0
        for folder, names in self._folders(""):
            for name in names:
                suffix = _suffix(name)
                if suffix in SHARD_SUFFIXES:
                    shards.append(joined(self.location, f"{folder}{name}"))
                elif suffix in IMAGE_SUFFIXES:
                    self._num_images += 1
                else:
                    self.num_unused[suffix or name] += 1
        return shards

    def count(self) -> int | None:
        """Number of images, as :meth:`survey` found it."""
        return self._num_images

    def rows(self, wanted: Wanted) -> Iterator[Row]:
        """A row for each image; its id is the path in the folder."""
        del wanted
        for folder, names in self._folders(""):
            images = [name for name in names if _suffix(name) in IMAGE_SUFFIXES]
            stems = Counter(PurePosixPath(name).stem for name in images)
            for name in images:
                stem = PurePosixPath(name).stem
                sidecar = folder + (stem if stems[stem] == 1 else name)
                yield Row(f"{folder}{name}", joined(self.location, f"{folder}{name}"), sidecar=sidecar)

    def _folders(self, folder: str) -> Iterator[tuple[str, list[str]]]:
        """(path in this folder with a slash at its end or "", names of its files), recursively."""
        names, folders = entries(joined(self.location, folder) if folder else self.location)
        yield folder, [name for name in names if not name.startswith(".")]
        for name in folders:
            if not name.startswith("."):
                yield from self._folders(f"{folder}{name}/")


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


@dataclass(frozen=True)
class ListShard:
    """A text file with the path or URL of one image a line; paths are relative to the file's folder."""

    location: str
    base_name: str
    is_ordered: bool = True

    def count(self) -> int | None:
        """Number of lines that are not empty."""
        with opened(self.location) as file:
            return sum(1 for line in file if line.strip())

    def rows(self, wanted: Wanted) -> Iterator[Row]:
        """A row for each line that is not empty; its id is the line."""
        del wanted
        folder = parent(self.location)
        with opened(self.location) as file:
            for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE_BYTES), b""), 1):
                try:
                    name = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{self.location}:{number} is not UTF-8; expected the path or URL of an image a line."
                    ) from error
                if len(line) == _MAX_LINE_BYTES:
                    raise DataError(f"{self.location}:{number} has more than {_MAX_LINE_BYTES} bytes; expected a path.")
                if name:
                    yield Row(name, joined(folder, name), sidecar=name)
