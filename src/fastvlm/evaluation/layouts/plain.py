"""Reader of the `plain` layout: one question per line, or a JSON list; the mini suite's questions are in it too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastvlm.errors import UsageError
from fastvlm.evaluation.layouts.reading import (
    Fields,
    Place,
    Reading,
    RecordProblem,
    find_image,
    multiple_choice,
    need,
    need_texts,
    read_questions,
)
from fastvlm.evaluation.questions import Question
from fastvlm.records.json_files import json_lines, json_records
from fastvlm.records.source import Record

MINI_QUESTIONS = Path(__file__).parents[1] / "mini_eval"  # 380 test questions with their images
QUESTION_FILES = ("questions.jsonl", "questions.json")
_IMAGES, _CHOICES = ("image", "images", "image_path"), ("choices", "options")  # names of the same field
_FIELDS = Fields(
    ("question", "answers", *_IMAGES, *_CHOICES, "test", "id"),
    described="category comment dataset difficulty height lang language license meta metadata source split subset "
    "topic url width",
    is_closed=True,
)


def mini_place(data: Path | None = None) -> Place:
    """Place of the shipped questions, or of others in the same layout, such as the recipe's full tests."""
    return Place(MINI_QUESTIONS if data is None else data, test="mini")


def read_plain(place: Place) -> Reading:
    """JSON Lines (or a JSON list) of questions; a folder stands for its ``questions.jsonl`` or ``questions.json``.

    Fields: `question`; `answers`, a text or a list; optional `image` (a path relative to the file, a data URI, or a
    list of them), `choices` (the answers are then letters), `test`, and `id` (by default the record's number).
    """
    file = place.data
    if file.is_dir():
        files = [file / name for name in QUESTION_FILES if (file / name).is_file()]
        if not files:
            raise UsageError(f"{file} has no file {' or '.join(QUESTION_FILES)}; expected one with the questions.")
        file = files[0]
    records = json_records(file) if file.suffix == ".json" else json_lines(file)
    folders = [file.parent if place.images is None else place.images]
    return read_questions(records, lambda record: _question(record, folders, place.test), _FIELDS)


def _question(record: Record, folders: list[Path], test: str) -> Question:
    content = record.content
    text, answers = need(content, "question", str), need_texts(content, "answers")
    image, choices = _only_name(content, _IMAGES), _only_name(content, _CHOICES)
    files = () if image is None else need_texts(content, image)
    images = tuple(file if file.startswith("data:") else find_image(folders, file) for file in files)
    identity = str(need(content, "id", str, int)) if "id" in content else f"q{record.number}"
    test = need(content, "test", str) if "test" in content else test
    if choices is None:
        return Question(identity, test, text, images, answers)
    need(content, choices, list)  # a text would be a single option
    return multiple_choice(identity, test, text, images, answers, need_texts(content, choices))


def _only_name(content: Any, names: tuple[str, ...]) -> str | None:
    """The one of a field's names that the record has, or None. Raises RecordProblem if it has two."""
    given = [name for name in names if content.get(name) is not None]
    if len(given) > 1:
        raise RecordProblem(
            f"it has {' and '.join(map(repr, given))}, which are names of one field; expected one of them"
        )
    return given[0] if given else None
