"""`objects` and `looks` of a record: read or refused with a reason, placed in cells, visual tokens and positions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from training_files import N, gray, llava, processor, save_images, write_lines

from fastvlm.errors import DataError
from fastvlm.processing.image_processor import fit_image
from fastvlm.training.data.collation import Collator
from fastvlm.training.data.dataset import SupervisedDataset
from fastvlm.training.data.messages import read_record
from fastvlm.training.data.samples import Sample, open_samples
from fastvlm.training.grounding.objects import (
    EMPTY,
    IGNORED,
    GroundedObject,
    Grounding,
    Look,
    ObjectNames,
    read_grounding,
)
from fastvlm.training.grounding.rows import GroundingColumns
from fastvlm.training.grounding.targets import CELL_PX, Placement, cells_of, pieces_of_words, tokens_of

PROCESSOR = processor()  # 128 px: 2 x 2 visual tokens, 8 x 8 cells
NAMES = ObjectNames({"star": 1, "circle": 2}, {"blue": 0, "red": 1})
STAR = {"name": "star", "colour": "red", "box": [0, 0, 4, 4]}
MESSAGES = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is red?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A star."}]},
]


def read(**columns):
    return read_grounding(columns, 1, MESSAGES)


# ------------------------------------------------------------------------------------------------- reading


def test_a_record_without_the_columns_has_no_grounding():
    assert read() is None
    assert read(objects=None, looks=None) is None, "as Arrow has it"


def test_columns_are_read():
    found = read(objects=[STAR], looks=[{"reply": 0, "at": 2, "objects": [0], "words": ["Red"]}])
    assert found == Grounding(
        (GroundedObject("star", "red", (0.0, 0.0, 4.0, 4.0), 0),), (Look(0, 2, (0,), frozenset({"red"})),)
    )
    assert read(looks=[{"words": ["red"]}]) == Grounding(None, (Look(0, 0, (), frozenset({"red"})),))
    assert read(objects=[]) == Grounding((), ()), "known to be empty, which is not the same as unknown"


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"objects": "star"}, "its 'objects' is star; expected a list of objects"),
        ({"objects": [{"box": [0, 0, 1, 1]}]}, "an entry of 'objects' has the name None"),
        ({"objects": [{"name": "star", "box": [0, 0, 1]}]}, "'star' has the box [0, 0, 1]; expected [left, top"),
        ({"objects": [{"name": "star", "box": [5, 0, 1, 1]}]}, "whose right or bottom comes before its left or top"),
        ({"objects": [{**STAR, "picture": 1}]}, "'star' is in image 1; the record has 1, counted from 0"),
        ({"looks": [{"reply": 1}]}, "is about reply 1; there are 1, counted from 0"),
        ({"looks": [{"at": 8}]}, "a look is at character 8 of reply 0, which has 7"),
        ({"objects": [STAR], "looks": [{"objects": [1]}]}, "names the objects [1]; there are 1, counted from 0"),
        ({"looks": [{"words": [3]}]}, "names the words [3]; expected texts"),
        ({"looks": [3]}, "its 'looks' is [3]; expected a list of objects"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_reason(columns, reason):
    with pytest.raises(DataError) as error:
        read(**columns)
    assert reason in str(error.value)


def test_a_bad_column_is_told_by_the_records_origin(tmp_path):
    save_images(tmp_path, 1)
    record = {**llava("<image>\nWhat?", "A star.", image="1.png"), "looks": [{"reply": 4}]}
    path = write_lines(tmp_path / "x.jsonl", record)
    with pytest.raises(DataError, match=f"^{path}:1: an entry of 'looks' is about reply 4"):
        open_samples([path])[0]


def test_names_lie_beside_the_data(tmp_path):
    for folder, objects in (("a", ["star", "circle"]), ("b", ["cross"])):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "names.json").write_text(json.dumps({"objects": objects, "colours": ["red"]}))
    (tmp_path / "b" / "x.jsonl").write_text("")
    names = ObjectNames.next_to([tmp_path / "a", tmp_path / "b" / "x.jsonl"])
    assert names == ObjectNames({"circle": 1, "cross": 2, "star": 3}, {"red": 0})
    assert names.num_classes == 4 and names.color_of("blue") == IGNORED
    with pytest.raises(DataError, match="its object 'moon' is not among the 3 names"):
        names.class_of("moon")


def test_without_names_one_is_told_what_to_write(tmp_path):
    with pytest.raises(DataError, match=r"a file names.json in .*\"star\".*Without it set grounding.objects=0"):
        ObjectNames.next_to([tmp_path])
    (tmp_path / "names.json").write_text("[")
    with pytest.raises(DataError, match=r"names.json cannot be read .*expected .\"objects\""):
        ObjectNames.next_to([tmp_path])


# ------------------------------------------------------------------------------------------------- places


@given(
    st.integers(40, 400),
    st.integers(40, 400),
    st.sampled_from(["pad", "crop", "stretch"]),
    st.randoms(use_true_random=False),
)
def test_boxes_go_where_the_pixels_go(width, height, fit, chance):
    image = Image.new("RGB", (width, height))
    x, y = chance.uniform(0.4, 0.6) * width, chance.uniform(0.4, 0.6) * height
    box = (x - 12, y - 12, x + 12, y + 12)
    ImageDraw.Draw(image).rectangle([round(edge) for edge in box], fill=(255, 255, 255))
    placement = Placement.of(image.size, (256, 256), fit)
    slack = 2 + 1.5 * max(placement.scale)
    expected = np.clip(placement.place(box), 0, 256)  # what is cropped away is not seen
    assume(min(expected[2] - expected[0], expected[3] - expected[1]) > slack)
    fitted = np.asarray(fit_image(image, 256, 256, fit=fit).convert("L"), dtype=float)
    rows, columns = np.nonzero(fitted > 128)
    seen = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    assert np.abs(np.subtract(seen, expected)).max() <= slack


def objects_at(*places):
    return [GroundedObject(name, "red", (x - r, y - r, x + r, y + r), 0) for name, x, y, r in places]


def test_a_thing_claims_the_cells_of_its_heart():
    cells = cells_of(objects_at(("star", 64, 64, 32)), NAMES, Placement((1, 1), (0, 0)), 128, 128)
    classes, colors = cells
    claimed = np.argwhere(classes == 1)
    assert claimed.min(0).tolist() == [3, 3] and claimed.max(0).tolist() == [4, 4]
    assert set(classes.flat) == {EMPTY, 1}
    assert (colors[classes == 1] == 1).all() and (colors[classes == EMPTY] == IGNORED).all()


def test_a_cell_between_two_things_belongs_to_the_nearest():
    both = objects_at(("star", 40, 64, 60), ("circle", 72, 64, 60))
    for things in (both, both[::-1]):
        row = cells_of(things, NAMES, Placement((1, 1), (0, 0)), 128, 128)[0, 4].tolist()
        assert row[1:3] == [1, 1] and row[4:6] == [2, 2]


@given(st.floats(-50, 200), st.floats(-50, 200), st.floats(0, 90))
def test_every_thing_claims_a_cell_and_shows_in_a_token(x, y, half):
    placement = Placement((1, 1), (0, 0))
    [thing] = objects_at(("star", x, y, half))
    assert (cells_of([thing], NAMES, placement, 128, 128)[0] == 1).any()
    tokens = list(tokens_of(thing.box, placement, (2, 2), 64))
    assert tokens and set(tokens) <= set(range(4))
    if half < 3 and 0 <= x < 128 and 0 <= y < 128:
        assert int(y // 64) * 2 + int(x // 64) in tokens


def test_words_are_found_across_pieces():
    pieces = ["What", " color", " is", " the", " cro", "ss", "?"]
    assert pieces_of_words(frozenset({"cross"}), pieces) == [4, 5]
    assert pieces_of_words(frozenset({"what"}), pieces) == [0]
    assert pieces_of_words(frozenset(), pieces) == []


# ------------------------------------------------------------------------------------------------- rows


def grounded(*records, names=NAMES, has_looks=True, max_tokens=1000):
    samples = []
    for record in records:
        messages, _ = read_record(record, Path())
        images = tuple(gray(40, (100, 100)) for _ in range(len(record.get("image") or [])))
        samples.append(Sample(messages, images, "x:1", read_grounding(record, len(images), messages)))
    rows = GroundingColumns(PROCESSOR, names, has_looks=has_looks)
    return SupervisedDataset(samples, PROCESSOR, max_tokens=max_tokens, grounded=rows)


TWO = {
    **llava("<image>\n<image>\nWhat is red?", "A star.", "And blue?", "A circle.", image=["a", "b"]),
    "objects": [
        {"name": "star", "colour": "red", "box": [10, 10, 30, 30]},
        {"name": "circle", "colour": "blue", "box": [70, 70, 90, 90], "picture": 1},
    ],
    "looks": [
        {"reply": 0, "at": 2, "objects": [0], "words": ["red"]},
        {"reply": 1, "at": 9, "objects": [0, 1], "words": ["blue"]},
    ],
}


def gazes(row):
    """(what was said up to the gazing token, what is seen, numbers of visual tokens) of each gaze."""
    ids = row["input_ids"].tolist()
    visual = [position for position, token in enumerate(ids) if token == PROCESSOR.image_token_id]
    found = []
    for position, seen in zip(row["gaze_positions"].tolist(), row["gaze_seen"], strict=True):
        places = seen.nonzero().flatten().tolist()
        text = PROCESSOR.tokenizer.decode([ids[place] for place in places if place not in visual])
        said = PROCESSOR.tokenizer.decode(ids[: position + 1]).rsplit("assistant\n", 1)[-1]
        found.append((said, text.strip(), [visual.index(place) for place in places if place in visual]))
    return found


def test_gazes_stand_before_what_is_said_next():
    row = grounded(TWO)[0]
    assert gazes(row) == [
        ("A", "red", []),
        ("A", "", [0]),
        ("A circle.", "blue", []),
        ("A circle.", "", [0, N + 3]),
    ]
    assert row["gaze_is_reminder"].tolist() == [True, False, True, False]


def test_each_image_has_its_cells():
    classes = grounded(TWO)[0]["cell_classes"]
    assert classes.shape == (2, 128 // CELL_PX, 128 // CELL_PX)
    assert classes[0].unique().tolist() == [EMPTY, 1] and classes[1].unique().tolist() == [EMPTY, 2]
    unknown = grounded({key: value for key, value in TWO.items() if key not in ("objects", "looks")})[0]
    assert (unknown["cell_classes"] == IGNORED).all() and not len(unknown["gaze_positions"])


def test_of_what_was_cut_off_there_are_no_gazes():
    whole = grounded(TWO)[0]
    end = int(whole["gaze_positions"][2])  # within the second reply
    row = grounded(TWO, max_tokens=end)[0]
    assert row["gaze_positions"].tolist() == whole["gaze_positions"].tolist()[:2]
    assert row["gaze_seen"].shape == (2, end)


def test_a_batch_pads_gazes_and_says_whose_they_are():
    text = {**llava("Is it blue? " * 9, "No."), "looks": [{"words": ["blue"]}]}
    rows = [grounded(TWO, text)[index] for index in (0, 1)]
    batch = Collator()(rows)
    assert batch["gaze_rows"].tolist() == [0, 0, 0, 0, 1]
    assert batch["gaze_seen"].shape == (5, batch["input_ids"].shape[1])
    assert torch.equal(batch["gaze_seen"][:4, : len(rows[0]["input_ids"])], rows[0]["gaze_seen"])
    assert len(batch["cell_classes"]) == len(batch["pixel_values"]) == 2


def test_what_is_not_asked_for_is_not_made():
    assert "gaze_seen" not in grounded(TWO, has_looks=False)[0]
    assert "cell_classes" not in grounded(TWO, names=None)[0]


def test_an_unknown_name_is_told_by_its_record():
    with pytest.raises(DataError, match="its object 'star' is not among the 1 names"):
        grounded(TWO, names=ObjectNames({"moon": 1}, {}))[0]
