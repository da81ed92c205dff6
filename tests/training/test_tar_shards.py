"""webdataset's shards: members with one stem are a record, read by offset."""

import json

import pytest
from training_files import llava, openai, png, write_tar

from fastvlm.errors import DataError
from fastvlm.pictures import open_picture
from fastvlm.training.message_records import read_record
from fastvlm.training.samples import open_samples
from fastvlm.training.tar_shards import CAPTION_QUESTIONS, PictureInTar, caption_messages, open_shards


def shard(tmp_path, members, **kind):
    return open_shards([write_tar(tmp_path / "s.tar", members, **kind)])[0]


def grey_levels(pictures):
    return [open_picture(picture).getpixel((0, 0))[0] for picture in pictures]


def test_members_with_one_stem_are_a_record(tmp_path):
    samples = open_samples(
        [
            write_tar(
                tmp_path / "s.tar",
                {
                    "a/x.v1.png": png(0),  # of no known kind: "v1.png" is no number
                    "a/x.json": json.dumps(llava("<image>\nWhat?", "Seven.", image="lies/elsewhere.png")),
                    "a/x.png": png(7),
                    "a/y.PNG": png(8),
                    "b/x.json": json.dumps(openai("Hi", "Ho")),
                    "a/y.cls": "3",
                    "a/y.json": json.dumps(openai([{"type": "image"}, {"type": "text", "text": "?"}], "Eight.")),
                },
            )
        ]
    )
    assert [sample.origin for sample in samples] == [f"{tmp_path}/s.tar:{name}" for name in ("a/x", "a/y", "b/x")]
    assert [grey_levels(sample.pictures) for sample in samples] == [[7], [8], []]
    assert samples[0].messages[1]["content"][0]["text"] == "Seven."


def test_numbered_pictures_stand_in_their_order(tmp_path):
    members = {f"x.{number}.jpg": png(number) for number in (10, 2, 0)}
    members["x.json"] = json.dumps(llava("<image><image><image>", "Three."))
    record = shard(tmp_path, members).record(0)
    assert grey_levels(record["images"]) == [0, 2, 10]


def test_a_caption_gets_a_question_that_never_changes(tmp_path):
    members = {}
    for number in range(200):
        members |= {f"{number}.png": png(number), f"{number}.txt": f"Grey {number}.\n", f"{number}.json": '{"w": 3}'}
    source = shard(tmp_path, members)
    seen = [read_record(source.record(index), tmp_path) for index in range(200)]
    kinds = [[item["type"] for item in messages[0]["content"]] for messages, _ in seen]
    assert 60 < kinds.count(["image", "text"]) < 140 and kinds.count(["text", "image"]) == 200 - kinds.count(
        ["image", "text"]
    )
    texts = {item["text"] for messages, _ in seen for item in messages[0]["content"] if item["type"] == "text"}
    assert texts == set(CAPTION_QUESTIONS)
    assert [messages[1]["content"][0]["text"] for messages, _ in seen] == [f"Grey {n}." for n in range(200)]
    assert caption_messages("A.", "17") == caption_messages("A.", "17")


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"x.png": b"1"}, "no .json with 'conversations' or 'messages', and no .txt"),
        ({"x.json": '{"width": 3}', "x.png": b"1"}, "and no .txt with a caption"),
        ({"x.txt": "A cat."}, "a caption and 0 pictures; expected one"),
        ({"x.json": "{"}, "its .json is no JSON"),
        ({"x.json": "[1]"}, "its .json is a list"),
        ({"x.txt": b"\xff", "x.png": b"1"}, "its .txt is not UTF-8"),
    ],
)
def test_records_that_are_not_whole_say_why(tmp_path, members, words):
    with pytest.raises(DataError) as caught:
        shard(tmp_path, members).record(0)
    assert words in str(caught.value)


def test_a_compressed_or_cut_shard_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read as an uncompressed tar"):
        shard(tmp_path, {"x.txt": "A"}, mode="w:gz")
    path = write_tar(tmp_path / "cut.tar", {"x.png": b"1" * 2000, "y.png": b"1" * 2000})
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match="cut"):
        open_shards([path])


def test_a_picture_is_read_in_part_or_whole(tmp_path):
    write_tar(tmp_path / "s.tar", {"x.png": b"abcdef", "y.png": b"ghi"})
    first = PictureInTar(tmp_path / "s.tar", 512, 6)
    assert (first.read(), first.read(3), first.read(100)) == (b"abcdef", b"abc", b"abcdef")
    (tmp_path / "s.tar").unlink()
    with pytest.raises(OSError, match="cannot be read any more"):
        first.read()
