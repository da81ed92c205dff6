"""`fastvlm ask`: a question about images, with one answer about all of them or one about each."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Annotated

import typer

from fastvlm.cli.choices import ModelChoice, Sampling
from fastvlm.cli.each import NUM_SLOTS, answer_each
from fastvlm.cli.failures import FAILED
from fastvlm.cli.frames import FrameChoice, OpenedImages, open_sources
from fastvlm.cli.image_names import file_name
from fastvlm.cli.opening import open_model
from fastvlm.cli.options import DebugOption, Invocation, JsonOption, QuietOption, SystemOption, with_options
from fastvlm.cli.piped import has_piped_image, is_silent_pipe
from fastvlm.cli.question import Question
from fastvlm.cli.request import STDIN, UNQUOTED_HINT, check_images, check_order, check_question, complete_question
from fastvlm.cli.schema_choice import SchemaChoice, enforceable
from fastvlm.cli.template_files import Template, write_template
from fastvlm.cli.template_options import SaveAsOption, UseOption, given_options
from fastvlm.cli.terminal import Answers, Notes, print_json, say
from fastvlm.errors import UsageError


@with_options
def ask(
    context: typer.Context,
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE",
            help="Images, PDFs, videos: files, URLs, data URIs; '-' is stdin, and so is none if an image is piped in.",
        ),
    ] = None,
    question: Annotated[str | None, typer.Argument(metavar="QUESTION", help="The question, in quotes.")] = None,
    *,
    choice: ModelChoice,
    sampling: Sampling,
    frames: FrameChoice,
    schema: SchemaChoice,
    system: SystemOption = None,
    use: UseOption = None,
    save_as: SaveAsOption = None,
    is_each: Annotated[
        bool, typer.Option("--each", help="Ask about each image by itself: a line each, in the order given.")
    ] = False,
    is_json: JsonOption = False,
    is_quiet: QuietOption = False,
    is_debug: DebugOption = False,
) -> None:
    """Ask one question about one or several images; the answer is printed token by token.

    Only the answer goes to stdout. Several images are passed in the order given. Without an image, also in stdin, the
    question is asked alone. Nothing is remembered from one call to the next; fastvlm chat keeps a conversation.

    With --each, images are answered side by side, and each has a line: its name, a tab, the answer; with --json, an
    object. One that fails has its error in its line, the others go on, and the exit code is 1.

    \b
    Examples:
      fastvlm ask street.png "How many signs are there?"
      fastvlm ask before.png after.png "What changed?"
      curl -s https://example.org/cat.jpg | fastvlm ask - "What is this?"
      fastvlm ask receipt.png "What is the total?" --image-size 1024 -m apple/FastVLM-0.5B
      fastvlm ask report.pdf "What is the total?" --pages 1-3
      fastvlm ask clip.mp4 "What happens?" --max-frames 4
      fastvlm ask cat.png "What is this?" --json | jq .timings_ms
      fastvlm ask *.png "What shape is this?" --each --json-schema '{"enum": ["star", "circle"]}'
      fastvlm ask "What is the total?" --image-size 1024 --save-as receipt
      fastvlm ask --use receipt photo.jpg
    """
    del use  # its callback has set the defaults
    template = context.ensure_object(Invocation).template or Template()
    given, question = complete_question(sources or (), question, template.question)
    check_order(given, question)
    check_question(question)
    names = [file_name(name) for name in given]
    check_images(names, UNQUOTED_HINT)
    notes = Notes(is_quiet=is_quiet)
    if sampling.has_idle_top_p and not is_quiet:
        say("warning", "--top-p has no effect at temperature 0; give --temperature too.")
    if not names and has_piped_image():
        names = [STDIN]
    wanted = enforceable(template.schema) if schema.schema is None else schema.schema
    asked = Question(question, system, sampling, wanted)
    if save_as is not None:
        _save(save_as, Template(question, asked.schema, given_options(context)), notes)
        if not names:
            return
    verb = _Asking(asked, choice, frames, notes, is_json=is_json, is_debug=is_debug)
    if is_each:
        verb.about_each(names)
    else:
        verb.about_all(names)


def _save(name: str, template: Template, notes: Notes) -> None:
    file = write_template(name, template)
    notes.say(f"Saved as {file}. To use it: fastvlm ask --use {name} IMAGE")


@dataclass(frozen=True)
class _Asking:
    question: Question
    choice: ModelChoice
    frames: FrameChoice
    notes: Notes
    is_json: bool
    is_debug: bool

    def about_all(self, names: Sequence[str]) -> None:
        """One answer, printed as it comes."""
        images = open_sources(names, self.frames, self.notes)
        model, load_ms = open_model(self.choice, self.notes, is_debug=self.is_debug)
        from fastvlm.cli.reply import Reply, written

        with model:
            if not names:  # an image may have arrived in stdin by now
                images = _late_image(self.frames, self.notes)
            answers = Answers()
            write = (lambda _: None) if self.is_json else answers.write
            try:
                completion = written(self.question.events(model, images.frames), write)
            finally:  # also after Ctrl-C
                answers.cut()
        reply = Reply(completion, load_ms, images.opening_ms)
        if self.is_json:
            print_json({"model": self.choice.name, **reply.as_dict(), "images": images.as_list()})
        else:
            answers.write("\n")
            self.notes.say(reply.summary(self.choice.name))
        if self.question.schema is not None and completion.finish_reason == "length" and not self.notes.is_quiet:
            say("warning", "The answer was cut by --max-new-tokens, so it is not a whole JSON document.")

    def about_each(self, names: Sequence[str]) -> None:
        """A line for each image; the exit code says whether one failed."""
        if not names:
            raise UsageError('--each needs images. Try: fastvlm ask *.png "QUESTION" --each')
        num_slots = min(NUM_SLOTS, len(names))
        model, load_ms = open_model(self.choice, self.notes, is_debug=self.is_debug, num_slots=num_slots)
        answers, num_failures = Answers(), 0
        with model, closing(answer_each(model, self.question, names, self.frames, load_ms)) as outcomes:
            for outcome in outcomes:
                num_failures += outcome.error is not None
                if self.is_json:
                    print_json(outcome.as_dict(self.choice.name))
                else:
                    answers.write(outcome.as_line() + "\n")
        if num_failures:
            say("error", f"{num_failures} of {len(names)} images failed; their lines say why.")
            raise typer.Exit(FAILED)


def _late_image(frames: FrameChoice, notes: Notes) -> OpenedImages:
    """The image in stdin, if one has arrived by now; a note says if there is none."""
    if has_piped_image():
        return open_sources([STDIN], frames, notes)
    if is_silent_pipe():
        notes.say("Asked without an image: nothing has come through stdin. '-' as IMAGE waits for one.")
    else:
        notes.say("Asked without an image. Earlier calls are not remembered; fastvlm chat IMAGE keeps a conversation.")
    return OpenedImages()
