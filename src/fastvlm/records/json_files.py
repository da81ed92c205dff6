"""JSON and JSON Lines as record sources: 24 bytes of memory a record, however long its text is.

A file is scanned once for the offsets of its records; a record is parsed when it is read. So an invalid record affects
no other, and a file of several GB needs little memory.
"""

from __future__ import annotations

import json
import mmap
import re
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from fastvlm.errors import DataError, UsageError
from fastvlm.records.source import Record, read_bytes

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_Span: TypeAlias = tuple[int, int, str | None]  # first byte, past the last byte, key of an object's member
_File: TypeAlias = "mmap.mmap | bytes"
# Strings are matched so that brackets within them are not counted. Each byte can match in one way only, so that a
# missing quote costs one pass, without backtracking.
_STRING = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
_MARK = re.compile(_STRING + rb"|[\[\]{},]", re.DOTALL)
_NEXT_BRACKET = re.compile(rb'[^"\[\]{}]*(?:' + _STRING + rb'[^"\[\]{}]*)*[\[\]{}]', re.DOTALL)
_KEY = re.compile(rb"(" + _STRING + rb")\s*:\s*", re.DOTALL)
_BLANK = re.compile(rb"\s*")


class JsonSource:
    """Records of a JSON file by their byte offsets.

    Args:
        path: the file.
        spans: (first byte, past the last byte, line from 1, key in an object or None) of each record.
        is_one_per_line: each record is a line, so the line alone names it.
    """

    def __init__(self, path: Path, spans: Iterable[tuple[int, int, int, str | None]], *, is_one_per_line: bool) -> None:
        self.path, self.folder = path, path.parent
        self._starts, self._sizes, self._lines = array("Q"), array("Q"), array("Q")
        self._keys: list[str] = []
        self._is_one_per_line = is_one_per_line
        for start, end, line, key in spans:
            self._starts.append(start)
            self._sizes.append(end - start)
            self._lines.append(line)
            if key is not None:
                self._keys.append(key)

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[Record]:
        """Every record in order, with the file opened once; one that cannot be read has a `problem`."""
        with _opened(self.path) as file:
            for index, (start, size, line) in enumerate(zip(self._starts, self._sizes, self._lines, strict=True)):
                key = self._keys[index] if self._keys else ""
                file.seek(start)
                try:
                    content, problem = _parsed(file.read(size), line), ""
                except DataError as error:
                    content, problem = None, str(error)
                yield Record(self.path, line, index + 1, content, key, problem)

    def origin(self, index: int) -> str:
        """``train.jsonl:17``, or ``train.json:17 (record 3)`` where several records can share a line."""
        place = f"{self.path}:{self._lines[index]}"
        return place if self._is_one_per_line else f"{place} (record {index + 1})"

    def record(self, index: int) -> Any:
        """The parsed value. Raises DataError: it is not valid JSON."""
        return _parsed(read_bytes(self.path, self._starts[index], self._sizes[index]), self._lines[index])


def _parsed(data: bytes, line: int) -> Any:
    """The JSON value in `data`, which begins on `line` of its file. Raises DataError."""
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        place = f"line {line + error.lineno - 1}, column {error.colno}"
        raise DataError(f"it is not valid JSON ({error.msg}: {place})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"it is not UTF-8 (byte {error.start} of the record)") from error


def json_lines(path: Path) -> JsonSource:
    """A file with one record a line; empty lines are none. Raises UsageError: the file cannot be read."""
    with _opened(path) as file:
        return JsonSource(path, _line_spans(file), is_one_per_line=True)


def stream_json_lines(file: BinaryIO, max_line_bytes: int) -> Iterator[tuple[int, Any, str]]:
    """(line, value, problem) of each line that is not empty, without an index, so that any stream can be read.

    A line that is not JSON has None and its problem; one longer than `max_line_bytes` ends the reading with one.
    """
    for line, read in enumerate(iter(lambda: file.readline(max_line_bytes), b""), 1):
        if len(read) == max_line_bytes and not read.endswith(b"\n"):
            yield line, None, f"it has more than {max_line_bytes} bytes"
            return
        text = read.removeprefix(BYTE_ORDER_MARK) if line == 1 else read
        if not text.strip():
            continue
        try:
            yield line, _parsed(text, line), ""
        except DataError as error:
            yield line, None, str(error)


def _line_spans(file: BinaryIO) -> Iterator[tuple[int, int, int, str | None]]:
    start = 0
    for line, text in enumerate(file, 1):
        mark = len(BYTE_ORDER_MARK) if line == 1 and text.startswith(BYTE_ORDER_MARK) else 0
        if text[mark:].strip():
            yield start + mark, start + len(text.rstrip()), line, None
        start += len(text)


def json_records(path: Path, key: str | None = None) -> JsonSource:
    """The elements of a file's array or object, or of the one under `key` of its object.

    Raises:
        UsageError: the file cannot be read.
        DataError: no array or object where one is expected; one that does not end, or with something after it.
    """
    with _opened(path) as file, _mapped(file) as data:
        mark = len(BYTE_ORDER_MARK) if data[:3] == BYTE_ORDER_MARK else 0
        start = _past_blank(data, mark)
        if key is not None:
            start = _value_of(path, data, start, key)
        elif data[start : start + 1] not in (b"[", b"{"):
            raise DataError(f"{path} holds neither a JSON array nor an object of records; is it the right file?")
        elements = _elements(path, data, start, is_whole_file=key is None)
        return JsonSource(path, _with_lines(data, elements), is_one_per_line=False)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); expected a file with records.") from error
    with file:
        yield file


