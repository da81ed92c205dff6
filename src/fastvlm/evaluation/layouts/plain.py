"""Reader of the `plain` layout: one question per line, or a JSON list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastvlm.errors import UsageError
from fastvlm.evaluation.layouts.fields import Fields, listed
from fastvlm.evaluation.layouts.reading import Reading, RecordProblem, find_image, need, need_texts, read_questions
from fastvlm.evaluation.layouts.vqa import Place
from fastvlm.evaluation.questions import MOST_OPTIONS, ImageSource, Question, letters_for, with_options
from fastvlm.records.json_files import json_lines, json_records
from fastvlm.records.source import Record

QUESTION_FILES = ("questions.jsonl", "questions.json")
_IMAGES, _CHOICES = ("image", "images", "image_path"), ("choices", "options")  # other names of the same field
_FIELDS = Fields(
    read=("question", "answers", *_IMAGES, *_CHOICES, "test", "id"),
    described=listed(
        "category comment dataset difficulty height lang language license meta metadata source split subset topic url "
        "width"
    ),
    is_closed=True,
)


def read_plain(place: Place) -> Reading:
    """JSON Lines (or a JSON list) of `question`, `answers`, and if wanted `image`, `test`, `choices`, `id`.

    `image` is a path from the file's folder on, a data URI, or a list of them; without it the question is asked alone.
    `images` and `image_path` are other names of it, `options` is one of `choices`. `answers` is a text or a list; with
    `choices` it is the right option's letter. Without `test` the questions count for one test; without `id` a question
    is known by its place. A record with any other field is bad, unless the field only describes it (`source`,
    `metadata`). A folder stands for its ``questions.jsonl`` or ``questions.json``.
    """
    file = _question_file(place.data)
    records = json_records(file) if file.suffix == ".json" else json_lines(file)
    folders = [place.images] if place.images is not None else [file.parent]
    return read_questions(records, lambda record: _question(record, folders, place.test), _FIELDS)


def _question_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in QUESTION_FILES:
        if (path / name).is_file():
            return path / name
    raise UsageError(f"{path} has no file {' or '.join(QUESTION_FILES)}; expected one with the questions.")


def _question(record: Record, folders: list[Path], test: str) -> Question:
    content = record.content
    text, answers = need(content, "question", str), need_texts(content, "answers")
    choices = _choices(content)
    return Question(
        id=str(need(content, "id", str, int)) if "id" in content else f"q{record.number}",
        test=need(content, "test", str) if "test" in content else test,
        text=with_options(text, choices) if choices else text,
        images=_images(content, folders),
        answers=_letters(answers, choices) if choices else answers,
        choices=choices,
    )


def _only_name(content: Any, names: tuple[str, ...]) -> str | None:
    """The one of a field's names that the record has, or None. Raises RecordProblem if it has two."""
    given = [name for name in names if content.get(name) is not None]
    if len(given) > 1:
        raise RecordProblem(
            f"it has {' and '.join(map(repr, given))}, which are names of one field; expected one of them"
        )
    return given[0] if given else None


def _choices(content: Any) -> tuple[str, ...]:
    name = _only_name(content, _CHOICES)
    if name is None:
        return ()
    need(content, name, list)  # a text would be a single option
    choices = need_texts(content, name)
    if not 2 <= len(choices) <= MOST_OPTIONS:
        raise RecordProblem(f"{name!r} has {len(choices)} options; expected 2 to {MOST_OPTIONS}")
    return choices


def _letters(answers: tuple[str, ...], choices: tuple[str, ...]) -> tuple[str, ...]:
    """Convert answers to capital option letters. Raises RecordProblem for any other answer."""
    letters = tuple(answer.strip().upper() for answer in answers)
    if not set(letters) <= set(letters_for(choices)):
        raise RecordProblem(f"'answers' is {answers}; with 'choices' it is the right one's letter")
    return letters


def _images(content: Any, folders: list[Path]) -> tuple[ImageSource, ...]:
    name = _only_name(content, _IMAGES)
    files = () if name is None else need_texts(content, name)
    return tuple(file if file.startswith("data:") else find_image(folders, [file]) for file in files)
