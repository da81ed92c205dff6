"""Benchmarks with free answers: VQAv2, TextVQA, DocVQA, InfographicVQA, ChartQA, GQA, POPE, COCO captions.

A :class:`Layout` names the fields and the image files as the benchmark's authors publish them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastvlm.errors import UsageError
from fastvlm.evaluation.layouts.reading import (
    Fields,
    Place,
    Reading,
    RecordProblem,
    find_image,
    need,
    need_texts,
    read_questions,
    values_of,
)
from fastvlm.evaluation.questions import Question
from fastvlm.records.json_files import json_lines, json_records
from fastvlm.records.source import Record


@dataclass(frozen=True)
class Layout:
    """Files of one benchmark: a question, an image and answers per record.

    Args:
        name: of the benchmark, in messages.
        key: member of the file's JSON object that holds the records; None if the whole file does.
        id: field with the question's id. "" for the record's key, or its position where records have none.
        text, image, answers: names of the other fields.
        image_names: image files made of the field `image` ({}) or of its last part ({name}); the first one that exists.
        folders: where images are, next to the data.
        described: see :class:`Fields`.
        parts: patterns of the files if the data is a folder; each file is a test of its own.
        is_lines: True for JSON Lines.
        answers_of: answers of a record, if they are not the texts of the field `answers`.
    """

    name: str
    image: str
    key: str | None = None
    id: str = ""
    text: str = "question"
    answers: str = "answers"
    image_type: type = str
    image_names: tuple[str, ...] = ("{}",)
    folders: tuple[str, ...] = ("images",)
    described: str = ""
    parts: tuple[str, ...] = ()
    is_lines: bool = False
    answers_of: Callable[[Any], tuple[str, ...]] | None = None

    def read(self, place: Place) -> Reading:
        """The questions of a file, or of a folder with several parts."""
        if not self.parts or not place.data.is_dir():
            return self._read_file(place, place.data, place.test)
        reading, files = Reading(), [file for pattern in self.parts for file in sorted(place.data.glob(pattern))]
        if not files:
            raise UsageError(
                f"{place.data} has no file {' or '.join(self.parts)}; expected {self.name}'s folder with its questions."
            )
        for file in files:
            reading.add(self._read_file(place, file, f"{place.test}_{file.stem.rsplit('_', 1)[-1]}"))
        return reading

    def _read_file(self, place: Place, file: Path, test: str) -> Reading:
        folders = place.folders(*self.folders)

        def question(record: Record) -> Question:
            content = record.content
            identity, text = self._id(record), need(content, self.text, str)
            image = need(content, self.image, self.image_type)
            names = [name.format(image, name=Path(str(image)).name) for name in self.image_names]
            answers = need_texts(content, self.answers) if self.answers_of is None else self.answers_of(content)
            return Question(identity, test, text, (find_image(folders, *names),), answers)

        records = json_lines(file) if self.is_lines else json_records(file, self.key)
        read = tuple(name for name in (self.id, self.text, self.image, self.answers) if name)
        return read_questions(records, question, Fields(read, self.described))

    def _id(self, record: Record) -> str:
        identity = str(need(record.content, self.id, int, str)) if self.id else record.key or str(record.number)
        return f"{record.file.stem}-{identity}" if self.parts else identity


def _yes_or_no(content: Any) -> tuple[str, ...]:
    label: str = need(content, "label", str).strip().lower()
    if label not in {"yes", "no"}:
        raise RecordProblem(f"'label' is {label!r}; expected yes or no")
    return (label,)


# textvqa.org: TextVQA_0.5.1_val.json. No OCR tokens are shown to the model.
TEXTVQA = Layout(
    "TextVQA",
    key="data",
    id="question_id",
    image="image_id",
    image_names=("{}.jpg", "{}.png", "{}"),
    folders=("train_images", "images"),
    described="flickr_300k_url flickr_original_url image_classes image_height image_name image_path image_width "
    "question_tokens set_name",
)
# docvqa.org: val_v1.0.json; its images are paths relative to the file, such as documents/xnbl0037_1.png.
DOCVQA = Layout(
    "DocVQA",
    key="data",
    id="questionId",
    image="image",
    image_names=("{}", "{name}"),
    folders=("images", "documents"),
    described="answer_type data_split docId evidence image_url ocr_output_file operation/reasoning question_types "
    "ucsf_document_id ucsf_document_page_no",
)
INFOVQA = replace(DOCVQA, name="InfographicVQA", image="image_local_name")
# github.com/vis-nlp/ChartQA: the folder "test", or one of its two files.
CHARTQA = Layout(
    "ChartQA",
    text="query",
    image="imgname",
    answers="label",
    folders=("png",),
    described="human_or_machine type",
    parts=("*_human.json", "*_augmented.json"),
)
# cs.stanford.edu/people/dorarad/gqa: testdev_balanced_questions.json
GQA = Layout(
    "GQA",
    image="imageId",
    answers="answer",
    image_names=("{}.jpg",),
    described="annotations entailed equivalent fullAnswer groups isBalanced semantic semanticStr types",
)
# github.com/AoiDragon/POPE: coco_pope_random.json and its like, or the folder with several.
POPE = Layout(
    "POPE",
    id="question_id",
    text="text",
    image="image",
    answers="label",
    folders=("val2014", "images"),
    parts=("*pope*.json*",),
    is_lines=True,
    answers_of=_yes_or_no,
)
# visualqa.org: v2_OpenEnded_mscoco_val2014_questions.json; the answers are in a file of their own.
_VQAV2 = Layout(
    "VQAv2",
    key="questions",
    id="question_id",
    image="image_id",
    answers="",
    image_type=int,
    image_names=("COCO_val2014_{:012d}.jpg", "COCO_train2014_{:012d}.jpg", "{:012d}.jpg"),
    folders=("val2014", "train2014", "images"),
)
_VQAV2_ANSWERS = Fields(
    ("question_id", "answers"), described="answer_type image_id multiple_choice_answer question_type"
)
# COCO (cocodataset.org) has captions_val2014.json with images and annotations.
_CAPTIONS = Fields(("image_id", "caption"), described="id")
_CAPTIONED = Fields(("id", "file_name"), described="coco_url date_captured flickr_url height license width")
_CAPTION_PROMPT = "Provide a one-sentence caption for the provided image."  # as LLaVA and lmms-eval ask


def read_vqav2(place: Place) -> Reading:
    """VQAv2's questions, with the ten answers of each from ``v2_mscoco_val2014_annotations.json``."""
    name = place.data.name.replace("OpenEnded_", "").replace("_questions", "_annotations")
    path = place.annotations or place.data.with_name(name)
    if path == place.data or not path.is_file():
        raise UsageError(f"There is no file {path} with VQAv2's answers. Name it with --annotations.")
    reading = Reading()

    def annotation(record: Record) -> tuple[int, tuple[str, ...]]:
        given = need(record.content, "answers", list)
        return need(record.content, "question_id", int), tuple(need(one, "answer", str) for one in given)

    answers = dict(values_of(json_records(path, "annotations"), reading, annotation, _VQAV2_ANSWERS))

    def answers_of(content: Any) -> tuple[str, ...]:
        number = need(content, "question_id", int)
        if number not in answers:
            raise RecordProblem(f"question {number} has no annotation")
        return answers[number]

    reading.add(replace(_VQAV2, answers_of=answers_of).read(place))
    return reading


def read_captions(place: Place) -> Reading:
    """COCO's images; all captions of an image are answers to one question about it."""
    captions, reading = defaultdict[int, list[str]](list), Reading()
    folders = place.folders("val2014", "images")

    def caption(record: Record) -> tuple[int, str]:
        return need(record.content, "image_id", int), need(record.content, "caption", str)

    for number, text in values_of(json_records(place.data, "annotations"), reading, caption, _CAPTIONS):
        captions[number].append(text)

    def question(record: Record) -> Question:
        number = need(record.content, "id", int)
        image = find_image(folders, need(record.content, "file_name", str))
        return Question(str(number), place.test, _CAPTION_PROMPT, (image,), tuple(captions[number]))

    reading.add(read_questions(json_records(place.data, "images"), question, _CAPTIONED))
    return reading
