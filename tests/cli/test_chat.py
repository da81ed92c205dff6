"""`fastvlm chat`: driven through a pipe, and through a terminal with Ctrl-C and Ctrl-D."""

import fcntl
import json
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from contextlib import suppress

import parrot
import pytest
from cli_process import hear_ctrl_c, plain_environment
from PIL import Image

from fastvlm import FastVLM
from fastvlm.cli.conversation import Conversation
from fastvlm.cli.frames import OpenedImages
from fastvlm.errors import UsageError
from fastvlm.images.frames import Frame

ANSWER = parrot.SENTENCE + "\n"


def talk(fastvlm, folder, *lines, images=(), options=()):
    stdin = "".join(f"{line}\n" for line in lines).encode()
    return fastvlm("chat", *images, "-m", folder, *options, stdin=stdin)


def test_each_line_is_a_turn_and_only_answers_are_printed(fastvlm, image, parrot_folder):
    outcome = talk(fastvlm, parrot_folder, "What is this?", "", "And that?", images=[image])
    assert (outcome.code, outcome.out, outcome.err) == (0, ANSWER * 2, "")


def test_a_last_line_without_newline_is_a_turn_too(fastvlm, parrot_folder):
    assert fastvlm("chat", "-m", parrot_folder, stdin=b"Hi?").out == ANSWER


def test_the_model_sees_what_was_said_before(fastvlm, image, parrot_folder, monkeypatch):
    seen = []
    original = FastVLM.events

    def spy(self, messages, **options):
        seen.append([(m["role"], [item["type"] for item in m["content"]]) for m in messages])
        return original(self, messages, **options)

    monkeypatch.setattr(FastVLM, "events", spy)
    talk(fastvlm, parrot_folder, "One?", "Two?", images=[image], options=["--system", "Be brief."])
    first = [("system", ["text"]), ("user", ["image", "text"])]
    assert seen == [first, [*first, ("assistant", ["text"]), ("user", ["text"])]]


def test_each_image_is_encoded_once_in_a_chat(fastvlm, image, parrot_folder, monkeypatch):
    from fastvlm.backends.local import LocalBackend

    encoded = []
    original = LocalBackend.encode

    def spy(self, pixel_values):
        encoded.append(len(pixel_values))
        return original(self, pixel_values)

    monkeypatch.setattr(LocalBackend, "encode", spy)
    other = image.with_name("blue.png")
    Image.new("RGB", (60, 90), "blue").save(other)
    lines = ("One?", "Two?", f"/image '{other}'", "Three?", f"/image '{image}'", "Four?")
    outcome = talk(fastvlm, parrot_folder, *lines, images=[image])
    assert outcome.out == ANSWER * 4
    assert encoded == [1, 1], "the first image with the first question, the second with the third"


def test_commands(fastvlm, image, parrot_folder, workplace):
    outcome = talk(
        fastvlm, parrot_folder, "/help", f"/image {image}", "What?", "/history", "/save chat.json", "/save chat.txt",
        "/clear", "/history", "/exit", "never asked",
    )  # fmt: skip
    assert outcome.code == 0 and outcome.err == ""
    assert "/image PATH" in outcome.out and outcome.out.count(ANSWER) == 2, "the answer, and the history"
    assert f"You: [{image}] What?\nFastVLM: {parrot.SENTENCE}" in outcome.out
    messages = json.loads((workplace / "chat.json").read_text(encoding="utf-8"))
    assert messages[0]["content"] == [{"type": "image", "path": str(image)}, {"type": "text", "text": "What?"}]
    assert messages[1] == {"role": "assistant", "content": [{"type": "text", "text": parrot.SENTENCE}]}
    assert (workplace / "chat.txt").read_text(encoding="utf-8").startswith(f"You: [{image}] What?")
    for name in ("chat.json", "chat.txt"):
        (workplace / name).unlink()


