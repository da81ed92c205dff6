"""Whole runs with an instant captioner: inputs, outputs, resume, errors, splits."""

import asyncio
import datetime
import json
import tarfile

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from instant import Instant, ids_of, lines_of, write_folder, write_json_lines, write_parquet, write_tar

from fastvlm.captioning import CaptionRun, Columns, ErrorLimit, Prompt, Split, caption
from fastvlm.errors import DataError, UsageError

NAMES = ["b.png", "a.jpg", "sub/c.png", "sub/deep/d.webp", "e.PNG"]
SORTED = ["a.jpg", "b.png", "e.PNG", "sub/c.png", "sub/deep/d.webp"]


def test_a_folder_has_a_line_for_each_image_and_prompt(tmp_path):
    folder = write_folder(tmp_path / "photos", [*NAMES, "notes.txt", ".hidden.png"])
    summary = caption(str(folder), tmp_path / "out", ["What?", Prompt("How?")], Instant())
    lines = lines_of(tmp_path / "out")
    assert [(line["id"], line["prompt"]) for line in lines] == [(n, p) for n in SORTED for p in ("What?", "How?")]
    assert lines[0] == {
        "id": "a.jpg",
        "prompt": "What?",
        "text": "What? 6",
        "error": None,
        "finish_reason": "stop",
        "tokens": 3,
        "ms": 1.5,
        "input": None,
    }
    assert [file.name for file in sorted((tmp_path / "out").iterdir())] == [
        "inputs.json",
        "photos-00000.jsonl",
        "run.json",
    ]
    assert (summary.images, summary.failed, summary.tokens, summary.unused) == (5, 0, 30, {".txt": 1})


def test_list_files_json_lines_and_tar_shards(tmp_path):
    write_folder(tmp_path, ["x.png", "y.png"])
    (tmp_path / "list.txt").write_text(f"x.png\n\n{tmp_path / 'y.png'}\nmissing.png\n")
    write_json_lines(tmp_path / "rows.jsonl", [{"id": "one", "image": "x.png", "url": "u", "n": 2}, {"image": "y.png"}])
    samples = {"k1.jpg": b"12", "k1.json": b'{"a": 1}', "k1.txt": b"old", "k1.npy": b"\x93\xff", "k2.png": b"1"}
    write_tar(tmp_path / "s.tar", samples)
    inputs = [str(tmp_path / name) for name in ("list.txt", "rows.jsonl", "s.tar")]
    caption(inputs, tmp_path / "out", "P", Instant(), columns=Columns(drop=["npy"]))
    lines = {line["id"]: line for line in lines_of(tmp_path / "out")}
    assert set(lines) == {"x.png", str(tmp_path / "y.png"), "missing.png", "one", "rows:1", "k1", "k2"}
    assert lines["missing.png"]["error"].startswith("ImageError: There is no file")
    assert lines["missing.png"]["text"] is None
    assert lines["one"]["input"] == {"url": "u", "n": 2}
    assert lines["k1"]["input"] == {"json": {"a": 1}, "txt": "old"}
    assert lines["k1"]["text"] == "P 2"


def test_parquet_in_and_out(tmp_path):
    further = {"score": lambda number: float("nan"), "day": lambda number: datetime.date(2026, 1, 1 + number % 30)}
    file = write_parquet(tmp_path / "train-00003.parquet", 120, note=lambda number: f"n{number}", **further)
    caption(str(file), tmp_path / "out", "P", Instant(), format="parquet", rows_per_part=50)
    names = sorted(file.name for file in (tmp_path / "out").glob("*.parquet"))
    assert names == [f"train-00003-{part:05d}.parquet" for part in range(3)]
    lines = lines_of(tmp_path / "out")
    assert [line["id"] for line in lines] == [f"r{number}" for number in range(120)]
    assert json.loads(lines[7]["input"]) == {"note": "n7", "score": None, "day": "2026-01-08"}


