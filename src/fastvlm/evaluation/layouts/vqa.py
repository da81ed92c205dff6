"""Readers of open-ended benchmarks: VQAv2, TextVQA, DocVQA, InfographicVQA, ChartQA, GQA, COCO captions.

Each reader takes the place of the data and gives a :class:`Reading`; what it expects stands in its docstring, as the
benchmark's authors publish it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastvlm.errors import UsageError
from fastvlm.evaluation.layouts.fields import Fields, listed
from fastvlm.evaluation.layouts.reading import (
    Reading,
    RecordProblem,
    find_image,
    need,
    need_texts,
    read_questions,
    values_of,
)
from fastvlm.evaluation.questions import Question
from fastvlm.records.json_files import json_records
from fastvlm.records.source import Record

_VQAV2_FIELDS = Fields(read=("question_id", "image_id", "question"))
_ANNOTATION_FIELDS = Fields(
    read=("question_id", "answers"), described=listed("answer_type image_id multiple_choice_answer question_type")
)
_TEXTVQA_FIELDS = Fields(
    read=("question_id", "image_id", "question", "answers"),
    described=listed(
        "flickr_300k_url flickr_original_url image_classes image_height image_name image_path image_width "
        "question_tokens set_name"
    ),
)
_DOCVQA_FIELDS = Fields(
    read=("questionId", "question", "image", "image_local_name", "answers"),
    described=listed(
        "answer_type data_split docId evidence image_url ocr_output_file operation/reasoning question_types "
        "ucsf_document_id ucsf_document_page_no"
    ),
)
_CHARTQA_FIELDS = Fields(read=("imgname", "query", "label"), described=listed("human_or_machine type"))
_GQA_FIELDS = Fields(
    read=("question", "imageId", "answer"),
    described=listed("annotations entailed equivalent fullAnswer groups isBalanced semantic semanticStr types"),
)
_COCO_IMAGE_FIELDS = Fields(
    read=("id", "file_name"), described=listed("coco_url date_captured flickr_url height license width")
)
_COCO_CAPTION_FIELDS = Fields(read=("image_id", "caption"), described=listed("id"))


@dataclass(frozen=True)
class Place:
    """Paths of a benchmark.

    Args:
        data: the file with the questions; of some benchmarks a folder.
        images: the folder with the images; None for the places where the benchmark itself has them.
        annotations: the file with the answers, where it is another one.
        test: what its questions are counted under, unless the file says so.
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


def read_vqav2(place: Place) -> Reading:
    """``v2_OpenEnded_mscoco_val2014_questions.json`` and ``v2_mscoco_val2014_annotations.json`` (visualqa.org).

    Questions have `question_id`, `image_id`, `question`; annotations `question_id` and ten `answers` with `answer`.
    Images are ``COCO_val2014_000000000042.jpg``, here or in ``val2014``.
    """
    answers, reading = _annotations(_annotation_file(place))
    folders = place.folders("val2014", "train2014", "images")

    def make(record: Record) -> Question:
        number = need(record.content, "question_id", int)
        if number not in answers:
            raise RecordProblem(f"question {number} has no annotation")
        image = need(record.content, "image_id", int)
        names = [f"COCO_{part}_{image:012d}.jpg" for part in ("val2014", "train2014")]
        return Question(
            str(number),
            place.test,
            need(record.content, "question", str),
            (find_image(folders, [*names, f"{image:012d}.jpg"]),),
            answers[number],
        )

    reading.add(read_questions(json_records(place.data, "questions"), make, _VQAV2_FIELDS))
    return reading


def _annotation_file(place: Place) -> Path:
    name = place.data.name.replace("OpenEnded_", "").replace("_questions", "_annotations")
    path = place.annotations or place.data.with_name(name)
    if path == place.data or not path.is_file():
        raise UsageError(f"There is no file {path} with VQAv2's answers. Name it with --annotations.")
    return path


def _annotations(path: Path) -> tuple[dict[int, tuple[str, ...]], Reading]:
    """Answers by question number, and the bad annotations."""
    answers, reading = dict[int, tuple[str, ...]](), Reading()

    def make(record: Record) -> tuple[int, tuple[str, ...]]:
        given = need(record.content, "answers", list)
        return need(record.content, "question_id", int), tuple(need(one, "answer", str) for one in given)

    answers.update(values_of(json_records(path, "annotations"), reading, make, _ANNOTATION_FIELDS))
    return answers, reading


