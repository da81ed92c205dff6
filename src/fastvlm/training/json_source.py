"""JSON arrays and JSON Lines as record sources: 16 bytes of memory a record, however long its text is.

A file is scanned once for where its records begin and end; a record is parsed when it is asked for. So a broken record
spoils no other, and a file of several GB needs none in memory.
"""

from __future__ import annotations

import json
import mmap
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastvlm.errors import DataError
from fastvlm.training.record_source import read_bytes

__all__ = ["JsonSource", "json_array", "json_lines"]

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Strings (so that a bracket in a text is not counted), brackets and the commas between them. The string is unrolled:
# each byte can be matched in one way only, so a missing quote costs one pass and no more.
_MARKS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},]', re.DOTALL)


class JsonSource:
    """Records by their place in a file.

    Args:
        path: the file, as the user named it.
        spans: (first byte, number of bytes, line from 1) of each record.
        has_own_lines: each record is a line, so the line alone names it.
    """

    def __init__(self, path: Path, spans: Iterator[tuple[int, int, int]], *, has_own_lines: bool) -> None:
        self.path, self.folder = path, path.parent
        self._starts, self._sizes, self._lines = array("Q"), array("Q"), array("Q")
        self._has_own_lines = has_own_lines
        for start, num_bytes, line in spans:
            self._starts.append(start)
            self._sizes.append(num_bytes)
            self._lines.append(line)

    def __len__(self) -> int:
        return len(self._starts)

    def origin(self, index: int) -> str:
        """``train.jsonl:17``, or ``train.json:17 (record 3)`` where a line says too little."""
        place = f"{self.path}:{self._lines[index]}"
        return place if self._has_own_lines else f"{place} (record {index + 1})"

    def record(self, index: int) -> dict[str, Any]:
        """The object that stands there. Raises DataError: no JSON, or another value."""
        data = read_bytes(self.path, self._starts[index], self._sizes[index])
        try:
            value = json.loads(data)
        except json.JSONDecodeError as error:
            place = f"line {self._lines[index] + error.lineno - 1}, column {error.colno}"
            raise DataError(f"it is no JSON ({error.msg}: {place})") from error
        except UnicodeDecodeError as error:
            raise DataError(f"it is not UTF-8 (byte {error.start} of the record)") from error
        if not isinstance(value, dict):
            raise DataError(f"it is a {type(value).__name__}; expected an object with 'conversations' or 'messages'")
        return value


def json_lines(path: Path) -> JsonSource:
    """A file with one record a line; empty lines are none."""
    return JsonSource(path, _line_spans(path), has_own_lines=True)


def _line_spans(path: Path) -> Iterator[tuple[int, int, int]]:
    start = 0
    with path.open("rb") as file:
        for line, text in enumerate(file, 1):
            mark = len(BYTE_ORDER_MARK) if line == 1 and text.startswith(BYTE_ORDER_MARK) else 0
            if text[mark:].strip():
                yield start + mark, len(text.rstrip()) - mark, line
            start += len(text)


def json_array(path: Path) -> JsonSource:
    """A file that holds one array of records.

    Raises:
        DataError: the array does not end, or something comes after it.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return JsonSource(path, _element_spans(path, data), has_own_lines=False)


def _element_spans(path: Path, data: mmap.mmap) -> Iterator[tuple[int, int, int]]:
    """(first byte, bytes, line) of each element of the array, found by counting brackets outside strings."""
    depth, start, line, counted = 0, 0, 1, 0
    for mark in _MARKS.finditer(data):
        kind = mark.group()[:1]
        if depth == 0 and kind != b"[":
            raise DataError(f"{path} has something beside its array (byte {mark.start()}); expected one array alone.")
        is_element_end = depth == 1 and kind in b",]"
        if kind in b"[{":
            depth += 1
            start = mark.end() if depth == 1 else start
        elif kind in b"]}":
            depth -= 1
        if not is_element_end:
            continue
        text = data[start : mark.start()]
        if text.strip() or kind == b",":
            begin = start + len(text) - len(text.lstrip())
            line, counted = line + data[counted:begin].count(b"\n"), begin
            yield begin, mark.start() - begin, line
        start = mark.end()
        if depth == 0:
            _refuse_rest(path, data, mark.end())
            return
    raise DataError(f"{path} ends within its array. Was it cut?")


def _refuse_rest(path: Path, data: mmap.mmap, end: int) -> None:
    if data[end : end + 4096].strip():
        raise DataError(f"{path} has something after its array (byte {end}); expected one array alone.")