def test_webdataset_parts_hold_image_text_and_json(tmp_path):
    folder = write_folder(tmp_path / "photos", NAMES)
    (folder / "gone.png").write_bytes(b"")
    caption(str(folder), tmp_path / "out", ["P", "Q"], Instant(broken=["b.png"]), format="webdataset")
    with tarfile.open(tmp_path / "out/photos-00000.tar") as tar:
        content = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}
    assert content["000000000.txt"] == b"P 6"
    assert content["000000000.bin"] == b"x" * 6  # these bytes are no image
    assert "000000001.txt" not in content
    assert [line["prompt"] for line in json.loads(content["000000000.json"])["lines"]] == ["P", "Q"]
    again = Instant()
    summary = caption(str(folder), tmp_path / "out", ["P", "Q"], again, format="webdataset", is_retry=True)
    assert set(again.asked) == {"b.png"}
    assert summary.kept == 4
    with tarfile.open(tmp_path / "out/photos-00000.tar") as tar:
        assert tar.extractfile("000000001.txt").read() == b"P 6"
        assert tar.extractfile("000000001.bin").read() == b"x" * 6
        assert tar.extractfile("000000000.bin").read() == b"x" * 6


def test_sidecars_lie_as_the_images_do(tmp_path):
    folder = write_folder(tmp_path / "photos", ["a.png", "sub/b.png", "sub/b.jpg", "c.png"])
    caption(str(folder), tmp_path / "out", "P", Instant(broken=["c.png"]), sidecars=folder)
    assert sorted(str(file.relative_to(folder)) for file in folder.rglob("*.txt")) == [
        "a.txt",
        "sub/b.jpg.txt",
        "sub/b.png.txt",
    ]
    assert (folder / "a.txt").read_text() == "P 6\n"
    caption(str(folder), tmp_path / "two", ["P", "Q"], Instant(), sidecars=tmp_path / "texts")
    assert (tmp_path / "texts/a.2.txt").read_text() == "Q 6\n"


def test_sidecars_stay_in_their_folder(tmp_path):
    write_folder(tmp_path, ["x.png"])
    file = write_json_lines(
        tmp_path / "rows.jsonl", [{"id": "../../up", "image": "x.png"}, {"id": "/abs", "image": "x.png"}]
    )
    caption(str(file), tmp_path / "out", "P", Instant(), sidecars=tmp_path / "texts")
    assert sorted(file.name for file in (tmp_path / "texts").iterdir()) == ["abs.txt", "up.txt"]


def test_a_second_run_asks_nothing_again_and_new_images_alone(tmp_path):
    folder = write_folder(tmp_path / "photos", NAMES)
    caption(str(folder), tmp_path / "out", "P", Instant(), rows_per_part=2)
    first = lines_of(tmp_path / "out")
    again = Instant()
    assert caption(str(folder), tmp_path / "out", "P", again, rows_per_part=2).kept == 5
    assert again.asked == []
    assert lines_of(tmp_path / "out") == first
    write_folder(folder, ["aa.png", "sub/z.png"])
    (folder / "b.png").unlink()
    caption(str(folder), tmp_path / "out", "P", again, rows_per_part=2)
    assert sorted(again.asked) == ["aa.png", "sub/z.png"]  # images are fetched in any order
    assert sorted(ids_of(tmp_path / "out")) == sorted([*SORTED, "aa.png", "sub/z.png"])


def test_lines_appended_to_a_file_are_asked_later(tmp_path):
    write_folder(tmp_path, ["x.png"])
    rows = [{"id": "same", "image": "x.png"}] * 3  # ids need not be unique
    file = write_json_lines(tmp_path / "rows.jsonl", rows)
    caption(str(file), tmp_path / "out", "P", Instant(), rows_per_part=2)
    write_json_lines(file, [*rows, {"id": "new", "image": "x.png"}])
    again = Instant()
    caption(str(file), tmp_path / "out", "P", again, rows_per_part=2)
    assert again.asked == ["new"]
    assert ids_of(tmp_path / "out") == ["same"] * 3 + ["new"]


