"""The real engine: equal to `FastVLM`, images encoded once, broken images isolated, killed and gone on."""

import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
from instant import lines_of

from fastvlm.api import FastVLM
from fastvlm.captioning import EngineCaptioner, Prompt, caption, open_captioner
from fastvlm.engine.types import SamplingParams
from fastvlm.errors import SchemaError
from fastvlm.opening import open_engine

MINI_EVAL = Path(__file__).parents[2] / "src/fastvlm/evaluation/mini_eval"
PROMPTS = ["What shape is this?", "What color is it?"]
SHAPES = {"enum": ["star", "circle", "square", "triangle"]}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captioned") / "photos"
    folder.mkdir()
    for image in sorted(MINI_EVAL.glob("*.png"))[:12]:
        (folder / image.name).write_bytes(image.read_bytes())
    return folder


@pytest.fixture(scope="module")
def engine():
    return open_engine("mini", num_slots=4, admission_ratio=math.inf)


@pytest.fixture
def captioner(engine):
    return EngineCaptioner(engine, {"checkpoint": "mini"}, SamplingParams(max_new_tokens=24))


def test_answers_equal_those_of_ask_and_each_image_is_encoded_once(photos, tmp_path, engine, captioner):
    engine.forget()
    encoded = engine.image_hits[1]
    summary = caption(str(photos), tmp_path / "out", PROMPTS, captioner)
    assert engine.image_hits[1] - encoded == 12
    assert (summary.images, summary.failed) == (12, 0)
    with FastVLM("mini") as model:
        for line in lines_of(tmp_path / "out")[:10]:
            assert line["text"] == model.ask(photos / line["id"], line["prompt"], max_new_tokens=24)
            assert line["tokens"] > 1
            assert line["ms"] > 0
            assert line["finish_reason"] == "stop"


def test_a_schema_for_each_prompt(photos, tmp_path, captioner):
    pytest.importorskip("llguidance")
    caption(str(photos), tmp_path / "out", [Prompt(PROMPTS[0], SHAPES), PROMPTS[1]], captioner)
    lines = lines_of(tmp_path / "out")
    assert {line["text"] for line in lines[::2]} <= {f'"{shape}"' for shape in SHAPES["enum"]}
    assert all(not line["text"].startswith('"') for line in lines[1::2])
    with pytest.raises(SchemaError):
        caption(str(photos), tmp_path / "two", Prompt("P", {"type": "no type"}), captioner)


def test_draws_do_not_depend_on_the_order(photos, tmp_path, engine):
    texts = []
    for out, num_images in (("one", 12), ("two", 3)):
        params = SamplingParams(max_new_tokens=12, temperature=1.5, seed=3)
        images = sorted(str(image) for image in photos.iterdir())[-num_images:]
        caption(images, tmp_path / out, PROMPTS[0], EngineCaptioner(engine, {}, params))
        texts.append({line["id"]: line["text"] for line in lines_of(tmp_path / out)})
    assert {name: texts[0][name] for name in texts[1]} == texts[1]


def test_broken_images_and_long_prompts_are_rows(photos, tmp_path, captioner):
    folder = tmp_path / "mixed"
    folder.mkdir()
    good = sorted(photos.iterdir())[0].read_bytes()
    for name, content in {"good": good, "half": good[: len(good) // 2], "empty": b"", "text": b"no image"}.items():
        (folder / f"{name}.png").write_bytes(content)
    summary = caption(str(folder), tmp_path / "out", ["What is it?", "word " * 9000], captioner)
    lines = {(line["id"], line["prompt"][:4]): line for line in lines_of(tmp_path / "out")}
    assert lines["good.png", "What"]["text"]
    assert lines["good.png", "word"]["error"].startswith("ContextLengthError: ")
    assert "damaged or truncated" in lines["half.png", "What"]["error"]
    assert "is empty" in lines["empty.png", "What"]["error"]
    assert "is not an image" in lines["text.png", "What"]["error"]
    assert summary.failed == 4


def test_an_image_that_kills_its_decoder_is_one_row(photos, tmp_path, engine, captioner, monkeypatch):
    """The decoder's process dies in the middle of one image; it is tried once, and the others are answered."""
    engine.forget()
    folder = tmp_path / "mixed"
    folder.mkdir()
    for number, image in enumerate(sorted(photos.iterdir())[:4]):
        (folder / f"{number}.png").write_bytes(image.read_bytes())
    deadly, asked = (folder / "2.png").read_bytes(), []
    from fastvlm.images.pool import _Worker

    send = _Worker.ask

    def ask(worker, job, content, timeout_s):
        if content == deadly:
            asked.append(worker)
            worker.kill()  # as a decoder that crashes
        return send(worker, job, content, timeout_s)

    monkeypatch.setattr(_Worker, "ask", ask)
    summary = caption(str(folder), tmp_path / "out", PROMPTS[0], captioner)
    errors = [line["error"] for line in lines_of(tmp_path / "out")]
    assert [error is None for error in errors] == [True, True, False, True]
    assert "ended the process that decoded" in errors[2]
    assert (summary.failed, len(asked)) == (1, 1)


def has_answers(out) -> bool:
    """True once a row of a part has been written."""
    try:
        return any(file.stat().st_size for file in out.glob("photos-0000*"))
    except FileNotFoundError:  # a journal that has become a part
        return True


def test_the_mini_killed_in_a_run_goes_on(photos, tmp_path, captioner):
    program = (
        "import sys; from fastvlm.captioning import caption, open_captioner; "
        "from fastvlm.engine.types import SamplingParams; "
        "caption(sys.argv[1], sys.argv[2], sys.argv[3:], "
        "open_captioner(params=SamplingParams(max_new_tokens=24), num_slots=2), rows_per_part=5)"
    )
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", program, photos, out, *PROMPTS])
    deadline_s = time.monotonic() + 200
    while not has_answers(out):
        assert process.poll() is None
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    process.kill()
    process.wait()
    whole = open_captioner(params=SamplingParams(max_new_tokens=24), num_slots=2)
    summary = caption(str(photos), out, PROMPTS, whole, rows_per_part=5)
    assert summary.kept > 0
    caption(str(photos), tmp_path / "at_once", PROMPTS, captioner)
    answers = [
        [(line["id"], line["prompt"], line["text"]) for line in lines_of(o)] for o in (out, tmp_path / "at_once")
    ]
    assert answers[0] == answers[1]
