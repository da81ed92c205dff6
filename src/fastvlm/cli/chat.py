"""`fastvlm chat`: a conversation about images."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastvlm.cli.choices import ModelChoice, Sampling
from fastvlm.cli.conversation import Conversation
from fastvlm.cli.failures import FAILED, report_failure
from fastvlm.cli.frames import FrameChoice, open_sources
from fastvlm.cli.image_names import file_name, split_names
from fastvlm.cli.mini_notice import SINGLE_TURN, is_shipped
from fastvlm.cli.opening import open_model
from fastvlm.cli.options import DebugOption, QuietOption, SystemOption, with_options
from fastvlm.cli.request import STDIN, check_images
from fastvlm.cli.terminal import Answers, Notes
from fastvlm.errors import FastVlmError, UsageError
from fastvlm.formats.places import checkpoint_path

if TYPE_CHECKING:
    from fastvlm.api import FastVLM

HELP = """\
/image PATH...   show images with your next question (files or URLs); a file's path alone does the same
/clear           forget everything said and shown so far
/history         print the conversation
/save FILE       write it to a new file; .json gives messages for programs
/help            this list
/exit            leave; so does Ctrl-D. Ctrl-C stops a reply and keeps the chat"""


@with_options
def chat(
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="IMAGE", help="Images, PDFs, videos to start with: files or URLs; /image adds more."),
    ] = None,
    choice: ModelChoice = ModelChoice(),  # noqa: B008  # frozen
    sampling: Sampling = Sampling(max_new_tokens=512),  # noqa: B008
    system: SystemOption = None,
    is_quiet: QuietOption = False,
    is_debug: DebugOption = False,
) -> None:
    """Chat about images: several questions, each answered with the conversation so far as context.

    Lines starting with a slash are commands (/help lists them). Ctrl-C stops a reply, Ctrl-D leaves. When stdin is
    not a terminal, each of its lines is a turn and only the answers are printed; the exit code is 1 if a turn failed.
    The shipped mini was trained for one question at a time: with it, ask each question in full.

    \b
    Examples:
      fastvlm chat street.png
      fastvlm chat                    # then: /image street.png
      printf 'How many?\\nWhich colors?\\n' | fastvlm chat shapes.png
    """
    names = [file_name(name) for name in images or []]
    if STDIN in names:
        raise UsageError("'-' cannot be an image in a chat: stdin is where the questions come from. Pass a file.")
    check_images(names)
    notes = Notes(is_quiet=is_quiet)
    conversation = Conversation(system)
    conversation.show(open_sources(names, FrameChoice(), notes))
    model, _ = open_model(choice, notes, is_debug=is_debug)
    if is_shipped(checkpoint_path(choice.name, revision=choice.revision)):
        notes.say(SINGLE_TURN)
    with model:
        failed = Chat(model, sampling, conversation, notes, is_debug=is_debug).run()
    if failed and not sys.stdin.isatty():
        raise typer.Exit(FAILED)


class Chat:
    """The chat loop: reads lines, runs commands, prints answers."""

    def __init__(
        self, model: FastVLM, sampling: Sampling, conversation: Conversation, notes: Notes, *, is_debug: bool
    ) -> None:
        self.model, self.sampling, self.conversation = model, sampling, conversation
        self.notes, self.is_debug = notes, is_debug
        self.answers = Answers()
        self._is_interactive = sys.stdin.isatty()
        self._num_failures = 0
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/image": self._image,
            "/clear": self._clear,
            "/history": self._history,
            "/save": self._save,
        }

    def run(self) -> int:
        """Chat until the user leaves; returns the number of failed turns."""
        self.notes.say("Type a question, or /help. Ctrl-D leaves.")
        read_line = _LineEditor().read if self._is_interactive else _read_piped
        while True:
            try:
                line = read_line()
            except KeyboardInterrupt:
                if not self._is_interactive:
                    raise
                self.notes.say("\n(Ctrl-D leaves)")
                continue
            if line is None or line in ("/exit", "/quit", "/bye"):
                return self._num_failures
            if line:
                self._take(line)

    def _take(self, line: str) -> None:
        """Handle one line; an error is printed, and the chat goes on."""
        try:
            if _are_files(line):  # as a terminal pastes files that are dropped on it
                self._image(line)
            elif line.startswith("/"):
                name, _, argument = line.partition(" ")
                self._command(name)(argument.strip())
            else:
                self._answer(line)
        except FastVlmError as error:
            self._num_failures += 1
            report_failure(error, is_debug=self.is_debug)

    def _command(self, name: str) -> Callable[[str], None]:
        if name not in self._commands:
            raise UsageError(f"There is no command {name}; known are {', '.join(self._commands)}, /exit.")
        return self._commands[name]

    def _answer(self, question: str) -> None:
        from fastvlm.cli.reply import written

        turn = self.conversation.ask(question)
        events = self.model.events(self.conversation.messages(), **self.sampling.settings())

        def show(text: str) -> None:
            turn.answer = (turn.answer or "") + text
            self.answers.write(text)

        try:
            turn.answer = written(events, show).text
        except KeyboardInterrupt:
            if not self._is_interactive:
                raise
            if turn.answer is None:  # else the part that was shown is kept
                self.conversation.take_back()
            self.answers.write("\n")
            self.notes.say("(stopped)")
            return
        except FastVlmError:
            self.answers.cut()
            self.conversation.take_back()
            raise
        self.answers.write("\n")

    def _help(self, _: str) -> None:
        self.answers.write(HELP + "\n")

    def _image(self, argument: str) -> None:
        names = split_names(argument)
        if not names:
            raise UsageError("/image needs an image: /image street.png")
        check_images(names)
        self.conversation.show(open_sources(names, FrameChoice(), self.notes))
        self.notes.say(f"{len(self.conversation.waiting)} image(s) will be shown with your next question.")

    def _clear(self, _: str) -> None:
        self.conversation.clear()
        self.model.forget()
        self.notes.say("Forgotten. /image shows a new image.")

    def _history(self, _: str) -> None:
        self.answers.write(self.conversation.transcript())

    def _save(self, argument: str) -> None:
        if not argument:
            raise UsageError("/save needs a file name: /save chat.txt")
        file = Path(argument.strip("'\"")).expanduser()
        self.conversation.save(file)
        self.notes.say(f"Saved to {file}.")


def _are_files(line: str) -> bool:
    """True if `line` is nothing but paths of existing files, the first of them absolute or a file URL."""
    if not line.startswith(("/", "~", "'/", '"/', "file:")) and not re.match(r"['\"]?[A-Za-z]:\\", line):
        return False
    try:
        return all(Path(name).is_file() for name in split_names(line))
    except (UsageError, OSError, ValueError):  # quotes of a sentence; too long for a name, a null byte
        return False


def _read_piped() -> str | None:
    """The next line of stdin, None at its end."""
    try:
        line = sys.stdin.readline()
        line.encode()
    except UnicodeError as error:
        raise UsageError(
            "Stdin is not UTF-8 text; expected a question on each line. An image is an argument: fastvlm chat cat.png"
        ) from error
    return line.strip() if line else None


class _LineEditor:
    """Lines typed at a terminal, with arrow keys and history where Python has readline."""

    def __init__(self) -> None:
        with suppress(ImportError):  # Windows has a line editor of its own
            import readline  # noqa: F401  # importing it is all that `input` needs

    def read(self) -> str | None:
        """One line, None at Ctrl-D."""
        try:
            return input("> " if sys.stdout.isatty() else "").strip()
        except EOFError:
            sys.stdout.write("\n")
            return None
