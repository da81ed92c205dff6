"""webdataset's shards: members with one stem are a record, read by offset."""

import io
import json
import tarfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from training_files import llava, openai, png, write_tar

from fastvlm.errors import DataError
from fastvlm.images import open_image
from fastvlm.training.data.messages import read_record
from fastvlm.training.data.samples import open_samples
from fastvlm.training.data.tar_shards import CAPTION_QUESTIONS, ImageInTar, TarShard, caption_messages

TURNS = json.dumps(openai("Hi", "Ho"))


def shard(tmp_path, members, **kind):
    return TarShard(write_tar(tmp_path / "s.tar", members, **kind))


def gray_levels(images):
    return [open_image(image).getpixel((0, 0))[0] for image in images]


def test_members_with_one_stem_are_a_record(tmp_path):
    samples = open_samples(
        [
            write_tar(
                tmp_path / "s.tar",
                {
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
    assert [gray_levels(sample.images) for sample in samples] == [[7], [8], []]
    assert [(m.origin, m.reason) for m in samples.unused] == [
        (f"{tmp_path}/s.tar:a/y.cls", "nothing is learned from members of the kind 'cls'")
    ]
    assert samples[0].messages[1]["content"][0]["text"] == "Seven."


def test_numbered_images_stand_in_their_order(tmp_path):
    members = {f"x.{number}.jpg": png(number) for number in (10, 2, 0)}
    members["x.json"] = json.dumps(llava("<image><image><image>", "Three."))
    record = shard(tmp_path, members).record(0)
    assert gray_levels(record["images"]) == [0, 2, 10]


def test_a_caption_gets_a_question_that_never_changes(tmp_path):
    members = {}
    for number in range(200):
        members |= {
            f"{number}.png": png(number),
            f"{number}.txt": f"Gray {number}.\n",
            f"{number}.json": '{"width": 3, "url": "a.b"}',
        }
    source = shard(tmp_path, members)
    seen = [read_record(source.record(index), tmp_path) for index in range(200)]
    kinds = [[item["type"] for item in messages[0]["content"]] for messages, _ in seen]
    assert 60 < kinds.count(["image", "text"]) < 140 and kinds.count(["text", "image"]) == 200 - kinds.count(
        ["image", "text"]
    )
    texts = {item["text"] for messages, _ in seen for item in messages[0]["content"] if item["type"] == "text"}
    assert texts == set(CAPTION_QUESTIONS)
    assert [messages[1]["content"][0]["text"] for messages, _ in seen] == [f"Gray {n}." for n in range(200)]
    assert caption_messages("A.", "17") == caption_messages("A.", "17")


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"x.png": b"1"}, "no .json with 'conversations' or 'messages', and no .txt"),
        ({"x.json": '{"width": 3}', "x.png": b"1"}, "and no .txt with a caption"),
        ({"x.txt": "A cat."}, "a caption and 0 images; expected one"),
        ({"x.json": "{"}, "its .json is not valid JSON"),
        ({"x.json": "[1]"}, "its .json is a list"),
        ({"x.txt": b"\xff", "x.png": b"1"}, "its .txt is not UTF-8"),
        ({"x.txt": "A.", "x.json": TURNS, "x.png": b"1"}, "turns in its .json and a caption in its .txt"),
        ({"x.txt": "A.", "x.png": b"1", "x.jpg": b"1"}, "x.jpg: it is a second image in the same place"),
        ({"x.json": TURNS, "x.JSON": TURNS}, "x.JSON: it is a second .json"),
        ({"x.json": TURNS, "x.0.png": b"1", "x.00.jpg": b"1"}, "x.00.jpg: it is a second image"),
        ({"x.json": TURNS, "x.heic": b"1"}, "x.heic: the kind 'heic' cannot be read; known are .json, .txt, .jpg"),
        ({"x.json": TURNS, "x.npy": b"1"}, "or give --ignore npy"),
        ({"x.json": TURNS, "x": b"1"}, "x: it has no kind after a dot"),
        ({"x.json": "", "x.txt": "A.", "x.png": b"1"}, "x.json: it is empty"),
        ({"x.json": TURNS, "x.json.gz": b"1"}, "x.json.gz: the kind 'json.gz' cannot be read"),
        (
            {"img.v2.json": TURNS, "img.v2.png": b"1"},
            "img.v2.json: the key ends at the first dot, so this is the kind 'v2.json' of 'img'; write the key",
        ),
        ({"2024.01.05.png": b"1", "2024.01.06.png": b"1", "2024.json": TURNS}, "the kind '01.05.png' of '2024'"),
        ({"0.5.png": b"1", "0.5.json": TURNS, "0.7.png": b"1", "0.7.json": TURNS}, "the kind '5.json' of '0'"),
        ({f"x.{letter}": b"1" for letter in "abcde"}, "; and 2 more"),
    ],
)
def test_records_that_are_not_whole_say_why(tmp_path, members, words):
    with pytest.raises(DataError) as caught:
        shard(tmp_path, members).record(0)
    assert words in str(caught.value)


