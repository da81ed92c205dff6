"""Readers of multiple-choice benchmarks: SEED-Bench, MMMU, ScienceQA, AI2D."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastvlm.errors import DataError, UsageError
from fastvlm.evaluation.layouts.reading import (
    Fields,
    LeftOut,
    Place,
    Reading,
    RecordProblem,
    find_image,
    multiple_choice,
    need,
    need_texts,
    read_questions,
)
from fastvlm.evaluation.questions import ImageSource, Question, letters_for
from fastvlm.records.json_files import json_lines, json_records
from fastvlm.records.source import Record
from fastvlm.records.tables import parquet_rows

_MMMU_IMAGES = [f"image_{number}" for number in range(1, 8)]
_SEED = Fields(
    ("answer", "choice_a", "choice_b", "choice_c", "choice_d", "data_id", "data_type", "question", "question_id"),
    described="data_source level question_type_id segment subpart version",
)
_MMMU = Fields(
    ("id", "question", "options", "answer", *_MMMU_IMAGES),
    described="explanation img_type question_type subfield topic_difficulty",
)
_SCIENCEQA = Fields(
    ("question", "choices", "answer", "hint", "image", "split"),
    described="category grade lecture skill solution subject task topic",
)
_AI2D = Fields(("answerTexts", "correctAnswer", "questionId", "imageName"), described="abcLabel")


def read_seed(place: Place) -> Reading:
    """``SEED-Bench.json`` (huggingface.co/datasets/AILab-CVC/SEED-Bench).

    Only the questions about images are asked (Seed-I of the paper); those about videos are left out.
    """
    folders = place.folders("SEED-Bench-image", "images")

    def question(record: Record) -> Question:
        content = record.content
        kind = need(content, "data_type", str)
        if kind != "image":
            raise LeftOut(f"about a {kind}")
        name = need(content, "data_id", str)
        return multiple_choice(
            str(need(content, "question_id", str, int)),
            place.test,
            need(content, "question", str),
            (find_image(folders, name, f"{name}.jpg", f"{name}.png"),),
            [need(content, "answer", str)],
            [str(need(content, f"choice_{letter}", str, int, float)) for letter in "abcd"],
        )

    return read_questions(json_records(place.data, "questions"), question, _SEED)


def read_mmmu(place: Place) -> Reading:
    """MMMU's rows (huggingface.co/datasets/MMMU/MMMU) as Parquet, JSON or JSON Lines; a file, or a folder with several.

    Images are ``{"bytes": ..., "path": ...}`` in Parquet, paths in JSON. ``<image 2>`` in a text is where one stands.
    """
    files = [place.data]
    if place.data.is_dir():
        files = sorted(place.data.rglob("*.parquet")) or sorted(place.data.rglob("*.json*"))
    if not files:
        raise UsageError(f"{place.data} has neither .parquet nor .json files; expected MMMU's rows.")
    readers: dict[str, Callable[[Path], Iterable[Record]]] = {".parquet": parquet_rows, ".jsonl": json_lines}
    reading = Reading()
    for file in files:
        records = readers.get(file.suffix, json_records)(file)
        reading.add(read_questions(records, lambda record: _mmmu_question(place, record), _MMMU))
    return reading


def _mmmu_question(place: Place, record: Record) -> Question:
    content, choices = record.content, _parsed_list(need(record.content, "options", list, str), "options")
    answers = need_texts(content, "answer")
    if not choices and answers[0].startswith("["):
        answers = _parsed_list(answers[0], "answer")
    given = [name for name in _MMMU_IMAGES if content.get(name) is not None]
    if not given or given != _MMMU_IMAGES[: len(given)]:
        raise RecordProblem(f"it has the images {given}; expected image_1, image_2 and so on without a gap")
    images = tuple(_mmmu_image(place, content[name]) for name in given)
    text, identity = need(content, "question", str), need(content, "id", str)
    if not choices:
        return Question(identity, place.test, text, images, answers)
    return multiple_choice(identity, place.test, text, images, answers[:1], choices)


def _parsed_list(value: list[Any] | str, name: str) -> tuple[str, ...]:
    """Convert a list, or the text of a Python list, to strings."""
    try:
        items = ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError):
        items = None
    if not isinstance(items, list):
        raise RecordProblem(f"{name!r} is {value!r:.40}; expected a list of texts")
    return tuple(str(item) for item in items)


def _mmmu_image(place: Place, value: Any) -> ImageSource:
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return bytes(value["bytes"])
    name = value.get("path") if isinstance(value, dict) else value
    if not isinstance(name, str):
        raise RecordProblem(f"an image is {value!r:.40}; expected a path, or an object with 'bytes'")
    return find_image(place.folders("images"), name)


def read_scienceqa(place: Place) -> Reading:
    """``problems.json`` (github.com/lupantech/ScienceQA); only the split "test" is asked, the others are left out.

    Images are ``test/ID/image.png``; questions without one are asked without.
    """
    folders = place.folders("images")

    def question(record: Record) -> Question:
        content = record.content
        split = need(content, "split", str)
        if split != "test":
            raise LeftOut(f"of the split {split!r}")
        choices, image, hint = need_texts(content, "choices"), content.get("image"), content.get("hint")
        images = (find_image(folders, f"test/{record.key}/{image}", f"{record.key}/{image}"),) if image else ()
        text = need(content, "question", str)
        text = f"Context: {hint}\n{text}" if hint else text
        answer = _letter(content, "answer", choices)
        return multiple_choice(record.key, place.test, text, images, answer, choices)

    return read_questions(json_records(place.data), question, _SCIENCEQA)


def read_ai2d(place: Place) -> Reading:
    """The folder of AI2D (prior.allenai.org/projects/diagrams) with ``questions/*.json`` and ``images``.

    With ``ai2d_test_ids.csv`` in it, questions about other images are left out.
    """
    files = sorted(place.data.glob("questions/*.json")) if place.data.is_dir() else []
    if not files:
        raise UsageError(f"{place.data} has no files questions/*.json; expected AI2D's folder.")
    ids = place.data / "ai2d_test_ids.csv"
    wanted = set(ids.read_text(encoding="utf-8", errors="replace").split()) if ids.is_file() else None

    def question(record: Record) -> Question:
        name = need(record.content, "imageName", str)
        if wanted is not None and Path(name).stem not in wanted:
            raise LeftOut("of an image that is not in ai2d_test_ids.csv")
        choices = need_texts(record.content, "answerTexts")
        answer = _letter(record.content, "correctAnswer", choices)
        images, identity = (find_image(place.folders("images"), name),), need(record.content, "questionId", str)
        return multiple_choice(identity, place.test, record.key, images, answer, choices)

    return read_questions(_ai2d_records(files), question, _AI2D)


def _letter(content: Any, name: str, choices: tuple[str, ...]) -> str:
    """The letter of the right option, from its number in the field `name`."""
    number: int = need(content, name, int)
    if not 0 <= number < len(choices):
        raise RecordProblem(f"{name!r} is {number}; there are {len(choices)} options, counted from 0")
    return letters_for(choices)[number : number + 1]


def _ai2d_records(files: list[Path]) -> Iterator[Record]:
    """Yield one record per question, with the image's name in its content."""
    for file in files:
        try:
            members = {record.key: record.content for record in json_records(file)}
        except DataError as error:
            members = {"": error}
        if "imageName" not in members:
            found = ", ".join(map(str, members))
            yield Record(file, 1, 1, None, problem=f"no JSON object with 'imageName', but {found}")
            continue
        for record in json_records(file, "questions"):
            if isinstance(record.content, dict):
                record = replace(record, content={**record.content, "imageName": members["imageName"]})  # noqa: PLW2901
            yield record
