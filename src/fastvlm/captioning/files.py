"""Input files and folders, local or at any URL that fsspec opens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from fastvlm.errors import DataError, ImageError, MissingExtraError, UsageError
from fastvlm.images.limits import DEFAULT_LIMITS, ImageLimits
from fastvlm.images.opening import encoded_bytes, source_name

_OPENED_BY_IMAGES = ("http://", "https://")  # image references that need no fsspec
# Protocols whose fsspec package is an extra of ours; others are named as fsspec names them.
_EXTRA_OF = {"s3": "s3", "s3a": "s3"}


def is_url(place: str) -> bool:
    """Whether `place` is a URL such as ``s3://bucket/key``, not a local path."""
    return "://" in place[:20]


def joined(folder: str, name: str) -> str:
    """The place of `name`, which may be absolute, a URL or a data URI, or relative to `folder`."""
    if is_url(name) or name.startswith("data:"):
        return name
    if is_url(folder):
        return name if name.startswith("/") else f"{folder.rstrip('/')}/{name}"
    return str(Path(folder) / name)


def parent(place: str) -> str:
    """The folder of a file."""
    return place.rpartition("/")[0] if is_url(place) else str(Path(place).parent)


def base_name(place: str) -> str:
    """The last part of a path or URL."""
    return place.rstrip("/").rpartition("/")[2] if is_url(place) else Path(place).name


def kind_of(place: str) -> str | None:
    """``"file"``, ``"folder"``, or None if there is nothing. Raises DataError: it cannot be asked for."""
    if not is_url(place):
        path = Path(place)
        return "folder" if path.is_dir() else "file" if path.exists() else None
    with _remote(place) as (system, path_there):
        if system.isfile(path_there):
            return "file"
        return "folder" if system.isdir(path_there) else None


def num_bytes(place: str) -> int | None:
    """Size of a file; None if its server does not say it."""
    if not is_url(place):
        return Path(place).stat().st_size
    with _remote(place) as (system, path):
        return cast("int | None", system.size(path))


@contextmanager
def opened(place: str) -> Iterator[BinaryIO]:
    """A file, open for reading. Raises DataError: it cannot be opened."""
    if is_url(place):
        with _remote(place) as (system, path):
            file = system.open(path, "rb")
        with file:
            yield cast("BinaryIO", file)
        return
    try:
        local = Path(place).open("rb")  # noqa: SIM115  # closed below; errors of reading are not those of opening
    except OSError as error:
        raise DataError(f"{place} cannot be read ({error.strerror}).") from error
    with local:
        yield local


def entries(folder: str) -> tuple[list[str], list[str]]:
    """Names of a folder's files and of its subfolders, both sorted. Raises DataError: it cannot be listed."""
    if is_url(folder):
        with _remote(folder) as (system, path):
            found = system.ls(path, detail=True)
        here = path.rstrip("/")
        listed = [
            (base_name(f"//{e['name']}"), e["type"] == "directory") for e in found if e["name"].rstrip("/") != here
        ]
    else:
        try:
            listed = [(entry.name, entry.is_dir()) for entry in Path(folder).iterdir()]
        except OSError as error:
            raise DataError(f"{folder} cannot be listed ({error.strerror}).") from error
    return sorted(name for name, is_dir in listed if not is_dir), sorted(name for name, is_dir in listed if is_dir)


def read_image(place: str, limits: ImageLimits = DEFAULT_LIMITS) -> bytes:
    """The encoded image at a path, URL or data URI. Raises ImageError, also for one larger than `limits`."""
    if not is_url(place) or place.startswith(_OPENED_BY_IMAGES):
        return cast("bytes", encoded_bytes(place, limits=limits))
    try:
        with opened(place) as file:
            content = file.read(limits.max_bytes + 1)
    except DataError as error:
        raise ImageError(str(error)) from error
    except Exception as error:  # each file system of fsspec raises its client's own errors
        raise ImageError(f"{place} cannot be read ({type(error).__name__}: {error}).") from error
    limits.check_num_bytes(len(content), source_name(place))
    return content


@contextmanager
def _remote(place: str) -> Iterator[tuple[Any, str]]:
    """fsspec's file system of a URL, and the path in it; its errors inside become a DataError."""
    try:
        import fsspec  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise MissingExtraError("fsspec", "caption", f"Reading {place}") from error
    protocol = place.partition("://")[0]
    try:
        system, path = fsspec.core.url_to_fs(place)
    except ImportError as error:
        if protocol in _EXTRA_OF:
            raise MissingExtraError("s3fs", _EXTRA_OF[protocol], f"Reading {place}") from error
        raise UsageError(f"{place} cannot be opened: {error}.") from error
    except ValueError as error:  # a protocol that fsspec does not know
        raise UsageError(
            f"{place} cannot be opened: {error}. Expected a local path, or a URL such as s3://."
        ) from error
    try:
        yield system, path
    except Exception as error:  # each file system raises its client's own errors
        raise DataError(f"{place} cannot be read ({type(error).__name__}: {error}).") from error
