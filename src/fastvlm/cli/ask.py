"""`fastvlm ask`: one question about images, one answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastvlm.cli.choices import ModelChoice, Sampling
from fastvlm.cli.image_names import file_name
from fastvlm.cli.opening import open_answerer, open_images, system_message, user_message
from fastvlm.cli.options import (
    DEFAULT_MODEL,
    AdapterOption,
    BitsOption,
    DebugOption,
    DeviceOption,
    DtypeOption,
    FitOption,
    ImageSizeOption,
    JsonOption,
    MaxNewTokensOption,
    ModelOption,
    QuietOption,
    RevisionOption,
    SeedOption,
    SystemOption,
    TemperatureOption,
    TopPOption,
)
from fastvlm.cli.piped import has_piped_image, is_silent_pipe
from fastvlm.cli.request import STDIN, UNQUOTED_HINT, check_images, check_order, check_question
from fastvlm.cli.terminal import Answers, Notes, print_json, say

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastvlm.cli.answering import Reply


def ask(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE",
            default_factory=list,
            help="Files, URLs or data URIs; '-' reads one from stdin, and so does none if an image is piped in.",
        ),
    ],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="The question, in quotes.")],
    model: ModelOption = DEFAULT_MODEL,
    revision: RevisionOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = "auto",
    bits: BitsOption = 16,
    adapter: AdapterOption = None,
    max_new_tokens: MaxNewTokensOption = 256,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = None,
    seed: SeedOption = None,
    system: SystemOption = None,
    image_fit: FitOption = None,
    image_size: ImageSizeOption = None,
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
      fastvlm ask cat.png "What is this?" --json | jq .timings_ms
    """
    check_order(sources, question)
    check_question(question)
    names = [file_name(name) for name in sources]
    check_images(names, UNQUOTED_HINT)
    choice = ModelChoice(model, revision, device, dtype, image_fit, image_size, bits, adapter)
    sampling = Sampling(max_new_tokens, temperature, top_p, seed)
    notes = Notes(is_quiet=is_quiet)
    if sampling.has_idle_top_p and not is_quiet:
        say("warning", "--top-p has no effect at temperature 0; give --temperature too.")
    if not names and has_piped_image():
        names = [STDIN]
    images, opening_ms = open_images(names, notes)
    answerer = open_answerer(choice, sampling, notes, is_debug=is_debug)
    if not names:  # an image may have arrived in stdin by now
        images, opening_ms = _late_image(notes)
    messages = [*system_message(system), user_message(images, question)]
    if is_json:
        reply = answerer.reply(messages, opening_ms=opening_ms)
        print_json({"model": model, **reply.as_dict()})
        return
    answers = Answers()
    reply = answerer.reply(messages, answers.write, opening_ms=opening_ms)
    answers.write("\n")
    notes.say(summary(model, reply))


def _late_image(notes: Notes) -> tuple[list[Image], float]:
    """The image in stdin, if one has arrived by now; a silent pipe is not waited for, which a note says."""
    if has_piped_image():
        return open_images([STDIN], notes)
    if is_silent_pipe():
        notes.say("Asked without an image: nothing has come through stdin. '-' as IMAGE waits for one.")
    return [], 0.0


def summary(model: str, reply: Reply) -> str:
    """One line: tokens, times and speed of an answer."""
    usage, timings = reply.usage, reply.timings
    parts = [
        Path(model).name,
        f"{usage.prompt_tokens} tokens in ({usage.image_tokens} of images), {usage.completion_tokens} out",
        f"opened in {timings.load / 1000:.1f} s",
    ]
    if timings.ttft is not None:
        parts.append(f"first text after {timings.ttft:.0f} ms")
    if reply.tokens_per_second is not None:
        parts.append(f"{reply.tokens_per_second:.0f} tokens/s")
    if reply.finish_reason == "length":
        parts.append("cut by --max-new-tokens")
    return " · ".join(parts)