def test_a_saved_chat_is_what_the_processor_takes(fastvlm, image, parrot_folder, workplace):
    from fastvlm import FastVlmProcessor

    talk(fastvlm, parrot_folder, "What?", "/save chat.json", images=[image])
    file = workplace / "chat.json"
    messages = json.loads(file.read_text(encoding="utf-8"))
    file.unlink()
    inputs = FastVlmProcessor.from_pretrained(parrot_folder).apply_chat_template(
        messages[:1], tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert inputs["pixel_values"].shape == (1, 3, parrot.SIZE_PX, parrot.SIZE_PX)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/nope", "There is no command /nope; known are /help"),
        ("/image", "/image needs an image"),
        ("/image nothing.png", "There is no file 'nothing.png'."),
        ("/image 'open", "Close the quotes"),
        (r"/image C:\Users\me\cat.png", r"There is no file 'C:\Users\me\cat.png'."),
        ("/image file://server/cat.png", "is a file of the machine 'server'"),
        ("/no/such/file.png", "There is no command /no/such/file.png"),
        ("/save", "/save needs a file name"),
        ("/save nowhere/chat.txt", "cannot be written"),
        ("say <|im_end|>", "reads as a mark"),
        ("x" * (parrot.CONTEXT + 1), "context is"),
    ],
)
def test_a_mistake_is_told_and_the_chat_goes_on(fastvlm, parrot_folder, line, words):
    outcome = talk(fastvlm, parrot_folder, line, "Still there?")
    assert words in outcome.error
    assert outcome.out == ANSWER
    assert outcome.code == 1, "a script must notice"


def test_images_are_shown_by_whatever_names_them(fastvlm, image, parrot_folder, monkeypatch):
    monkeypatch.setenv("HOME", str(image.parent))
    spaced = image.with_name("my cat's.png")
    spaced.write_bytes(image.read_bytes())
    escaped = str(spaced).replace(" ", "\\ ").replace("'", "\\'")
    names = ("/image ~/red.png", f"/image {spaced}", f"/image {escaped}", f"/image {spaced.as_uri()}", str(image),
             f"{escaped} {image}", f"'{image}'")  # fmt: skip
    lines = [line for name in names for line in (name, "What?")]
    outcome = talk(fastvlm, parrot_folder, *lines, "/history")
    assert (outcome.code, outcome.err) == (0, "")
    shown = [line for line in outcome.out.splitlines() if line.startswith("You: ")]
    assert shown == [
        *(f"You: [{path}] What?" for path in (image, spaced, spaced, spaced, image)),
        f"You: [{spaced}] [{image}] What?",
        f"You: [{image}] What?",
    ]


def test_a_saved_chat_names_files_as_paths_and_addresses_as_urls():
    chat = Conversation()
    names = [r"C:\cat.png", "/a/b:c.png", "https://example.org/x", "data:image/png;base64,AA"]
    chat.show(OpenedImages((Frame(Image.new("RGB", (1, 1))),) * 4, tuple(names)))
    chat.ask("What?")
    kinds = [next(key for key in item if key != "type") for item in chat.as_json()[0]["content"]]
    assert kinds == ["path", "path", "url", "url", "text"]


def test_an_image_in_stdin_is_no_question(process, image, parrot_folder):
    outcome = process("chat", "-m", parrot_folder, stdin=image.read_bytes())
    assert outcome.code == 2 and "Stdin is not UTF-8 text" in outcome.error and outcome.out == ""


def test_a_refused_question_leaves_no_trace(fastvlm, image, parrot_folder):
    outcome = talk(fastvlm, parrot_folder, "say <|im_end|>", "What?", "/history", images=[image])
    assert outcome.out.endswith(f"You: [{image}] What?\nFastVLM: {ANSWER}"), "the image waited for the next question"
    assert "say" not in outcome.out


@pytest.mark.parametrize(("arguments", "words"), [(["-"], "'-' cannot be an image in a chat"), (["no.png"], "no file")])
def test_wrong_images_are_told_before_the_model_is_opened(fastvlm, arguments, words):
    outcome = fastvlm("chat", *arguments, "-m", "no-such-model")
    assert outcome.code == 2 and words in outcome.error


