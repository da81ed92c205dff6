"""Readers of multiple-choice and yes/no benchmarks: SEED-Bench, MMMU, ScienceQA, AI2D, POPE."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastvlm.errors import DataError, UsageError
from fastvlm.evaluation.layouts.fields import Fields, listed
from fastvlm.evaluation.layouts.reading import (
    LeftOut,
    Reading,
    RecordProblem,
    find_image,
    need,
    need_texts,
    read_questions,
)
from fastvlm.evaluation.layouts.vqa import Place
from fastvlm.evaluation.questions import MOST_OPTIONS, ImageSource, Question, letters_for, with_options
from fastvlm.records.json_files import json_lines, json_records
from fastvlm.records.source import Record
from fastvlm.records.tables import parquet_rows

_MMMU_IMAGES = 7
_POPE_FIELDS = Fields(read=("question_id", "image", "text", "label"))
_SEED_FIELDS = Fields(
    read=("answer", "choice_a", "choice_b", "choice_c", "choice_d", "data_id", "data_type", "question", "question_id"),
    described=listed("data_source level question_type_id segment subpart version"),
)
_MMMU_FIELDS = Fields(
    read=("id", "question", "options", "answer", *(f"image_{number}" for number in range(1, _MMMU_IMAGES + 1))),
    described=listed("explanation img_type question_type subfield topic_difficulty"),
)
_SCIENCEQA_FIELDS = Fields(
    read=("question", "choices", "answer", "hint", "image", "split"),
    described=listed("category grade lecture skill solution subject task topic"),
)
_AI2D_FIELDS = Fields(
    read=("answerTexts", "correctAnswer", "questionId", "imageName"),
    described=listed("abcLabel"),
)


def read_pope(place: Place) -> Reading:
    """``coco_pope_random.json`` and its like (github.com/AoiDragon/POPE).

    JSON Lines of `question_id`, `image`, `text`, `label`. One file, or the folder with several, which then count apart.
    Images are here or in ``val2014``.
    """
    if not place.data.is_dir():
        return _read_pope_file(place, place.data, place.test)
    reading, files = Reading(), sorted(place.data.glob("*pope*.json*"))
    if not files:
        raise UsageError(f"{place.data} has no file *pope*.json; expected POPE's folder with its question files.")
    for file in files:
        reading.add(_read_pope_file(place, file, f"{place.test}_{file.stem.rsplit('_', 1)[-1]}"))
    return reading


def _read_pope_file(place: Place, file: Path, test: str) -> Reading:
    folders = place.folders("val2014", "images")

    def make(record: Record) -> Question:
        label = need(record.content, "label", str).strip().lower()
        if label not in {"yes", "no"}:
            raise RecordProblem(f"'label' is {label!r}; expected yes or no")
        return Question(
            f"{file.stem}-{need(record.content, 'question_id', int, str)}",
            test,
            need(record.content, "text", str),
            (find_image(folders, [need(record.content, "image", str)]),),
            (label,),
        )

    return read_questions(json_lines(file), make, _POPE_FIELDS)


def read_seed(place: Place) -> Reading:
    """``SEED-Bench.json`` (huggingface.co/datasets/AILab-CVC/SEED-Bench): `questions` with `choice_a` to `choice_d`.

    Only the questions about images are asked (Seed-I of the paper); those about videos are counted as left out.
    Images are called `data_id`, here or in ``SEED-Bench-image``.
    """
    folders = place.folders("SEED-Bench-image", "images")

    def make(record: Record) -> Question:
        kind = need(record.content, "data_type", str)
        if kind != "image":
            raise LeftOut(f"about a {kind}")
        choices = tuple(str(need(record.content, f"choice_{letter}", str, int, float)) for letter in "abcd")
        name = need(record.content, "data_id", str)
        return _multiple_choice(
            str(need(record.content, "question_id", str, int)),
            place.test,
            need(record.content, "question", str),
            (find_image(folders, [name, f"{name}.jpg", f"{name}.png"]),),
            need(record.content, "answer", str),
            choices,
        )

    return read_questions(json_records(place.data, "questions"), make, _SEED_FIELDS)


def read_mmmu(place: Place) -> Reading:
    """MMMU's rows (huggingface.co/datasets/MMMU/MMMU) as Parquet, JSON or JSON Lines; a file, or a folder with several.

    Columns: `id`, `question`, `options` (a list, or its Python text), `answer`, `image_1` to `image_7` (``{"bytes":
    ..., "path": ...}`` in Parquet, a path in JSON). ``<image 2>`` in the texts is where an image stands.
    """
    reading = Reading()
    for file in _mmmu_files(place.data):
        reading.add(read_questions(_mmmu_records(file), lambda record: _mmmu_question(place, record), _MMMU_FIELDS))
    return reading


def _mmmu_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(path.rglob("*.parquet")) or sorted(path.rglob("*.json*"))
    if not files:
        raise UsageError(f"{path} has neither .parquet nor .json files; expected MMMU's rows.")
    return files


def _mmmu_records(file: Path) -> Iterable[Record]:
    if file.suffix == ".parquet":
        return parquet_rows(file)
    return json_lines(file) if file.suffix == ".jsonl" else json_records(file)


def _mmmu_question(place: Place, record: Record) -> Question:
    content, choices = record.content, _listed(need(record.content, "options", list, str), "options")
    answers = need_texts(content, "answer")
    if not choices and answers[0].startswith("["):
        answers = _listed(answers[0], "answer")
    numbers = [n for n in range(1, _MMMU_IMAGES + 1) if content.get(f"image_{n}") is not None]
    if not numbers or numbers != list(range(1, len(numbers) + 1)):
        raise RecordProblem(f"it has the images {numbers}; expected image_1, image_2 and so on without a gap")
    images = tuple(_mmmu_image(place, content[f"image_{number}"]) for number in numbers)
    text, name = need(content, "question", str), need(content, "id", str)
    if not choices:
        return Question(name, place.test, text, images, answers)
    return _multiple_choice(name, place.test, text, images, answers[0], choices)


def _listed(value: list[Any] | str, name: str) -> tuple[str, ...]:
    """Convert a list, or the text of a Python list (as in MMMU), to strings."""
    try:
        items = ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError) as error:
        raise RecordProblem(f"{name!r} is {value!r:.40}; expected a list of texts") from error
    if not isinstance(items, list):
        raise RecordProblem(f"{name!r} is {value!r:.40}; expected a list of texts")
    return tuple(str(item) for item in items)


def _mmmu_image(place: Place, value: Any) -> ImageSource:
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return bytes(value["bytes"])
    name = value.get("path") if isinstance(value, dict) else value
    if not isinstance(name, str):
        raise RecordProblem(f"an image is {value!r:.40}; expected a path, or an object with 'bytes'")
    return find_image(place.folders("images"), [name])


def read_scienceqa(place: Place) -> Reading:
    """``problems.json`` (github.com/lupantech/ScienceQA).

    By id: `question`, `choices`, `answer` (from 0), `hint`, `image`, `split`. Only the split "test" is asked; others
    are counted as left out. Images are ``test/ID/image.png``, here or in ``images``; questions without one are asked
    without.
    """
    folders = place.folders("images")

    def make(record: Record) -> Question:
        split = need(record.content, "split", str)
        if split != "test":
            raise LeftOut(f"of the split {split!r}")
        choices = need_texts(record.content, "choices")
        number, image = need(record.content, "answer", int), record.content.get("image")
        if not 0 <= number < len(choices):
            raise RecordProblem(f"'answer' is {number}; there are {len(choices)} choices, counted from 0")
        images = (find_image(folders, [f"test/{record.key}/{image}", f"{record.key}/{image}"]),) if image else ()
        hint = record.content.get("hint")
        text = need(record.content, "question", str)
        text = f"Context: {hint}\n{text}" if hint else text
        return _multiple_choice(record.key, place.test, text, images, letters_for(choices)[number], choices)

    return read_questions(json_records(place.data), make, _SCIENCEQA_FIELDS)


def read_ai2d(place: Place) -> Reading:
    """The folder of AI2D (prior.allenai.org/projects/diagrams): ``questions/*.json``, ``images``.

    A file has `imageName` and `questions`: by their text `answerTexts`, `correctAnswer` (from 0), `questionId`. With
    ``ai2d_test_ids.csv`` in the folder only those images' questions are asked; others are counted as left out.
    """
    files = sorted(place.data.glob("questions/*.json")) if place.data.is_dir() else []
    if not files:
        raise UsageError(f"{place.data} has no files questions/*.json; expected AI2D's folder.")
    ids = place.data / "ai2d_test_ids.csv"
    wanted = set(ids.read_text(encoding="utf-8", errors="replace").split()) if ids.is_file() else None
    return read_questions(_ai2d_records(files), lambda record: _ai2d_question(place, record, wanted), _AI2D_FIELDS)


def _ai2d_records(files: list[Path]) -> Iterator[Record]:
    """Yield one record per question, with the image's name in its content."""
    for file in files:
        try:
            members = {record.key: record.content for record in json_records(file)}
        except DataError as error:
            members = {"": error}
        if "imageName" not in members:
            yield Record(
                file, 1, 1, None, problem=f"no JSON object with 'imageName', but {', '.join(map(str, members))}"
            )
            continue
        for record in json_records(file, "questions"):
            if isinstance(record.content, dict):
                yield replace(record, content={**record.content, "imageName": members["imageName"]})
            else:
                yield record


def _ai2d_question(place: Place, record: Record, wanted: set[str] | None) -> Question:
    name = need(record.content, "imageName", str)
    if wanted is not None and Path(name).stem not in wanted:
        raise LeftOut("of an image that is not in ai2d_test_ids.csv")
    choices, number = need_texts(record.content, "answerTexts"), need(record.content, "correctAnswer", int)
    if not 0 <= number < len(choices):
        raise RecordProblem(f"'correctAnswer' is {number}; there are {len(choices)} options, counted from 0")
    image = find_image(place.folders("images"), [name])
    identity = need(record.content, "questionId", str)
    return _multiple_choice(identity, place.test, record.key, (image,), letters_for(choices)[number], choices)


def _multiple_choice(
    identity: str, test: str, text: str, images: tuple[ImageSource, ...], answer: str, choices: tuple[str, ...]
) -> Question:
    """Make a question with its options below the text. Raises RecordProblem."""
    if not 2 <= len(choices) <= MOST_OPTIONS:
        raise RecordProblem(f"it has {len(choices)} options; expected 2 to {MOST_OPTIONS}")
    letter = answer.strip().upper()
    if len(letter) != 1 or letter not in letters_for(choices):
        raise RecordProblem(f"the answer is {answer!r}; expected a letter from A to {letters_for(choices)[-1]}")
    return Question(identity, test, with_options(text, choices), images, (letter,), choices)
