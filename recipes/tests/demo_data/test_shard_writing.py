"""Shards: the same files whatever the number of workers, whole or not there, resumable, readable by the trainer."""

import io
import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fastvlm.errors import UsageError
from fastvlm.training.data.samples import open_samples
from fastvlm_recipes.demo_data import shard_writing
from fastvlm_recipes.demo_data.contact_page import ABOUT, write_pages
from fastvlm_recipes.demo_data.drawing_plan import PLAN_FILE, DrawingPlan, parse_mix
from fastvlm_recipes.demo_data.kinds import DRAWERS, draw_sample
from fastvlm_recipes.demo_data.shard_writing import draw_shards, encoded

PLAN = DrawingPlan(seed=3, split="train", num_images=50, shard_size=21, mix={"shapes": 1, "word": 1, "chart": 1})


def shards(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """PLAN by one process; fonts play no part in what is compared."""
    folder = tmp_path_factory.mktemp("drawn") / "out"
    seen = []
    assert draw_shards(folder, PLAN, 1, lambda done, total: seen.append((done, total))) == 50
    assert seen[-1] == (50, 50) and seen == sorted(seen)
    return folder


def test_every_image_has_a_record_in_llavas_format(drawn):
    assert sorted(shards(drawn)) == ["shard-00000.tar", "shard-00001.tar", "shard-00002.tar"]
    found = {}
    for path in drawn.glob("*.tar"):
        with tarfile.open(path) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}
    assert len(found) == 100
    for index in range(50):
        record = json.loads(found[f"{index:06d}.json"])
        assert record["id"] == f"{index:06d}" and record["image"] in found and record["kind"] in PLAN.mix
        turns = record["conversations"]
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
        assert turns[0]["value"].startswith("<image>\n")
        assert not any("<image>" in turn["value"] for turn in turns[1:])
        with Image.open(io.BytesIO(found[record["image"]])) as image:
            assert image.size == (256, 256) and image.mode == "RGB"


def test_two_workers_write_the_same_files(drawn, tmp_path):
    from fastvlm_recipes.demo_data.fonts import families

    one, two = tmp_path / "one", tmp_path / "two"
    small = replace(PLAN, num_images=45)
    assert families("train") == {"": ()}
    draw_shards(one, small, 1)
    draw_shards(two, small, 2)
    assert shards(one) == shards(two)


def test_the_trainer_reads_them(drawn):
    samples = open_samples([drawn])
    assert len(samples) == 50
    assert samples[7].messages[0]["content"][0] == {"type": "image"}
    assert samples[7].messages[1]["role"] == "assistant"


def test_nothing_is_drawn_twice_and_a_missing_shard_comes_back(tmp_path):
    draw_shards(tmp_path / "out", PLAN, 1)
    before = shards(tmp_path / "out")
    assert draw_shards(tmp_path / "out", PLAN, 1) == 0
    (tmp_path / "out" / "shard-00001.tar").unlink()
    assert draw_shards(tmp_path / "out", PLAN, 1) == 21
    assert shards(tmp_path / "out") == before


def test_folders_of_the_first_version_are_continued(tmp_path):
    stored = {"seed": 3, "split": "train", "num_pictures": 50, "shard_size": 21, "mix": PLAN.mix}
    (tmp_path / PLAN_FILE).write_text(json.dumps(stored))
    assert draw_shards(tmp_path, PLAN, 1) == 50
    assert json.loads((tmp_path / PLAN_FILE).read_text()) == stored


def test_more_images_may_be_asked_for(tmp_path):
    draw_shards(tmp_path / "few", replace(PLAN, num_images=30), 1)
    assert draw_shards(tmp_path / "few", PLAN, 1) == 29  # the shard that was not full, and what follows
    draw_shards(tmp_path / "all", PLAN, 1)
    assert shards(tmp_path / "few") == shards(tmp_path / "all")


def test_a_run_that_is_stopped_leaves_whole_shards_and_goes_on(tmp_path, monkeypatch):
    calls = []

    def stopped(*arguments):
        calls.append(arguments)
        if len(calls) == 30:
            raise KeyboardInterrupt
        return draw_sample(*arguments)

    monkeypatch.setattr(shard_writing, "draw_sample", stopped)
    with pytest.raises(KeyboardInterrupt):
        draw_shards(tmp_path / "out", PLAN, 1)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {PLAN_FILE, "names.json", "shard-00000.tar"}
    monkeypatch.setattr(shard_writing, "draw_sample", draw_sample)
    assert draw_shards(tmp_path / "out", PLAN, 1) == 29


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"seed": 4}, "seed 3, not 4"),
        ({"split": "test"}, "split train, not test"),
        ({"shard_size": 22}, "shard_size 21"),
        ({"mix": {"shapes": 1}}, "mix"),
        ({"num_images": 20}, "50 images"),
    ],
)
def test_another_plan_is_refused_and_nothing_changes(drawn, change, word):
    before = {path.name: path.read_bytes() for path in drawn.iterdir()}
    with pytest.raises(UsageError, match=word):
        draw_shards(drawn, replace(PLAN, **change), 1)
    assert {path.name: path.read_bytes() for path in drawn.iterdir()} == before


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        draw_shards(tmp_path, PLAN, 1)
    assert [path.name for path in tmp_path.glob("thesis*")] == ["thesis.txt"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / PLAN_FILE).write_text("{")
    with pytest.raises(UsageError, match="cannot be read"):
        draw_shards(tmp_path / "out", PLAN, 1)


def test_the_smaller_format_is_taken():
    plain = Image.new("RGB", (256, 256), (20, 30, 40))
    assert encoded(plain)[0] == "png"
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8))
    kind, content = encoded(noise)
    assert kind == "jpg" and Image.open(io.BytesIO(content)).size == (256, 256)


def test_the_pages_show_images_and_tell_how_to_draw_them_again(tmp_path):
    folder = tmp_path / "out"
    draw_shards(folder, PLAN, 1)
    write_pages(folder, PLAN)
    page, readme = ((folder / name).read_text() for name in ("index.html", "README.md"))
    assert page.count("<img") == 18 and "data:image/" in page
    question, answer = draw_sample(3, "train", 0, PLAN.mix).turns[0]
    assert question in page and answer.split("\n")[0] in page
    assert "--seed 3 --shards-of 21" in readme and "shapes=1,word=1,chart=1" in readme
    assert sum(PLAN.kinds().values()) == 50 and f"| shapes | {PLAN.kinds()['shapes']} |" in readme
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("shape=3", "Did you mean 'shapes'"),
        ("word", "above 0"),
        ("word=0", "above 0"),
        ("word=-1", "above 0"),
        ("", "''"),
    ],
)
def test_a_wrong_mix_is_refused(text, word):
    with pytest.raises(UsageError, match=word):
        parse_mix(text)


def test_a_mix_is_read_in_order():
    assert list(parse_mix("word=40, shapes=34").items()) == [("word", 40), ("shapes", 34)]


def test_the_pages_know_every_kind():
    assert set(ABOUT) == set(DRAWERS)