@contextmanager
def _mapped(file: BinaryIO) -> Iterator[_File]:
    if not file.seek(0, 2):
        yield b""  # an empty file cannot be mapped
        return
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def _value_of(path: Path, data: _File, start: int, key: str) -> int:
    """Where the value of `key` begins, a member of the object at `start`."""
    if data[start : start + 1] != b"{":
        raise DataError(f"{path} holds no JSON object; expected one with the key {key!r}.")
    begin, is_last = start + 1, False
    while not is_last:
        member = _KEY.match(data, _past_blank(data, begin))
        if member is not None and member[1] == json.dumps(key).encode():
            if data[member.end() : member.end() + 1] not in (b"[", b"{"):
                raise DataError(f"{path} has neither a JSON array nor an object under {key!r}; is it the right file?")
            return member.end()
        end, is_last = _end_of_element(path, data, begin, start)
        if data[begin:end].strip():
            _trimmed(path, data, begin, end, is_object=True)  # refuses what is not a member
        begin = end + 1
    raise DataError(f"{path} has no key {key!r}; is it the right file for this task?")


def _elements(path: Path, data: _File, start: int, *, is_whole_file: bool = False) -> Iterator[_Span]:
    """Each element of the array, or member of the object, that begins at byte `start`."""
    is_object, begin, is_last = data[start : start + 1] == b"{", start + 1, False
    while not is_last:
        end, is_last = _end_of_element(path, data, begin, start)
        if data[begin:end].strip() or not is_last:
            yield _trimmed(path, data, begin, end, is_object=is_object)
        begin = end + 1
    rest = _past_blank(data, begin)
    if is_whole_file and rest < len(data):
        raise DataError(f"{path} has something after its array or object (byte {rest}); expected one alone.")


def _end_of_element(path: Path, data: _File, position: int, start: int) -> tuple[int, bool]:
    """(byte of the comma or bracket after the element at `position`, whether it is the bracket)."""
    while True:
        mark = _MARK.search(data, position)
        if mark is None:
            raise _cut(path, data, start)
        kind, position = mark.group()[:1], mark.end()
        if kind in b",]}":
            return mark.start(), kind != b","
        if kind in b"[{":
            position = _past_value(path, data, position, start)


def _past_value(path: Path, data: _File, position: int, start: int) -> int:
    """Past the bracket that closes the one just before `position`."""
    depth = 1
    while depth:
        mark = _NEXT_BRACKET.match(data, position)
        if mark is None:
            raise _cut(path, data, start)
        position = mark.end()
        depth += 1 if data[position - 1 : position] in (b"[", b"{") else -1
    return position


def _trimmed(path: Path, data: _File, begin: int, end: int, *, is_object: bool) -> _Span:
    """The element between two commas, without white space around it; of a member the value, with its key."""
    begin = min(_past_blank(data, begin), end)
    end = begin + len(data[begin:end].rstrip())
    if not is_object:
        return begin, end, None
    key = _KEY.match(data, begin, end)
    try:
        if key is not None:
            return key.end(), end, str(json.loads(key[1]))
        reason = "expected a name and a colon"
    except ValueError as error:  # no UTF-8, or a control character
        reason = str(error)
    line = data[:begin].count(b"\n") + 1
    raise DataError(f"{path}:{line}: it is not valid JSON ({reason}).")


def _past_blank(data: _File, position: int) -> int:
    blank = _BLANK.match(data, position)
    return blank.end() if blank else position


def _cut(path: Path, data: _File, start: int) -> DataError:
    line = data[:start].count(b"\n") + 1
    return DataError(f"{path} ends within its array or object, which begins on line {line}. Was it cut?")


def _with_lines(data: _File, spans: Iterable[_Span]) -> Iterator[tuple[int, int, int, str | None]]:
    line, counted = 1, 0
    for begin, end, key in spans:
        line, counted = line + data[counted:begin].count(b"\n"), begin
        yield begin, end, line, key
