"""`fastvlm ask` of PDFs, videos and images with several frames: what is taken, and where that is said."""

import json

import parrot
import pytest
from media_files import disk, pdf, video
from PIL import Image

from fastvlm.cli.frames import FrameChoice, OpenedImages, describe
from fastvlm.errors import UsageError
from fastvlm.images.frames import Frame

IMAGE = Image.new("RGB", (4, 4))


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "media"
    folder.mkdir()
    (folder / "a.pdf").write_bytes(pdf(["one", "two", "three"]))
    (folder / "a.mp4").write_bytes(video([disk("red"), disk("blue")]))
    IMAGE.save(folder / "a.gif", save_all=True, append_images=[Image.new("RGB", (4, 4), "red")])
    return folder


def test_json_says_what_was_taken(fastvlm, files, image, parrot_folder):
    def ask(*arguments):
        reply = json.loads(fastvlm("ask", *arguments, "What?", "-m", parrot_folder, "--json").out)
        assert reply["answer"] == parrot.SENTENCE and reply["usage"]["image_tokens"] == 4 * len(reply["images"])
        return [(one["kind"], one["number"], one["count"], one["time_s"]) for one in reply["images"]], reply

    assert ask(files / "a.pdf", "--pages", "2-3")[0] == [("page", 2, 3, None), ("page", 3, 3, None)]
    assert [number for _, number, _, _ in ask(image, files / "a.pdf")[0]] == [1, 1, 2, 3]
    taken, reply = ask(files / "a.mp4")
    assert taken == [("frame", 1, 20, 0.0), ("frame", 11, 20, 1.0)]
    assert reply["images"][0]["source"] == str(files / "a.mp4")
    assert ask(files / "a.gif", "--frame", "2")[0] == [("image", 2, 2, None)]
    assert ask(files / "a.gif")[0] == [("image", 1, 2, None)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("a.pdf", "--pages", "9"), "has no page 9; it has 3."),
        (("a.pdf", "--pages", "x"), "pages is 'x'; expected numbers and ranges"),
        (("a.mp4", "--pages", "1"), "is a video: it has no pages"),
        (("a.gif", "--frame", "3"), "has no frame 3; it has 2."),
        (("a.gif", "--frame", "0"), "--frame is 0; expected 1 or more."),
        (("a.gif", "--frame", "1", "--pages", "1"), "--pages and --frame were both given."),
        (("a.mp4", "--max-frames", "17"), "--max-frames is 17; expected 1 to 16."),
        (("a.mp4", "--sample", "chance"), "--sample is 'chance'; expected one of change, time."),
    ],
)
def test_what_cannot_be_taken_is_one_line(fastvlm, files, arguments, says):
    name, *options = arguments
    outcome = fastvlm("ask", files / name, "What?", *options)
    assert outcome.code != 0 and outcome.out == "" and says in outcome.error


def test_a_chat_shows_all_images_of_a_file(fastvlm, files, parrot_folder):
    lines = [f"/image {files / 'a.mp4'}", "What happens?", "/history"]
    outcome = fastvlm("chat", "-m", parrot_folder, stdin="".join(f"{line}\n" for line in lines).encode())
    assert outcome.code == 0 and f"You: {f'[{files}/a.mp4] ' * 2}What happens?" in outcome.out


def test_the_line_on_stderr():
    def frame(kind, number, count, time_s=None):
        return Frame(IMAGE, kind, number, count, time_s)

    assert describe([frame("image", 1, 1)]) is None
    assert describe([frame("image", 1, 3)]) == "frame 1 of 3; --frame N takes another"
    assert describe([frame("image", 2, None)]) == "frame 2 of many; --frame N takes another"
    assert describe([frame("page", 1, 9), frame("page", 4, 9)]) == "pages 1, 4 of 9"
    assert describe([frame("frame", 1, 90, 0.0), frame("frame", 80, 90, 62.25)]) == "2 of 90 frames, at 0:00.0, 1:02.2"


def test_a_long_name_is_cut_in_json():
    opened = OpenedImages((Frame(IMAGE),), ("data:" + "A" * 200,))
    assert len(opened.as_list()[0]["source"]) == 83


def test_a_choice_is_checked_where_it_is_made():
    with pytest.raises(UsageError, match="lower page first"):
        FrameChoice(pages="3-1")