def read_textvqa(place: Place) -> Reading:
    """``TextVQA_0.5.1_val.json`` (textvqa.org): `data` with `question_id`, `image_id`, `question`, ten `answers`.

    Images are ``IMAGE_ID.jpg``, here or in ``train_images``. No OCR tokens are shown to the model.
    """
    folders = place.folders("train_images", "images")

    def make(record: Record) -> Question:
        name = need(record.content, "image_id", str)
        return Question(
            _text_id(record.content, "question_id"),
            place.test,
            need(record.content, "question", str),
            (find_image(folders, [f"{name}.jpg", f"{name}.png", name]),),
            need_texts(record.content, "answers"),
        )

    return read_questions(json_records(place.data, "data"), make, _TEXTVQA_FIELDS)


def read_docvqa(place: Place) -> Reading:
    """``val_v1.0.json`` of DocVQA (docvqa.org): `data` with `questionId`, `question`, `image`, `answers`.

    `image` is a path from the file's folder on, such as ``documents/xnbl0037_1.png``. InfographicVQA has
    `image_local_name` in its place, here or in ``images``.
    """
    folders = place.folders("images", "documents")

    def make(record: Record) -> Question:
        identity = _text_id(record.content, "questionId")
        name = need(record.content, "image" if "image" in record.content else "image_local_name", str)
        return Question(
            identity,
            place.test,
            need(record.content, "question", str),
            (find_image(folders, [name, Path(name).name]),),
            need_texts(record.content, "answers"),
        )

    return read_questions(json_records(place.data, "data"), make, _DOCVQA_FIELDS)


def read_chartqa(place: Place) -> Reading:
    """``test_human.json`` and ``test_augmented.json`` (github.com/vis-nlp/ChartQA).

    Lists of `imgname`, `query`, `label`. One file, or the folder with both, which then count apart. Images are in
    ``png`` next to them. There are no ids: a question is identified by its file and position.
    """
    if not place.data.is_dir():
        return _read_chart_file(place, place.data, place.test)
    reading, files = Reading(), sorted(place.data.glob("*_human.json")) + sorted(place.data.glob("*_augmented.json"))
    if not files:
        raise UsageError(
            f"{place.data} has no file *_human.json or *_augmented.json; expected ChartQA's folder 'test'."
        )
    for file in files:
        reading.add(_read_chart_file(place, file, f"{place.test}_{file.stem.rsplit('_', 1)[-1]}"))
    return reading


def _read_chart_file(place: Place, file: Path, test: str) -> Reading:
    folders = place.folders("png")

    def make(record: Record) -> Question:
        name = need(record.content, "imgname", str)
        return Question(
            f"{file.stem}-{record.number}",
            test,
            need(record.content, "query", str),
            (find_image(folders, [name]),),
            need_texts(record.content, "label"),
        )

    return read_questions(json_records(file), make, _CHARTQA_FIELDS)


def read_gqa(place: Place) -> Reading:
    """``testdev_balanced_questions.json`` (cs.stanford.edu/people/dorarad/gqa): `question`, `imageId`, `answer` by id.

    Images are ``IMAGEID.jpg``, here or in ``images``.
    """
    folders = place.folders("images")

    def make(record: Record) -> Question:
        name = need(record.content, "imageId", str)
        return Question(
            record.key,
            place.test,
            need(record.content, "question", str),
            (find_image(folders, [f"{name}.jpg"]),),
            need_texts(record.content, "answer"),
        )

    return read_questions(json_records(place.data), make, _GQA_FIELDS)


def read_captions(place: Place) -> Reading:
    """``captions_val2014.json`` (cocodataset.org): `images` with `id` and `file_name`, `annotations` with `caption`.

    All captions of an image are answers to one question about it.
    """
    captions, reading = defaultdict[int, list[str]](list), Reading()

    def make_caption(record: Record) -> tuple[int, str]:
        return need(record.content, "image_id", int), need(record.content, "caption", str)

    for number, caption in values_of(
        json_records(place.data, "annotations"), reading, make_caption, _COCO_CAPTION_FIELDS
    ):
        captions[number].append(caption)
    folders = place.folders("val2014", "images")

    def make(record: Record) -> Question:
        number = need(record.content, "id", int)
        image = find_image(folders, [need(record.content, "file_name", str)])
        text = "Provide a one-sentence caption for the provided image."  # lmms-eval's, of LLaVA
        return Question(str(number), place.test, text, (image,), tuple(captions[number]))

    reading.add(read_questions(json_records(place.data, "images"), make, _COCO_IMAGE_FIELDS))
    return reading


def _text_id(content: Any, name: str) -> str:
    return str(need(content, name, int, str))
