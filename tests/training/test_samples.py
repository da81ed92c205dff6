"""Files of all kinds side by side, found by looking inside; samples by index, read when they are asked for."""

import json
import pickle
import sys

import pytest
from training_files import llava, openai, png, save_images, write_lines, write_tar

from fastvlm.errors import DataError, UsageError
from fastvlm.images import open_image
from fastvlm.training.data.samples import BadRecordError, Samples, open_samples


def said(samples):
    return [sample.messages[-1]["content"][0]["text"] for sample in samples]


def numbered(path, count, start=0):
    return write_lines(path, *[llava("Hi", f"{number}") for number in range(start, start + count)])


def test_files_of_all_kinds_follow_each_other(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([llava("Hi", "array")], indent=2))
    write_lines(tmp_path / "b.json", openai("Hi", "lines in a .json"))
    write_lines(tmp_path / "c.anything", llava("Hi", "lines"))
    (tmp_path / "shards").mkdir()
    for name in ("1.tar", "0.tar"):
        write_tar(tmp_path / "shards" / name, {"x.png": png(1), "x.txt": name})
    (tmp_path / "many").mkdir()
    numbered(tmp_path / "many" / "1.jsonl", 2, start=1)
    numbered(tmp_path / "many" / "0.jsonl", 1)
    names = ("a.json", "b.json", "c.anything", "shards", "shards/1.tar", "many")
    samples = open_samples([tmp_path / name for name in names])
    assert said(samples) == ["array", "lines in a .json", "lines", "0.tar", "1.tar", "1.tar", "0", "1", "2"]
    assert samples.origin(3) == samples[3].origin == f"{tmp_path}/shards/0.tar:x"


def test_images_are_beside_the_file_or_where_the_user_says(tmp_path):
    save_images(tmp_path / "data", 1)
    save_images(tmp_path / "other", 2)
    (tmp_path / "other" / "2.png").rename(tmp_path / "other" / "1.png")
    path = write_lines(tmp_path / "data" / "x.jsonl", llava("<image>", "A.", image="1.png"))
    assert open_image(open_samples([path])[0].images[0]).getpixel((0, 0)) == (1, 1, 1)
    elsewhere = open_samples([path], images_in=tmp_path / "other")
    assert open_image(elsewhere[0].images[0]).getpixel((0, 0)) == (2, 2, 2)
    with pytest.raises(UsageError, match="There is no folder"):
        open_samples([path], images_in=tmp_path / "nowhere")


def test_indices_and_slices(tmp_path):
    samples = open_samples([numbered(tmp_path / "a.jsonl", 3), numbered(tmp_path / "b.jsonl", 4, start=3)])
    assert len(samples) == 7 and said(samples) == list("0123456")
    assert said([samples[-1], samples[-7]]) == ["6", "0"]
    assert said(samples[5:1:-2]) == ["5", "3"]
    assert said(samples[2:][1:3]) == ["3", "4"]
    assert said(samples.chosen([6, 0, 6, -1])) == ["6", "0", "6", "6"]
    assert samples.chosen([4]).origin(0) == f"{tmp_path}/b.jsonl:2"
    for index in (7, -8):
        with pytest.raises(IndexError, match="there are 7"):
            samples[index]
    assert len(Samples([])) == 0


def test_a_bad_record_is_told_by_origin_and_reason(tmp_path):
    samples = open_samples([write_lines(tmp_path / "x.jsonl", llava("Hi", "Ho"), llava("Hi"))])
    with pytest.raises(DataError) as caught:
        samples[1]
    assert str(caught.value).startswith(f"{tmp_path}/x.jsonl:2: it has no assistant's turn")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.origin) == (str(caught.value), f"{tmp_path}/x.jsonl:2")
    assert again.reason == "it has no assistant's turn; there is nothing to learn from it"


def test_a_million_records_need_little_memory(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text((json.dumps(llava("Hi", "Ho")) + "\n") * 20_000)
    source = open_samples([path])._sources[0][0]
    held = sum(sys.getsizeof(value) for value in vars(source).values())
    assert held < 20_000 * 32  # 32 MB a million


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "There is no "),
        (lambda path: path.write_bytes(b""), "begins with b''"),
        (
            lambda path: path.write_bytes(b"\x89PNG and so on"),
            r"begins with b'\\x89PNG and so '\. Expected a JSON array",
        ),
        (lambda path: path.write_text('"a text"'), "begins with"),
        (lambda path: path.mkdir(), r"has no state.json, no \*.tar, \*.parquet or \*.jsonl"),
    ],
)
def test_what_is_of_no_known_kind_is_refused(tmp_path, make, words):
    make(tmp_path / "x")
    with pytest.raises(UsageError, match=words):
        open_samples([tmp_path / "x"])


def test_nothing_is_refused(tmp_path):
    with pytest.raises(UsageError, match="No data is given"):
        open_samples([])
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(DataError, match="found no record"):
        open_samples([tmp_path / "x.json"])


def test_links_and_paths_out_of_the_folder_are_the_users_own(tmp_path):
    save_images(tmp_path / "far", 3)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "far" / "3.png")
    records = [llava("<image>", "A.", image=name) for name in ("../far/3.png", "link.png", str(tmp_path / "far/3.png"))]
    samples = open_samples([write_lines(tmp_path / "data" / "x.jsonl", *records)])
    assert [open_image(sample.images[0]).getpixel((0, 0))[0] for sample in samples] == [3, 3, 3]


def test_a_bad_record_tells_origin_and_reason_apart():
    error = BadRecordError.at("x.jsonl:3", DataError("it is not valid JSON: why"))
    for told in (error, pickle.loads(pickle.dumps(error))):
        assert (str(told), told.origin, told.reason) == (
            "x.jsonl:3: it is not valid JSON: why",
            "x.jsonl:3",
            "it is not valid JSON: why",
        )
        assert isinstance(told, DataError)


def test_a_text_alone_makes_one_as_a_loader_of_torch_does():
    error = BadRecordError("Caught it in a worker.\nx.jsonl:3: why")
    assert (error.origin, error.reason) == ("", str(error))