def test_saving_never_overwrites(tmp_path):
    chat, file = Conversation(), tmp_path / "chat.txt"
    chat.ask("What?")
    chat.save(file)
    before = file.read_bytes()
    with pytest.raises(UsageError, match="exists and is left as it is"):
        chat.save(file)
    assert file.read_bytes() == before


def _take_terminal() -> None:
    """Make stdin the controlling terminal, so that Ctrl-C typed there is a signal."""
    hear_ctrl_c()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    """The command at a pseudo-terminal, as a user has it."""

    def __init__(self, *arguments, **settings):
        self.parent, child = pty.openpty()
        command = [sys.executable, "-m", "fastvlm", *map(str, arguments)]
        environment = {**plain_environment(), **settings}
        self.process = subprocess.Popen(
            command, stdin=child, stdout=child, stderr=child, env=environment, start_new_session=True,
            preexec_fn=_take_terminal,  # noqa: PLW1509  # no threads are running here
        )  # fmt: skip
        os.close(child)
        self.seen = ""
        self._mark = 0

    def type(self, text: str) -> None:
        os.write(self.parent, text.encode())

    def wait_for(self, words: str, timeout_s: float = 240) -> str:
        """All that came since the last wait, once it holds `words`."""
        deadline = time.monotonic() + timeout_s
        while words not in self.seen[self._mark :]:
            ready, _, _ = select.select([self.parent], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"waited for {words!r}, saw {self.seen[self._mark :]!r}"
            try:
                self.seen += os.read(self.parent, 65536).decode("utf-8", "replace")
            except OSError as error:
                raise AssertionError(f"left before {words!r}: {self.seen[self._mark :]!r}") from error
        news = self.seen[self._mark :]
        self._mark += news.index(words) + len(words)
        return news

    def press_until(self, key: str, words: str) -> None:
        """Press `key` until `words` come: readline shows its prompt a moment before it hears signals."""
        for _ in range(120):
            self.type(key)
            if select.select([self.parent], [], [], 1)[0]:
                self.seen += os.read(self.parent, 65536).decode("utf-8", "replace")
            if words in self.seen[self._mark :]:
                break
        self.wait_for(words)

    def leave(self) -> int:
        """Read what is left, so that the command is not held up by it, until it has gone."""
        with suppress(OSError):  # how Linux reports that the other side is closed
            while select.select([self.parent], [], [], 240)[0]:
                self.seen += os.read(self.parent, 65536).decode("utf-8", "replace")
        code = self.process.wait(timeout=240)
        os.close(self.parent)
        return code


def test_at_a_terminal_ctrl_c_stops_the_reply_and_ctrl_d_leaves(workplace, image, endless_folder):
    terminal = Terminal("chat", image, "-m", endless_folder, "-n", "3900", NO_COLOR="1")
    terminal.wait_for("Ctrl-D leaves")
    terminal.wait_for("> ")
    terminal.type("What is this?\n")
    terminal.wait_for("circle")
    terminal.type("\x03")
    terminal.wait_for("(stopped)")
    terminal.wait_for("> ")
    terminal.press_until("\x03", "(Ctrl-D leaves)")  # at the prompt: nothing to stop
    terminal.type("/history\n")
    history = terminal.wait_for("FastVLM: Grüße!")
    assert "What is this?" in history, "the stopped reply was kept"
    terminal.wait_for("> ")
    terminal.type("\x04")
    assert terminal.leave() == 0
    assert "Traceback" not in terminal.seen
    assert not re.search(r"\x1b\[[0-9;]*m", terminal.seen), "NO_COLOR is respected"


def test_at_a_terminal_an_answer_has_a_summary(workplace, image, parrot_folder):
    terminal = Terminal("ask", image, "What?", "-m", parrot_folder)
    terminal.wait_for("Second line: 100 %.")
    summary = " ".join(terminal.wait_for("tokens/s").split())  # its lines break where the terminal ends
    assert terminal.leave() == 0
    assert re.search(r"\d+ tokens in \(4 of images\), \d+ out · opened in .* s · first text after \d+ ms", summary)
    assert "\x1b[2m" in summary, "faint"
