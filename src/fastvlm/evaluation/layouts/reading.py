"""Conversion of records to questions: checks fields, and keeps bad records with file, line and reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fastvlm.evaluation.questions import ImageSource, Question, missing_places
from fastvlm.processing.prompt import SPECIAL_TOKENS
from fastvlm.records.source import Record

if TYPE_CHECKING:
    from fastvlm.evaluation.layouts.fields import Fields

T = TypeVar("T")


class RecordProblem(ValueError):  # noqa: N818 - it never leaves this room
    """A record that cannot be used, with the reason."""


class LeftOut(Exception):  # noqa: N818 - it never leaves this room
    """A valid record that is not part of the task, with the reason."""


@dataclass(frozen=True)
class BadRecord:
    """File, line and reason of a bad record."""

    file: str
    line: int
    number: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}, record {self.number}: {self.reason}"


@dataclass
class Reading:
    """Result of reading a benchmark's files.

    Args:
        questions: what can be asked, in the files' order.
        bad: what cannot.
        left_out: records that do not belong to the task, counted by the reason.
        unread_fields: names of fields that no reader knows and that do not look like a part of the question, counted.
    """

    questions: list[Question] = field(default_factory=list)
    bad: list[BadRecord] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    unread_fields: Counter[str] = field(default_factory=Counter)

    def add(self, other: Reading) -> None:
        """Append the result of another file."""
        self.questions += other.questions
        self.bad += other.bad
        self.left_out += other.left_out
        self.unread_fields += other.unread_fields


def values_of(records: Iterable[Record], reading: Reading, make: Callable[[Record], T], fields: Fields) -> Iterator[T]:
    """Convert records with `make`, which raises RecordProblem for a bad one and LeftOut for one outside the task.

    A record with a field that is not among `fields` is bad, or the field is counted in `reading` (see Fields).
    """

    def make_known(record: Record) -> T:
        reading.unread_fields.update(fields.unread(record.content))
        return make(record)

    for record in records:
        value = _attempt(record, reading, make_known)
        if value is not None:
            yield value


def _attempt(record: Record, reading: Reading, make: Callable[[Record], T]) -> T | None:
    try:
        if record.problem:
            raise RecordProblem(record.problem)
        return make(record)
    except RecordProblem as problem:
        reading.bad.append(BadRecord(str(record.file), record.line, record.number, str(problem)))
    except LeftOut as reason:
        reading.left_out[str(reason)] += 1
    return None


def read_questions(records: Iterable[Record], make: Callable[[Record], Question], fields: Fields) -> Reading:
    """Convert records to questions as :func:`values_of`; ids must be unique."""
    reading, lines = Reading(), dict[str, int]()

    def make_new(record: Record) -> Question:
        question = _checked(make(record))
        if question.id in lines:
            raise RecordProblem(f"the id {question.id!r} stands on line {lines[question.id]} already")
        lines[question.id] = record.line
        return question

    reading.questions.extend(values_of(records, reading, make_new, fields))
    return reading


def _checked(question: Question) -> Question:
    if not question.text.strip():
        raise RecordProblem("the question is empty")
    if not any(answer.strip() for answer in question.answers):
        raise RecordProblem("there is no answer")
    missing = missing_places(question)
    if missing:
        raise RecordProblem(f"its text speaks of <image {missing[0]}>, and it has {len(question.images)} images")
    special = [token for token in SPECIAL_TOKENS if token in question.text]
    if special:
        raise RecordProblem(
            f"its text holds {special[0]!r}, which the model reads as a mark; images are named in their own field and "
            "stand before the text, or where it says <image 1>"
        )
    return question


def need(content: Any, name: str, *kinds: type) -> Any:
    """The field `name` of a record, of one of the types `kinds`. Raises RecordProblem."""
    if not isinstance(content, dict):
        raise RecordProblem(f"it is {_kind(content)}; expected an object with {name!r}")
    if name not in content:
        raise RecordProblem(f"it has no {name!r}; it has {', '.join(sorted(map(str, content))) or 'nothing'}")
    value = content[name]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise RecordProblem(f"{name!r} is {_kind(value)}; expected {names}")
    return value


def need_texts(content: Any, name: str) -> tuple[str, ...]:
    """A field with a text or a list of texts; numbers are converted."""
    value = need(content, name, str, int, float, list)
    values = value if isinstance(value, list) else [value]
    if not values or any(isinstance(one, bool) or not isinstance(one, (str, int, float)) for one in values):
        raise RecordProblem(f"{name!r} is {_kind(value)}; expected a text, or a list of at least one")
    return tuple(str(one) for one in values)


def _kind(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def find_image(folders: Sequence[Path], names: Sequence[str]) -> ImageSource:
    """The first existing file of `names` in `folders`. Raises RecordProblem."""
    for folder in folders:
        for name in names:
            if name and (folder / name).is_file():
                return folder / name
    where = " or ".join(str(folder) for folder in folders)
    raise RecordProblem(f"the image {' or '.join(map(repr, names))} is not in {where}")
