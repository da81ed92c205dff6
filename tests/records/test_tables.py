"""Sets that the real `datasets` library wrote, as folders and as Parquet, are read without it."""

import sys

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from training_files import openai, png, save_images

from fastvlm.errors import DataError, ImageError, MissingExtraError, UsageError
from fastvlm.images import open_image
from fastvlm.records import tables
from fastvlm.training.data.samples import open_samples

IMAGE = {"type": "image", "text": None}
WHAT = {"type": "text", "text": "What?"}


def gray_levels(samples):
    return [[open_image(image).getpixel((0, 0))[0] for image in sample.images] for sample in samples]


@pytest.fixture(autouse=True)
def _no_tables_of_other_tests():
    yield
    for kept in (tables._mapped, tables._group_texts, tables._group_images):
        kept.cache_clear()


def hub_set(levels_each):
    """As HuggingFaceH4's and TRL's sets are: messages of parts, a list of images."""
    rows = {
        "messages": [
            [
                {"role": "user", "content": [*[IMAGE] * len(levels), WHAT]},
                {"role": "assistant", "content": [{"type": "text", "text": f"Gray {levels}."}]},
            ]
            for levels in levels_each
        ],
        "images": [[{"bytes": png(level), "path": f"{level}.png"} for level in levels] for levels in levels_each],
        "source": ["test"] * len(levels_each),
    }
    text = datasets.Value("string")
    message = {"role": text, "content": datasets.List({"type": text, "text": text})}
    columns = {"messages": datasets.List(message), "images": datasets.List(datasets.Image()), "source": text}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(columns))


LEVELS = [[1], [], [2, 3], [4], [5], [6, 7]]


def saved(tmp_path, how):
    rows = hub_set(LEVELS)
    if how == "folder":
        rows.save_to_disk(tmp_path / "set", num_shards=2)
        return tmp_path / "set", [("data-00000-of-00002.arrow", 3), ("data-00001-of-00002.arrow", 3)]
    (tmp_path / "data").mkdir()
    for number in (0, 1):
        name = f"train-{number:05d}-of-00002.parquet"
        rows.select(range(3 * number, 3 * number + 3)).to_parquet(tmp_path / "data" / name, batch_size=2)
    return tmp_path, [("data/train-00000-of-00002.parquet", 3), ("data/train-00001-of-00002.parquet", 3)]


@pytest.mark.parametrize("how", ["folder", "parquet"])
def test_a_set_is_read_as_it_was_written(tmp_path, how):
    path, files = saved(tmp_path, how)
    samples = open_samples([path])
    assert gray_levels(samples) == LEVELS
    assert [sample.messages[1]["content"][0]["text"] for sample in samples] == [f"Gray {levels}." for levels in LEVELS]
    origins = [f"{path / name}:{row}" for name, rows in files for row in range(1, rows + 1)]
    assert [sample.origin for sample in samples] == origins


def test_one_image_a_row_or_none(tmp_path):
    records = [openai("<image> What?", "A.", image={"bytes": png(9), "path": None}), openai("Hi", "Ho", image=None)]
    columns = {name: [record[name] for record in records] for name in ("messages", "image")}
    rows = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    rows.save_to_disk(tmp_path / "set")
    rows.to_parquet(tmp_path / "set.parquet")
    for path in (tmp_path / "set", tmp_path / "set.parquet"):
        assert gray_levels(open_samples([path])) == [[9], []]


def test_paths_begin_where_the_user_says(tmp_path):
    save_images(tmp_path / "images", 5, 6)
    rows = {
        "conversations": [[{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "A."}]] * 2,
        "image": ["5.png", "6.png"],
    }
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "set")
    assert gray_levels(open_samples([tmp_path / "set"], images_in=tmp_path / "images")) == [[5], [6]]
    lists = {**rows, "image": [["5.png"], ["6.png"]]}
    datasets.Dataset.from_dict(lists).save_to_disk(tmp_path / "lists")
    assert gray_levels(open_samples([tmp_path / "lists"], images_in=tmp_path / "images")) == [[5], [6]]
    structs = {**rows, "image": [{"bytes": None, "path": "5.png"}, {"bytes": None, "path": "6.png"}]}
    datasets.Dataset.from_dict(structs).to_parquet(tmp_path / "structs.parquet")
    assert gray_levels(open_samples([tmp_path / "structs.parquet"], images_in=tmp_path / "images")) == [[5], [6]]


def test_the_split_is_named_where_there_are_several(tmp_path):
    rows = hub_set(LEVELS[:2])
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "two")
    with pytest.raises(UsageError, match=f"has the splits train, test. Name one: {tmp_path}/two/train"):
        open_samples([tmp_path / "two"])
    assert len(open_samples([tmp_path / "two" / "train"])) == 2
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "one")
    assert len(open_samples([tmp_path / "one"])) == 2
    for split in ("train", "test"):
        rows.to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    with pytest.raises(UsageError, match=r"has files of test, train\. Name the files of one"):
        open_samples([tmp_path])


