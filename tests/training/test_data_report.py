"""What a dry run tells: bad records by origin and reason, lengths, what is supervised."""

import json

import pytest
from training_files import N, llava, processor, save_images, write_lines, write_tar

from fastvlm.images import ImageLimits
from fastvlm.training.data.dataset import SupervisedDataset
from fastvlm.training.data.report import BINS, LengthSummary, RenderedSample, check_data
from fastvlm.training.data.samples import open_samples

PROCESSOR = processor()


def check(path, max_tokens=1000, **options):
    samples = open_samples([path])
    return check_data(samples, SupervisedDataset(samples, PROCESSOR, max_tokens=max_tokens), **options)


@pytest.fixture
def mixed(tmp_path):
    save_images(tmp_path, 1, 2)
    (tmp_path / "bad.png").write_bytes(b"no image")
    return write_lines(
        tmp_path / "x.jsonl",
        llava("<image>\nWhat?", "A square.", image="1.png"),  # 1
        llava("Hi", "Ho", "Why?", "So."),
        llava("<image>\nWhat?", "A.", image="gone.png"),  # 3
        "{",
        llava("<image> or <image>", "B.", image=["1.png", "2.png"]),  # 5
        llava("<image>\nWhat?", "A.", image="bad.png"),
        llava("Hi " * 500, "Ho"),  # 7
        llava("Hi", "Ho " * 500),
    )


def test_bad_records_are_told_by_origin_and_reason(mixed):
    report = check(mixed)
    reasons = {sample.origin.rpartition(":")[2]: sample.reason for sample in report.bad}
    assert list(reasons) == ["3", "4", "6", "7"]
    assert reasons["3"] == f"image 1: there is no file {mixed.parent}/gone.png; is images_in right?"
    assert reasons["4"].startswith("it is not valid JSON")
    assert "is not an image that can be opened" in reasons["6"] and reasons["6"].startswith("image 1: ")
    assert "none of the first 1000 is the assistant's. Raise max_tokens" in reasons["7"]
    assert [sample.index for sample in report.bad] == [2, 3, 5, 6]
    assert not report.is_good and list(report.good) == [0, 1, 4, 7]


def test_what_is_counted(mixed):
    report = check(mixed)
    good = SupervisedDataset(open_samples([mixed]).chosen(report.good), PROCESSOR, max_tokens=1000)
    rows = [good[index] for index in range(len(good))]
    assert (report.num_samples, report.num_images, report.num_text_only) == (8, 3, 2)
    assert report.num_tokens == sum(len(row["input_ids"]) for row in rows) == sum(good.lengths())
    assert report.num_supervised_tokens == sum(int((row["labels"] != -100).sum()) for row in rows)
    assert report.too_long == [f"{mixed}:8"]
    assert report.lengths.maximum > 1000 and report.lengths.minimum == min(len(row["input_ids"]) for row in rows)


def test_three_samples_of_different_kinds_are_shown(mixed):
    shown = check(mixed).rendered
    assert [sample.origin.rpartition(":")[2] for sample in shown] == ["1", "2", "5"]
    begin = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    assert shown[0].text() == (
        f"{begin}<image x{N}>\nWhat?<|im_end|>\n<|im_start|>assistant\n[[A square.<|im_end|>]]\n"
    )
    assert [text for text, is_supervised in shown[1].parts if is_supervised] == ["Ho<|im_end|>", "So.<|im_end|>"]
    assert f"<image x{N}>\nor\n<image x{N}><|im_end|>" in shown[2].text()


def test_the_text_lists_twenty_and_the_dictionary_all(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", llava("Hi", "Ho"), *[llava("Hi")] * 25)
    report = check(path)
    lines = report.text().splitlines()
    assert lines[0] == "26 samples: 1 good, 25 bad"
    assert lines.count("    and 5 more (--json lists all)") == 1
    assert f"    {path}:21: it has no assistant's turn; there is nothing to learn from it" in lines
    assert not any(f"{path}:22: " in line for line in lines)
    told = json.loads(json.dumps(report.to_dict()))
    assert [bad["origin"] for bad in told["bad"]] == [f"{path}:{line}" for line in range(2, 27)]
    assert told["is_good"] is False and told["lengths"]["median"] == report.lengths.median
    assert told["rendered"][0]["parts"][1] == ["Ho<|im_end|>", True]


def test_a_good_set_and_one_without_a_good_record(tmp_path):
    report = check(write_lines(tmp_path / "x.jsonl", llava("Hi", "Ho")))
    assert report.is_good and "bad:" not in report.text() and report.text().startswith("1 samples: 1 good, 0 bad")
    none = check(write_lines(tmp_path / "y.jsonl", "{"))
    assert none.lengths is None and none.rendered == [] and list(none.good) == []
    assert "tokens a sample" not in none.text()


def test_a_very_long_sample_is_shown_in_part(tmp_path):
    report = check(write_lines(tmp_path / "x.jsonl", llava("Hi", "Ho " * 2000)), max_tokens=100_000)
    assert "(6" in report.text() and len(report.text()) < 2500


def test_limits_of_images_are_the_processors(mixed, monkeypatch):
    monkeypatch.setattr(PROCESSOR.image_processor, "image_limits", ImageLimits(max_pixels=99))
    reasons = {sample.origin.rpartition(":")[2]: sample.reason for sample in check(mixed).bad}
    assert "the limit is 99" in reasons["1"] and "the limit is 99" in reasons["5"]


def test_progress_is_told(tmp_path):
    seen = []
    path = write_lines(tmp_path / "x.jsonl", *[llava("Hi", "Ho")] * 600)
    check(path, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(256, 600), (512, 600), (600, 600)]


def test_lengths_are_summed_up():
    summary = LengthSummary.of(list(range(1, 101)))
    assert (summary.minimum, summary.median, summary.p95, summary.maximum) == (1, 50, 95, 100)
    assert sum(summary.histogram) == 100 and len(summary.histogram) == BINS
    one = LengthSummary.of([7])
    assert (one.minimum, one.median, one.p95, one.maximum) == (7, 7, 7, 7) and one.line().strip() == "█"
    rare = LengthSummary.of([1] * 1000 + [100])
    assert rare.line() == "█" + " " * (BINS - 2) + "▁"


def test_marks_stand_around_what_is_supervised():
    sample = RenderedSample("x", (("a", False), ("b", True), ("c", False)))
    assert sample.text() == "a[[b]]c"


def test_members_that_are_not_used_are_listed(tmp_path):
    path = write_tar(tmp_path / "s.tar", {"x.json": json.dumps(llava("Hi", "Ho")), "x.cls": "3", "y.heic": b"1"})
    report = check(path)
    assert [(bad.origin, bad.reason[:8]) for bad in report.bad] == [(f"{path}:y", "y.heic: ")]
    assert f"not used: 1\n    {path}:x.cls: nothing is learned" in report.text()
    assert report.to_dict()["unused"][0]["origin"] == f"{path}:x.cls"