def test_a_second_member_of_one_name_is_refused(tmp_path):
    """What `tar -r` appends replaces nothing: which of both is meant cannot be known."""
    members = {"x.json": TURNS, "x.png": png(1)}
    path = write_tar(write_tar(tmp_path / "s.tar", members), {"x.json": TURNS, "y.json": TURNS}, "a")
    source = TarShard(path)
    with pytest.raises(DataError, match=r"x\.json: it is a second \.json"):
        source.record(0)
    assert source.record(1) == json.loads(TURNS)


def test_links_and_sparse_files_are_refused(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, kind in (("x.png", tarfile.SYMTYPE), ("y.png", tarfile.LNKTYPE), ("z.png", tarfile.GNUTYPE_SPARSE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "" if kind == tarfile.GNUTYPE_SPARSE else "elsewhere.png"
            tar.addfile(member)
        folder = tarfile.TarInfo("folder.png")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    source = TarShard(tmp_path / "s.tar")
    assert len(source) == 3 and not source.unused
    for index in range(3):
        with pytest.raises(DataError, match="it is a link, a device or a sparse file"):
            source.record(index)


def test_hidden_files_are_in_no_record_and_listed(tmp_path):
    members = {"a/._x.png": b"1", ".DS_Store": b"1", "x.json": TURNS, "x.cls": "3"}
    source = shard(tmp_path, members)
    assert [member.origin for member in source.unused] == [f"{tmp_path}/s.tar:{n}" for n in members if n != "x.json"]
    assert "begins with a dot" in source.unused[0].reason
    with pytest.raises(DataError, match=r"found no record.*Not used: .*x\.cls \(nothing is learned.*; 1 in all"):
        open_samples([write_tar(tmp_path / "t.tar", {"x.cls": "3"})])


def test_kinds_and_names_may_be_ignored(tmp_path):
    members = {"x.json": TURNS, "x.seg.png": png(1), "x.txt": "A.", "README": "Hi", "x.CLS": "3"}
    path = write_tar(tmp_path / "s.tar", members)
    [sample] = open_samples([path], ignored=["seg.png", "txt", "README"])
    assert sample.images == () and sample.messages[1]["content"][0]["text"] == "Ho"
    with pytest.raises(DataError, match=r"seg\.png"):
        open_samples([path], ignored=["txt", "README"])[0]


def num_members(source, index, told):
    """Of a good record those that it was made of, of a bad one, which stops a run, all."""
    try:
        return 1 + len(source.record(index).get("images", ()))
    except DataError:
        return sum(name.startswith(f"{source.origin(index)}.") for name in told)


NAMES = st.sampled_from(["x", "y", "0", "x.", ".x", "a/x", "x.v2", "x.5", ".", "x.0"])
KINDS = st.sampled_from(["json", "txt", "png", "0.png", "heic", "cls", "", "JSON", "png.png"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(names=st.lists(st.tuples(NAMES, KINDS).map(".".join), max_size=6))
def test_every_member_is_used_or_told(tmp_path, names):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for number, name in enumerate(names):
            member = tarfile.TarInfo(name)
            content = TURNS.encode() if name.lower().endswith("json") else f"member {number}".encode()
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    source = TarShard(tmp_path / "s.tar")
    unused = [member.origin for member in source.unused]
    told = [f"{tmp_path}/s.tar:{name}" for name in names if f"{tmp_path}/s.tar:{name}" not in unused]
    num_used = sum(num_members(source, index, told) for index in range(len(source)))
    assert num_used + len(unused) == len(names)


def test_a_compressed_or_cut_shard_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read as an uncompressed tar"):
        shard(tmp_path, {"x.txt": "A"}, mode="w:gz")
    path = write_tar(tmp_path / "cut.tar", {"x.png": b"1" * 2000, "y.png": b"1" * 2000})
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match="cut"):
        TarShard(path)


def test_an_image_is_read_in_part_or_whole(tmp_path):
    write_tar(tmp_path / "s.tar", {"x.png": b"abcdef", "y.png": b"ghi"})
    first = ImageInTar(tmp_path / "s.tar", 512, 6)
    assert (first.read(), first.read(3), first.read(100)) == (b"abcdef", b"abc", b"abcdef")
    (tmp_path / "s.tar").unlink()
    with pytest.raises(OSError, match="cannot be read any more"):
        first.read()
