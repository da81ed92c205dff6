"""Our own layout: one question a line, or a JSON list of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastvlm.errors import UsageError
from fastvlm.evaluation.questions import Picture, Question, with_options
from fastvlm.evaluation.record_files import Record, json_lines, json_records
from fastvlm.evaluation.records import Reading, RecordProblem, find_picture, need, need_texts, read_questions
from fastvlm.evaluation.vqa_layouts import Place

__all__ = ["QUESTION_FILES", "read_plain"]

QUESTION_FILES = ("questions.jsonl", "questions.json")


def read_plain(place: Place) -> Reading:
    """JSON Lines (or a JSON list) of `question`, `answers`, and if wanted `image`, `test`, `choices`, `id`.

    `image` is a path from the file's folder on, a data URI, or a list of them; without it the question is asked alone.
    `answers` is a text or a list; with `choices` it is the right option's letter. Without `test` the questions count
    for one test; without `id` a question is known by its place. A folder stands for its ``questions.jsonl`` or
    ``questions.json``.
    """
    file = _question_file(place.data)
    records = json_records(file) if file.suffix == ".json" else json_lines(file)
    folders = [place.images] if place.images is not None else [file.parent]
    return read_questions(records, lambda record: _question(record, folders, place.test))


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
    choices = need_texts(content, "choices") if "choices" in content else ()
    answers = tuple(answer.strip().upper() for answer in answers) if choices else answers
    if choices and not set(answers) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(choices)]):
        raise RecordProblem(f"'answers' is {answers}; with 'choices' it is the right one's letter")
    return Question(
        id=str(need(content, "id", str, int)) if "id" in content else f"q{record.number}",
        test=need(content, "test", str) if "test" in content else test,
        text=with_options(text, choices) if choices else text,
        pictures=_pictures(content, folders),
        answers=answers,
        choices=choices,
    )


def _pictures(content: Any, folders: list[Path]) -> tuple[Picture, ...]:
    if content.get("image") is None:
        return ()
    names = need_texts(content, "image")
    return tuple(name if name.startswith("data:") else find_picture(folders, [name]) for name in names)
