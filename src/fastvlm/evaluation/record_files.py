"""Records out of JSON, JSON Lines and Parquet files, each with the line that it stands on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastvlm.errors import DataError, MissingExtraError, UsageError

__all__ = ["Record", "json_lines", "json_records", "parquet_records", "read_text"]

_BLANK = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Record:
    """One record of a file.

    Args:
        file: where it was found.
        line: the line it begins on, from 1; in Parquet its row.
        number: which one it is, from 1.
        content: what stands there; None if `problem` says why it could not be read.
        key: its name, where the file holds an object of records.
        problem: what is wrong with it.
    """

    file: Path
    line: int
    number: int
    content: Any
    key: str = ""
    problem: str = ""


def read_text(path: Path) -> str:
    """The file as text.

    Raises:
        UsageError: there is no such file.
        DataError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start}). Save it as UTF-8.") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); expected a file with questions.") from error


def json_lines(path: Path) -> Iterator[Record]:
    """The records of a file with one JSON value a line; empty lines are none. Raises as :func:`read_text`."""
    lines = [(line, text) for line, text in enumerate(read_text(path).split("\n"), 1) if text.strip()]
    for number, (line, text) in enumerate(lines, 1):
        yield _json_line(path, line, number, text)


def _json_line(path: Path, line: int, number: int, text: str) -> Record:
    try:
        return Record(path, line, number, json.loads(text))
    except json.JSONDecodeError as error:
        return Record(path, line, number, None, problem=f"no JSON: {error.msg}, column {error.colno}")


def json_records(path: Path, key: str | None = None) -> Iterator[Record]:
    """The elements of the array or object that a JSON file holds, or that stands under `key` of its object.

    Raises:
        UsageError: there is no such file.
        DataError: no JSON, which spoils the rest of the file too; no array or object where one is expected.
    """
    text = read_text(path)
    try:
        yield from _elements(path, text, _start(path, text, key))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}, column {error.colno}: no JSON ({error.msg}). Was the file cut?"
        ) from error


def _start(path: Path, text: str, key: str | None) -> int:
    """Where the records begin."""
    if key is None:
        return _skip(text, 0)
    begin = _skip(text, 0)
    if text[begin : begin + 1] != "{":
        raise DataError(f"{path} holds no JSON object; expected one with the key {key!r}.")
    for name, start, _ in _members(text, begin):
        if name == key:
            return start
    raise DataError(f"{path} has no key {key!r}; is it the right file for this task?")


def _elements(path: Path, text: str, position: int) -> Iterator[Record]:
    kind = text[position : position + 1]
    if kind not in {"[", "{"}:
        raise DataError(f"{path} holds neither a JSON array nor an object of records; is it the right file?")
    line, counted = 1, 0
    values = _members(text, position) if kind == "{" else _items(text, position)
    for number, (name, start, value) in enumerate(values, 1):
        line, counted = line + text.count("\n", counted, start), start
        yield Record(path, line, number, value, key=name)


def _items(text: str, position: int) -> Iterator[tuple[str, int, Any]]:
    """("", where it begins, value) of each element of the array at `position`."""
    position = _skip(text, position + 1)
    while text[position : position + 1] != "]":
        value, end = _DECODER.raw_decode(text, position)
        yield "", position, value
        position = _past_comma(text, end, "]")


def _members(text: str, position: int) -> Iterator[tuple[str, int, Any]]:
    """(name, where its value begins, value) of each member of the object at `position`."""
    position = _skip(text, position + 1)
    while text[position : position + 1] != "}":
        name, end = _DECODER.raw_decode(text, position)
        end = _skip(text, end)
        if not isinstance(name, str) or text[end : end + 1] != ":":
            raise json.JSONDecodeError("expected a name and a colon", text, position)
        start = _skip(text, end + 1)
        value, end = _DECODER.raw_decode(text, start)
        yield name, start, value
        position = _past_comma(text, end, "}")


def _past_comma(text: str, position: int, closing: str) -> int:
    position = _skip(text, position)
    mark = text[position : position + 1]
    if mark == ",":
        return _skip(text, position + 1)
    if mark != closing:
        raise json.JSONDecodeError(f"expected a comma or {closing!r}", text, position)
    return position


def _skip(text: str, position: int) -> int:
    """Past white space."""
    blank = _BLANK.match(text, position)
    return blank.end() if blank else position


def parquet_records(path: Path) -> Iterator[Record]:
    """The rows of a Parquet file.

    Raises:
        MissingExtraError: pyarrow is not installed.
        DataError: no Parquet.
    """
    try:
        import pyarrow  # noqa: PLC0415 - only Parquet needs it
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("pyarrow", "eval", "Reading Parquet") from error
    if not path.is_file():
        raise UsageError(f"There is no file {path}; expected one with questions.")
    try:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=64):
            for row in batch.to_pylist():
                number += 1
                yield Record(path, number, number, row)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet ({error}).") from error