def test_damaged_sets_are_refused(tmp_path):
    rows = hub_set(LEVELS)
    rows.save_to_disk(tmp_path / "set", num_shards=2)
    second = tmp_path / "set" / "data-00001-of-00002.arrow"
    second.write_bytes(second.read_bytes()[:200])
    with pytest.raises(DataError, match="cannot be read as Arrow"):
        open_samples([tmp_path / "set"])
    second.unlink()
    with pytest.raises(DataError, match=f"is not complete: {second} is not there"):
        open_samples([tmp_path / "set"])
    (tmp_path / "set" / "state.json").write_text("{}")
    with pytest.raises(DataError, match="names no Arrow file"):
        open_samples([tmp_path / "set"])
    (tmp_path / "set" / "state.json").write_text("[")
    with pytest.raises(DataError, match="cannot be read"):
        open_samples([tmp_path / "set"])
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        open_samples([tmp_path / "x.parquet"])


def test_a_set_without_turns_is_refused(tmp_path):
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match="it has 'text', which would not be read; known here: conversations, messages"):
        open_samples([tmp_path / "set"])[0]


def test_bytes_of_images_are_not_read_with_the_text(tmp_path, monkeypatch):
    """A pass over lengths reads no image of a Parquet file."""
    path, _ = saved(tmp_path, "parquet")
    monkeypatch.setattr(tables, "_group_images", None)
    samples = open_samples([path])
    assert [len(sample.images) for sample in samples] == [len(levels) for levels in LEVELS]
    with pytest.raises(TypeError):
        samples[0].images[0].read()


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    hub_set(LEVELS).save_to_disk(tmp_path / "set")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"needs the package 'pyarrow'.*fastvlm\[train\]"):
        open_samples([tmp_path / "set"])


def test_large_types_are_read_too(tmp_path):
    """Other writers than `datasets` use large strings, large lists and plain bytes."""
    text = pa.large_string()
    turns = pa.large_list(pa.struct([("role", text), ("content", text)]))
    rows = pa.table(
        {
            "messages": pa.array([openai("<image> What?", "A.")["messages"]] * 2, turns),
            "images": pa.array([[png(3)], [png(4)]], pa.large_list(pa.large_binary())),
        }
    )
    pyarrow.parquet.write_table(rows, tmp_path / "x.parquet", row_group_size=1)
    assert gray_levels(open_samples([tmp_path / "x.parquet"])) == [[3], [4]]


@pytest.mark.parametrize("how", ["folder", "parquet"])
def test_an_image_is_read_in_part_or_whole_and_what_is_none_is_told(tmp_path, how):
    records = [openai("<image>", "A.", images=[{"bytes": b"abcdef", "path": None}, {"bytes": None, "path": None}])]
    rows = datasets.Dataset.from_dict({name: [record[name] for record in records] for name in ("messages", "images")})
    path = tmp_path / "x.parquet"
    if how == "folder":
        rows.save_to_disk(tmp_path / "set")
        path = tmp_path / "set"
    else:
        rows.to_parquet(path)
    source = open_samples([path])._sources[0][0]
    first, second = source.record(0)["images"]
    assert (first.read(), first.read(2)) == (b"abcdef", b"ab")
    with pytest.raises(OSError, match="has neither bytes nor a path"):
        second.read()


def test_an_image_that_is_none_is_a_bad_record(tmp_path):
    columns = {"messages": [openai("<image>", "A.")["messages"]], "image": [{"bytes": None, "path": "gone.png"}]}
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "set")
    [sample] = open_samples([tmp_path / "set"])
    with pytest.raises(ImageError, match=f"No such file or directory: '{tmp_path}/set/gone.png'"):
        open_image(sample.images[0])


def written(tmp_path, how, **columns):
    """A set of one row with these columns beside its messages; the path to open."""
    rows = datasets.Dataset.from_dict({"messages": [openai("Hi", "Ho")["messages"]], **columns})
    if how == "folder":
        rows.save_to_disk(tmp_path / "set")
        return tmp_path / "set"
    rows.to_parquet(tmp_path / "x.parquet")
    return tmp_path / "x.parquet"


@pytest.mark.parametrize("how", ["folder", "parquet"])
@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"img": ["x.png"]}, r"it has 'img' \(did you mean 'image'\?\), which would not be read"),
        ({"a.b": [3], "turn": [{"a": 3}]}, "'a.b', 'turn'.*--ignore a.b --ignore turn"),
        ({"tools": [[{"name": "x"}]]}, "it has 'tools'; FastVLM's chat template has no tools"),
        ({"video": ["x.mp4"]}, "it has 'video'"),
    ],
)
def test_columns_that_nobody_reads_are_refused(tmp_path, how, columns, words):
    with pytest.raises(DataError, match=words):
        open_samples([written(tmp_path, how, **columns)])[0]


@pytest.mark.parametrize("how", ["folder", "parquet"])
def test_all_other_columns_are_read_or_left_out(tmp_path, how):
    columns = {"system": ["Be brief."], "img": pa.nulls(1), "tools": [None], "source": ["web"], "score": [0.5]}
    objects = [{"name": "star", "box": [0.0, 0.0, 5.0, 5.0]}]
    path = written(tmp_path, how, **columns, image_path=["7.png"], objects=[objects])
    save_images(tmp_path, 7)
    [sample] = open_samples([path], images_in=tmp_path, ignored=["score"])
    assert sample.messages[0] == {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    assert sample.images == (tmp_path / "7.png",)
    assert sample.grounding.objects[0].name == "star"
