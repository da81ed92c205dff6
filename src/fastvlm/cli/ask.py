"""`fastvlm ask`: one question about images, one answer."""

from __future__ import annotations

from typing import Annotated

import typer

from fastvlm.cli.choices import ModelChoice, Sampling
from fastvlm.cli.frames import FrameChoice, OpenedImages, open_sources
from fastvlm.cli.image_names import file_name
from fastvlm.cli.opening import open_model
from fastvlm.cli.options import DebugOption, JsonOption, QuietOption, SystemOption, with_options
from fastvlm.cli.piped import has_piped_image, is_silent_pipe
from fastvlm.cli.request import STDIN, UNQUOTED_HINT, check_images, check_order, check_question
from fastvlm.cli.terminal import Answers, Notes, print_json, say


@with_options
def ask(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE",
            default_factory=list,
            help="Images, PDFs, videos: files, URLs, data URIs; '-' is stdin, and so is none if an image is piped in.",
        ),
    ],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="The question, in quotes.")],
    choice: ModelChoice,
    sampling: Sampling,
    frames: FrameChoice,
    system: SystemOption = None,
    is_json: JsonOption = False,
    is_quiet: QuietOption = False,
    is_debug: DebugOption = False,
) -> None:
    """Ask one question about one or several images; the answer is printed token by token.

    Only the answer goes to stdout. Several images are passed in the order given. Without an image, also in stdin, the
    question is asked alone.

    \b
    Examples:
      fastvlm ask street.png "How many signs are there?"
      fastvlm ask before.png after.png "What changed?"
      curl -s https://example.org/cat.jpg | fastvlm ask - "What is this?"
      fastvlm ask receipt.png "What is the total?" --image-size 1024 -m apple/FastVLM-0.5B
      fastvlm ask report.pdf "What is the total?" --pages 1-3
      fastvlm ask clip.mp4 "What happens?" --max-frames 4
      fastvlm ask cat.png "What is this?" --json | jq .timings_ms
    """
    check_order(sources, question)
    check_question(question)
    names = [file_name(name) for name in sources]
    check_images(names, UNQUOTED_HINT)
    notes = Notes(is_quiet=is_quiet)
    if sampling.has_idle_top_p and not is_quiet:
        say("warning", "--top-p has no effect at temperature 0; give --temperature too.")
    if not names and has_piped_image():
        names = [STDIN]
    images = open_sources(names, frames, notes)
    model, load_ms = open_model(choice, notes, is_debug=is_debug)
    from fastvlm.api import system_message, user_message
    from fastvlm.cli.reply import Reply, written

    with model:
        if not names:  # an image may have arrived in stdin by now
            images = _late_image(frames, notes)
        messages = [*system_message(system), user_message(images.frames, question)]
        answers = Answers()
        write = (lambda _: None) if is_json else answers.write
        completion = written(model.events(messages, **sampling.settings()), write)
    reply = Reply(completion, load_ms, images.opening_ms)
    if is_json:
        print_json({"model": choice.name, **reply.as_dict(), "images": images.as_list()})
        return
    answers.write("\n")
    notes.say(reply.summary(choice.name))


def _late_image(frames: FrameChoice, notes: Notes) -> OpenedImages:
    """The image in stdin, if one has arrived by now; a note says that a silent pipe was not waited for."""
    if has_piped_image():
        return open_sources([STDIN], frames, notes)
    if is_silent_pipe():
        notes.say("Asked without an image: nothing has come through stdin. '-' as IMAGE waits for one.")
    return OpenedImages()
