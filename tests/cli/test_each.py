"""`fastvlm ask --each`: a line for each image, in order, whatever becomes of the others."""

import json
import signal
import subprocess
import time

import parrot
import pytest
from cli_process import start
from PIL import Image

from fastvlm import FastVLM
from fastvlm.cli import each


@pytest.fixture
def images(image):
    """A red, a damaged and a blue image."""
    damaged, blue = image.with_name("damaged.png"), image.with_name("blue.png")
    damaged.write_bytes(image.read_bytes()[:40])
    Image.new("RGB", (60, 90), "blue").save(blue)
    return [image, damaged, blue]


def test_each_image_has_a_line_and_the_exit_code_says_that_one_failed(fastvlm, images, parrot_folder):
    outcome = fastvlm("ask", *images, "What?", "--each", "-m", parrot_folder)
    rows = [line.split("\t") for line in outcome.out.splitlines()]
    assert [name for name, _ in rows] == [str(file) for file in images]
    assert [answer for _, answer in rows[::2]] == [parrot.SENTENCE.replace("\n", " ")] * 2
    assert rows[1][1].startswith("error: ") and "damaged.png" in rows[1][1]
    assert outcome.code == 1 and outcome.error == "1 of 3 images failed; their lines say why."


def test_json_is_an_object_a_line(fastvlm, images, parrot_folder):
    outcome = fastvlm("ask", *images, "What?", "--each", "--json", "-m", parrot_folder)
    red, damaged, blue = map(json.loads, outcome.out.splitlines())
    assert [line["source"] for line in (red, damaged, blue)] == [str(file) for file in images]
    assert red["answer"] == blue["answer"] == parrot.SENTENCE and red["usage"]["image_tokens"] == 4
    assert set(damaged) == {"model", "source", "error"} and outcome.code == 1


def test_the_order_stays_when_the_first_image_is_the_slowest(fastvlm, images, parrot_folder, monkeypatch):
    original, opened, slots = each.open_sources, [], []

    def slow(names, *rest):
        if names == [str(images[0])]:
            time.sleep(1)
        opened.append(names[0])
        return original(names, *rest)

    def spy(self, *arguments, **settings):
        slots.append(settings["num_slots"])
        make(self, *arguments, **settings)

    make = FastVLM.__init__
    monkeypatch.setattr(FastVLM, "__init__", spy)
    monkeypatch.setattr(each, "open_sources", slow)
    files = [images[0], images[2]]
    outcome = fastvlm("ask", *files, "What?", "--each", "-m", parrot_folder)
    assert outcome.code == 0 and outcome.err == ""
    assert [line.split("\t")[0] for line in outcome.out.splitlines()] == [str(file) for file in files]
    assert opened == [str(file) for file in reversed(files)], "both at the same time"
    assert slots == [2]


def test_lines_come_as_they_are_ready_and_ctrl_c_ends_the_others(workplace, images, endless_folder):
    red, damaged, blue = images
    arguments = ("ask", damaged, red, blue, "What?", "--each", "-m", endless_folder, "-n", "3500")
    with start(*arguments, stdout=subprocess.PIPE) as running:
        assert running.stdout.readline().startswith(bytes(damaged))
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=240)
        assert (running.returncode, out, err) == (130, b"", b"fastvlm: stopped: by Ctrl-C.\n")


def test_an_image_from_stdin(fastvlm, image, parrot_folder):
    outcome = fastvlm("ask", "-", image, "What?", "--each", "-m", parrot_folder, stdin=image.read_bytes())
    assert [line.split("\t")[0] for line in outcome.out.splitlines()] == ["-", str(image)]


def test_without_images_there_is_nothing_to_ask(fastvlm):
    outcome = fastvlm("ask", "What?", "--each")
    assert outcome.code == 2 and outcome.error.startswith("--each needs images.") and outcome.out == ""


def test_a_schema_that_cannot_be_enforced_is_told_once(fastvlm, images, parrot_folder):
    outcome = fastvlm("ask", *images, "What?", "--each", "-m", parrot_folder, "--json-schema", '{"type": 5}')
    assert outcome.code == 2 and "schema cannot be enforced" in outcome.error and outcome.out == ""
