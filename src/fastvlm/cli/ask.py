"""`fastvlm ask`: one question about pictures, one answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastvlm.cli.choices import ModelChoice, Sampling
from fastvlm.cli.opening import open_answerer, open_pictures, system_message, user_message
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
from fastvlm.cli.request import UNQUOTED_HINT, check_pictures, check_question
from fastvlm.cli.terminal import Answers, Notes, print_json, say

if TYPE_CHECKING:
    from fastvlm.cli.answering import Reply

__all__ = ["ask"]


def ask(
    pictures: Annotated[
        list[str],
        typer.Argument(
            metavar="PICTURE",
            default_factory=list,
            help="Files, URLs or data URIs; '-' reads one from stdin. None: a question without a picture.",
        ),
    ],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What you want to know, in quotes.")],
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
    """Ask one question about one or several pictures; the answer appears as it is written.

    The answer goes to stdout and nothing else does. Several pictures are shown to the model in the order given.

    \b
    Examples:
      fastvlm ask street.png "How many signs are there?"
      fastvlm ask before.png after.png "What changed?"
      curl -s https://example.org/cat.jpg | fastvlm ask - "What is this?"
      fastvlm ask receipt.png "What is the total?" --image-size 1024 -m apple/FastVLM-0.5B
      fastvlm ask cat.png "What is this?" --json | jq .timings_ms
    """
    check_question(question)
    check_pictures(pictures, UNQUOTED_HINT)
    choice = ModelChoice(model, revision, device, dtype, image_fit, image_size, bits, adapter)
    sampling = Sampling(max_new_tokens, temperature, top_p, seed)
    notes = Notes(is_quiet=is_quiet)
    if sampling.has_idle_top_p and not is_quiet:
        say("warning", "--top-p has no effect at temperature 0; give --temperature too.")
    images, opening_ms = open_pictures(pictures, notes)
    answerer = open_answerer(choice, sampling, notes, is_debug=is_debug)
    messages = [*system_message(system), user_message(images, question)]
    if is_json:
        reply = answerer.reply(messages, opening_ms=opening_ms)
        print_json({"model": model, **reply.as_dict()})
        return
    answers = Answers()
    reply = answerer.reply(messages, answers.write, opening_ms=opening_ms)
    answers.write("\n")
    notes.say(summary(model, reply))


def summary(model: str, reply: Reply) -> str:
    """One line on what an answer took."""
    usage, timings = reply.usage, reply.timings
    parts = [
        Path(model).name,
        f"{usage.prompt_tokens} tokens in ({usage.image_tokens} of pictures), {usage.completion_tokens} out",
        f"opened in {timings.load / 1000:.1f} s",
    ]
    if timings.ttft is not None:
        parts.append(f"first text after {timings.ttft:.0f} ms")
    if reply.tokens_per_second is not None:
        parts.append(f"{reply.tokens_per_second:.0f} tokens/s")
    if reply.finish_reason == "length":
        parts.append("cut by --max-new-tokens")
    return " · ".join(parts)
