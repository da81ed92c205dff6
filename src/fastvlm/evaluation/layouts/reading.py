"""Conversion of records to questions: checks fields, and keeps bad records with file, line and reason."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from fastvlm.evaluation.questions import MOST_OPTIONS, ImageSource, Question, letters_for, missing_places, with_options
from fastvlm.processing.prompt import SPECIAL_TOKENS
from fastvlm.records.field_names import is_given, unknown_names, with_nearest
from fastvlm.records.source import Record

T = TypeVar("T")

# Words in the name of an unknown field that make it likely that the field belongs to the question.
_PART_OF_QUESTION = re.compile(
    r"im(g|age)|pic(ture)?s?($|_)|photo|figure|frame|video|audio|question|query|prompt|instruction|system|option|choice"
    r"|hint|context|answer|label|text",
    re.IGNORECASE,
)


class RecordProblem(ValueError):  # noqa: N818 - it never leaves this folder
    """A record that cannot be used, with the reason."""


class LeftOut(Exception):  # noqa: N818 - it never leaves this folder
    """A valid record that is not part of the task, with the reason."""


@dataclass(frozen=True)
class Place:
    """Paths of a benchmark.

    Args:
        data: the file with the questions; for some benchmarks a folder.
        images: the folder with the images; None for the folders of the benchmark's own layout.
        annotations: the file with the answers, for benchmarks that keep them apart.
        test: name of the test that the questions count for, unless the file names one.
    """

    data: Path
    images: Path | None = None
    annotations: Path | None = None
    test: str = "test"

    def folders(self, *usual: str) -> list[Path]:
        """Folders to search for images: the given one, or the usual ones next to the data and the data's own."""
        if self.images is not None:
            return [self.images]
        home = self.data if self.data.is_dir() else self.data.parent
        return [*(home / name for name in usual), home]


@dataclass(frozen=True)
class Fields:
    """Known fields of a layout's records.

    An unknown field may hold the image, the options or a part of the question under another name. Such a record would
    be asked without them and its score would be wrong, so it is refused.

    Args:
        read: names that the reader uses.
        described: further names, separated by spaces: they describe the record and never change what is asked.
        is_closed: True to refuse every other name. False for published benchmarks, whose editions differ: a name is
            refused if it looks like a part of the question, and reported otherwise.
    """

    read: tuple[str, ...]
    described: str = ""
    is_closed: bool = False

    def unread(self, content: Any) -> list[str]:
        """Unknown field names of a record, without those that are empty. Raises RecordProblem for refused ones."""
        if not isinstance(content, dict):
            return []  # the reader says what it expects
        given = [str(name) for name, value in content.items() if is_given(value)]
        unknown = unknown_names(given, (*self.read, *self.described.split()))
        refused = [name for name in unknown if self.is_closed or _PART_OF_QUESTION.search(name)]
        if refused:
            raise RecordProblem(
                f"it has {with_nearest(refused, self.read)}, which would not be read; known are "
                f"{', '.join(self.read)}. Rename or remove it"
            )
        return unknown


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
        bad: records that cannot be asked.
        left_out: records that do not belong to the task, counted by the reason.
        unread_fields: unknown field names that do not look like a part of the question, counted.
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

    def report(self) -> dict[str, Any]:
        """What is not asked, as JSON values."""
        bad = [str(record) for record in self.bad]
        return {"bad_records": bad, "left_out": dict(self.left_out), "unread_fields": dict(self.unread_fields)}

    def share_of_bad(self) -> str:
        """ "2 of 5", for messages."""
        return f"{len(self.bad)} of {len(self.bad) + len(self.questions)}"


def values_of(records: Iterable[Record], reading: Reading, make: Callable[[Record], T], fields: Fields) -> Iterator[T]:
    """Convert records with `make`, which raises RecordProblem for a bad one and LeftOut for one outside the task.

    Both are noted in `reading`, and so are the names of fields that are not among `fields`.
    """
    for record in records:
        reason = record.problem
        try:
            if reason:
                raise RecordProblem(reason)
            reading.unread_fields.update(fields.unread(record.content))
            value = make(record)
        except RecordProblem as problem:
            reading.bad.append(BadRecord(str(record.file), record.line, record.number, str(problem)))
        except LeftOut as left_out:
            reading.left_out[str(left_out)] += 1
        else:
            yield value


def read_questions(records: Iterable[Record], make: Callable[[Record], Question], fields: Fields) -> Reading:
    """Convert records to questions as :func:`values_of`; ids must be unique."""
    reading, lines = Reading(), dict[str, int]()

    def make_checked(record: Record) -> Question:
        question = make(record)
        _check(question)
        if question.id in lines:
            raise RecordProblem(f"the id {question.id!r} stands on line {lines[question.id]} already")
        lines[question.id] = record.line
        return question

    reading.questions.extend(values_of(records, reading, make_checked, fields))
    return reading


def _check(question: Question) -> None:
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


def multiple_choice(
    identity: str, test: str, text: str, images: tuple[ImageSource, ...], answers: Sequence[str], choices: Sequence[str]
) -> Question:
    """A question with its options below the text. Raises RecordProblem unless each answer is an option's letter."""
    if not 2 <= len(choices) <= MOST_OPTIONS:
        raise RecordProblem(f"it has {len(choices)} options; expected 2 to {MOST_OPTIONS}")
    letters = tuple(answer.strip().upper() for answer in answers)
    if not set(letters) <= set(letters_for(choices)):
        given = ", ".join(map(repr, answers))
        raise RecordProblem(f"the answer is {given}; expected a letter from A to {letters_for(choices)[-1]}")
    return Question(identity, test, with_options(text, choices), images, letters, tuple(choices))


def need(content: Any, name: str, *kinds: type) -> Any:
    """The field `name` of a record, of one of the types `kinds`. Raises RecordProblem."""
    if not isinstance(content, dict):
        raise RecordProblem(f"it is {_shown(content)}; expected an object with {name!r}")
    if name not in content:
        raise RecordProblem(f"it has no {name!r}; it has {', '.join(sorted(map(str, content))) or 'nothing'}")
    value = content[name]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise RecordProblem(f"{name!r} is {_shown(value)}; expected {names}")
    return value


def need_texts(content: Any, name: str) -> tuple[str, ...]:
    """A field with a text or a list of texts; numbers are converted."""
    value = need(content, name, str, int, float, list)
    values = value if isinstance(value, list) else [value]
    if not values or any(isinstance(one, bool) or not isinstance(one, (str, int, float)) for one in values):
        raise RecordProblem(f"{name!r} is {_shown(value)}; expected a text, or a list of at least one")
    return tuple(str(one) for one in values)


def _shown(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def find_image(folders: Sequence[Path], *names: str) -> Path:
    """The first existing file of `names` in `folders`. Raises RecordProblem."""
    for folder in folders:
        for name in names:
            if name and (folder / name).is_file():
                return folder / name
    where = " or ".join(str(folder) for folder in folders)
    raise RecordProblem(f"the image {' or '.join(map(repr, names))} is not in {where}")