def test_a_changed_input_is_refused(tmp_path):
    write_folder(tmp_path, ["x.png"])
    file = write_json_lines(tmp_path / "rows.jsonl", [{"id": str(number), "image": "x.png"} for number in range(5)])
    caption(str(file), tmp_path / "out", "P", Instant())
    write_json_lines(file, [{"id": "0", "image": "x.png"}, {"id": "other", "image": "x.png"}])
    summary = caption(str(file), tmp_path / "out", "P", Instant())
    assert "has changed: row 1 was another one than 'other'" in summary.failed_shards[0]
    write_json_lines(file, [{"id": "0", "image": "x.png"}])
    assert "has 1 rows, and 5 were captioned" in caption(str(file), tmp_path / "out", "P", Instant()).failed_shards[0]
    table = write_parquet(tmp_path / "t.parquet", 3)
    caption(str(table), tmp_path / "out", "P", Instant())
    write_parquet(table, 4000)
    with pytest.raises(DataError, match=r"t.parquet had \d+ bytes when its rows were captioned"):
        caption(str(table), tmp_path / "out", "P", Instant())


@pytest.mark.parametrize(
    "other",
    [
        {"prompts": "Q"},
        {"prompts": [Prompt("P", {"type": "object"})]},
        {"rows_per_part": 7},
        {"format": "parquet"},
        {"split": Split(1, 2)},
        {"captioner": Instant(name="other")},
    ],
)
def test_another_run_in_the_same_folder_is_refused(tmp_path, other):
    folder = write_folder(tmp_path / "photos", NAMES)
    caption(str(folder), tmp_path / "out", "P", Instant())
    before = {file: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    arguments = {"prompts": "P", "captioner": Instant(), **other}
    with pytest.raises(UsageError, match="is the output of another run"):
        caption(str(folder), tmp_path / "out", **arguments)
    assert {file: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before


def test_inputs_of_the_same_name_have_parts_of_their_own(tmp_path):
    for name in "ab":
        write_folder(tmp_path / name / "photos", [f"{name}.png"])
    both = [str(tmp_path / name / "photos") for name in "ba"]
    caption(both[0], tmp_path / "out", "P", Instant())
    again = Instant()
    caption(both[::-1], tmp_path / "out", "P", again)
    assert again.asked == ["a.png"]
    assert sorted(file.name for file in (tmp_path / "out").glob("*.jsonl")) == [
        "photos-00000.jsonl",
        "photos-2-00000.jsonl",
    ]


def test_errors_are_asked_again_with_retry_alone(tmp_path):
    file = write_parquet(tmp_path / "t.parquet", 300)
    broken = [f"r{number}" for number in (0, 60, 61, 299)]
    summary = caption(str(file), tmp_path / "out", ["P", "Q"], Instant(broken=broken), rows_per_part=100)
    assert (summary.failed, summary.errors) == (4, {"ImageError": 8})
    again = Instant(broken=["r61"])
    assert caption(str(file), tmp_path / "out", ["P", "Q"], again, rows_per_part=100).kept == 300
    summary = caption(str(file), tmp_path / "out", ["P", "Q"], again, rows_per_part=100, is_retry=True)
    assert again.asked == broken
    assert (summary.images, summary.kept, summary.failed) == (4, 296, 1)
    lines = lines_of(tmp_path / "out")
    assert [line["id"] for line in lines[::2]] == [f"r{number}" for number in range(300)]
    assert [line["id"] for line in lines if line["error"]] == ["r61", "r61"]


def test_too_many_errors_stop_the_run_and_keep_what_was_done(tmp_path):
    file = write_parquet(tmp_path / "t.parquet", 1000)
    broken = Instant(broken=[f"r{number}" for number in range(0, 1000, 10)])
    with pytest.raises(DataError, match=r"\d+ of 1\d\d rows have errors \(\d+ ImageError\); the limit is 5 %"):
        caption(str(file), tmp_path / "out", "P", broken, error_limit=ErrorLimit.of("5%"))
    again = Instant()
    caption(str(file), tmp_path / "out", "P", again)
    assert ids_of(tmp_path / "out") == [f"r{number}" for number in range(1000)]
    assert len(again.asked) < 901
    with pytest.raises(DataError, match="the limit is 3 rows"):
        caption(str(file), tmp_path / "two", "P", broken, error_limit=ErrorLimit.of("3"))


@pytest.mark.parametrize("text", ["x", "-1", "101%", "1.5", "%", "nan%"])
def test_limits_that_are_none(text):
    with pytest.raises(UsageError, match="expected a number of rows"):
        ErrorLimit.of(text)


@given(
    num_splits=st.integers(1, 5),
    num_files=st.integers(1, 4),
    num_rows=st.integers(0, 9),
    rows_per_part=st.integers(1, 4),
)
def test_splits_have_every_row_once(tmp_path_factory, num_splits, num_files, num_rows, rows_per_part):
    tmp_path = tmp_path_factory.mktemp("splits")
    write_folder(tmp_path / "photos", [f"{number}.png" for number in range(num_rows + 1)])
    inputs = [str(tmp_path / "photos")]
    for file in range(num_files):
        rows = [{"id": f"{file}:{number}", "image": "photos/0.png"} for number in range(num_rows)]
        inputs.append(str(write_json_lines(tmp_path / f"f{file}.jsonl", rows)))
    for _ in range(2):
        for number in range(num_splits):
            caption(
                inputs,
                tmp_path / "out",
                "P",
                Instant(),
                split=Split(number + 1, num_splits),
                rows_per_part=rows_per_part,
            )
    expected = [f"{number}.png" for number in range(num_rows + 1)]
    expected += [f"{file}:{number}" for file in range(num_files) for number in range(num_rows)]
    assert sorted(ids_of(tmp_path / "out")) == sorted(expected)


def test_rows_with_their_own_prompts(tmp_path):
    write_folder(tmp_path, ["x.png"])
    file = write_json_lines(tmp_path / "r.jsonl", [{"image": "x.png", "q": "Who?"}, {"image": "x.png", "q": " "}])
    caption(str(file), tmp_path / "out", [], Instant(), columns=Columns(prompt="q"))
    good, bad = lines_of(tmp_path / "out")
    assert (good["prompt"], good["text"]) == ("Who?", "Who? 6")
    assert "the column 'q' is ' '; expected a prompt" in bad["error"]
    with pytest.raises(UsageError, match="prompts of their own"):
        caption(str(file), tmp_path / "two", "P", Instant(), columns=Columns(prompt="q"))


def test_a_damaged_shard_costs_no_other_shard(tmp_path):
    write_tar(tmp_path / "a.tar", {f"k{number}.png": b"x" * 600 for number in range(9)})
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[: 5 * 1536 + 700])
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no")
    write_parquet(tmp_path / "c.parquet", 4)
    summary = caption(str(tmp_path), tmp_path / "out", "P", Instant())
    assert len(summary.failed_shards) == 2
    assert "a.tar was cut" in summary.failed_shards[0]
    assert "b.parquet cannot be read as Parquet" in summary.failed_shards[1]
    assert ids_of(tmp_path / "out") == [f"k{number}" for number in range(4)] + [f"r{number}" for number in range(4)]


def test_bad_rows_are_rows(tmp_path):
    file = tmp_path / "r.jsonl"
    file.write_text('{"image": ""}\n{"image": \n7\n{"image": 4}\n')
    caption(str(file), tmp_path / "out", "P", Instant())
    errors = [line["error"] for line in lines_of(tmp_path / "out")]
    assert all(error.startswith("DataError: ") and "r.jsonl" in error for error in errors)
    assert [
        "expected bytes" in error or "not valid JSON" in error or "expected an object" in error for error in errors
    ] == [True] * 4
    write_tar(
        tmp_path / "t.tar", {"a.txt": b"no image", "b.png": b"1", "b.jpg": b"2", "._c.jpg": b"hidden", "c.png": b""}
    )
    caption(str(tmp_path / "t.tar"), tmp_path / "two", "P", Instant())
    assert [line["error"].partition(": ")[2].rpartition(": ")[2] for line in lines_of(tmp_path / "two")] == [
        "it has no image, or an empty one.",
        "it has more than one image; leave the others out with --drop jpg.",
        "it has no image, or an empty one.",
    ]


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (["nothing"], "There is no nothing; expected a folder of images"),
        (["empty"], "empty has neither images nor .tar or .parquet files"),
        (["a.csv"], r"is of no kind that is read \(.csv\)"),
        (["photos", "photos"], "is given 2 times"),
        (["nope://x/y"], "cannot be opened"),
    ],
)
def test_inputs_that_are_none(tmp_path, monkeypatch, inputs, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.csv").write_text("x")
    write_folder(tmp_path / "photos", NAMES)
    with pytest.raises(UsageError, match=words):
        caption(inputs, tmp_path / "out", "P", Instant())
    assert not (tmp_path / "out").exists()


def test_columns_that_are_none_are_refused_by_name(tmp_path):
    file = write_parquet(tmp_path / "t.parquet", 3, second=lambda number: b"y", when=lambda number: number)
    with pytest.raises(UsageError, match=r"binary columns besides the image \('second'\).*--drop second"):
        caption(str(file), tmp_path / "out", "P", Instant())
    with pytest.raises(UsageError, match=r"no column 'photo' \(--image-column\); it has 'id', 'image'"):
        caption(str(file), tmp_path / "out", "P", Instant(), columns=Columns(image="photo"))
    caption(str(file), tmp_path / "out", "P", Instant(), columns=Columns(drop=["second"]))
    table = write_json_lines(tmp_path / "t.jsonl", [{"photo": "x"}])
    with pytest.raises(UsageError, match=r"has the columns 'photo', and none of 'image'.*--image-column"):
        caption(str(table), tmp_path / "two", "P", Instant())
    tar = write_tar(tmp_path / "t.tar", {"a.png": b"x", "a.npy": b"\xff\xff"})
    with pytest.raises(UsageError, match=r"member a.npy.*--drop npy"):
        caption(str(tar), tmp_path / "three", "P", Instant())


@pytest.mark.parametrize(
    ("prompts", "words"), [([], "no prompt"), ([" "], "empty"), (["P", "P"], "twice"), ([Prompt("")], "empty")]
)
def test_prompts_that_are_none(tmp_path, prompts, words):
    folder = write_folder(tmp_path / "photos", NAMES)
    with pytest.raises(UsageError, match=words):
        CaptionRun([str(folder)], tmp_path / "out", prompts)


@pytest.mark.parametrize("number", ["0/2", "3/2", "x", "1/", "/2", "1"])
def test_splits_that_are_none(number):
    with pytest.raises(UsageError, match="expected K/N"):
        Split.of(number)


def test_a_missing_part_is_named(tmp_path):
    file = write_parquet(tmp_path / "t.parquet", 30)
    caption(str(file), tmp_path / "out", "P", Instant(), rows_per_part=10)
    (tmp_path / "out/t-00001.jsonl").unlink()
    with pytest.raises(DataError, match=r"t-00001.jsonl is missing, and later parts are there"):
        caption(str(file), tmp_path / "out", "P", Instant(), rows_per_part=10)


@pytest.mark.parametrize("damage", [b"", b"{}\n", b'{"id": "r0"}\n', b"\xff\n", b"[1]\n"])
def test_a_damaged_part_is_named(tmp_path, damage):
    file = write_parquet(tmp_path / "t.parquet", 10)
    caption(str(file), tmp_path / "out", ["P", "Q"], Instant())
    part = tmp_path / "out/t-00000.jsonl"
    part.write_bytes(part.read_bytes() + damage if damage else part.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"t-00000.jsonl is not a part of this run's output"):
        caption(str(file), tmp_path / "out", ["P", "Q"], Instant())


def test_remote_inputs(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    for name in ("d/photos/a.png", "d/photos/sub/b.png"):
        system.pipe(f"/{name}", b"12345")
    system.pipe("/d/t.parquet", write_parquet(tmp_path / "t.parquet", 5).read_bytes())
    system.pipe("/d/s.tar", write_tar(tmp_path / "s.tar", {"k.png": b"1", "k.txt": b"t"}).read_bytes())
    system.pipe("/d/l.txt", b"photos/a.png\nmemory://d/none.png\n")
    inputs = [f"memory://d/{name}" for name in ("photos", "t.parquet", "s.tar", "l.txt")]
    caption(inputs, tmp_path / "out", "P", Instant())
    lines = {line["id"]: line for line in lines_of(tmp_path / "out")}
    assert set(lines) == {
        "a.png",
        "sub/b.png",
        *(f"r{n}" for n in range(5)),
        "k",
        "photos/a.png",
        "memory://d/none.png",
    }
    assert lines["sub/b.png"]["text"] == lines["photos/a.png"]["text"] == "P 5"
    assert lines["memory://d/none.png"]["error"].startswith("ImageError: memory://d/none.png cannot be read")


def test_two_runs_of_one_split_at_a_time_are_refused(tmp_path):
    folder = write_folder(tmp_path / "photos", NAMES)

    class Nested(Instant):
        async def answer(self, row, image, prompts):
            with pytest.raises(UsageError, match="is being written by this process"):
                CaptionRun([str(folder)], tmp_path / "out", ["P"]).run(Instant())
            return await super().answer(row, image, prompts)

    caption(str(folder), tmp_path / "out", "P", Nested())


def test_progress_is_reported(tmp_path):
    file = write_parquet(tmp_path / "t.parquet", 50)
    seen = []
    caption(str(file), tmp_path / "out", "P", Instant(pause_s=0.1), on_progress=lambda now: seen.append(now.num_images))
    assert seen[-1] == 50
    assert len(seen) > 1


def test_a_notebook_has_an_event_loop_already(tmp_path):
    folder = write_folder(tmp_path / "photos", NAMES)

    async def cell():
        return caption(str(folder), tmp_path / "out", "P", Instant())

    assert asyncio.run(cell()).images == 5


def test_file_names_that_are_no_utf8(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    try:
        (folder / "caf\udce9.png").write_bytes(b"x")
    except (OSError, UnicodeError):
        pytest.skip("this file system has UTF-8 names alone")
    for kind in ("jsonl", "parquet"):
        for _ in range(2):
            caption(str(folder), tmp_path / kind, "P", Instant(), format=kind)
        assert ids_of(tmp_path / kind) == ["caf\\udce9.png"]


def test_parquet_is_read_with_its_pyarrow_schema(tmp_path):
    file = write_parquet(tmp_path / "t.parquet", 3)
    caption(str(file), tmp_path / "out", "P", Instant(broken=["r1"]), format="parquet")
    kinds = {field.name: str(field.type) for field in pq.read_schema(tmp_path / "out/t-00000.parquet")}
    assert kinds == {
        **dict.fromkeys(["id", "prompt", "text", "error", "finish_reason", "input"], "string"),
        "tokens": "int64",
        "ms": "double",
    }


def test_large_images_are_few_at_a_time(tmp_path, monkeypatch):
    """Rows whose images are in memory are limited by their bytes, too."""
    monkeypatch.setattr("fastvlm.captioning.pipeline._WINDOW_BYTES", 3000)
    monkeypatch.setattr("fastvlm.captioning.pipeline._BATCH_BYTES", 1000)
    running, most = 0, 0

    class Counting(Instant):
        async def answer(self, row, image, prompts):
            nonlocal running, most
            running += 1
            most = max(most, running)
            try:
                return await super().answer(row, image, prompts)
            finally:
                running -= 1

    write_tar(tmp_path / "t.tar", {f"{number:02d}.png": b"x" * 1000 for number in range(30)})
    caption(str(tmp_path / "t.tar"), tmp_path / "out", "P", Counting(pause_s=0.01))
    assert len(ids_of(tmp_path / "out")) == 30
    assert most <= 3
