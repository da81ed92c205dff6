"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, get_type_hints

import typer

from fastvlm.cli.template_files import Template

DEFAULT_MODEL = "mini"


@dataclass
class Invocation:
    """Settings of one run that are set while options are parsed.

    Args:
        is_debug: errors show their tracebacks.
        template: what --use names.
    """

    is_debug: bool = False
    template: Template | None = None


def _note_debug(context: typer.Context, value: bool) -> bool:
    context.ensure_object(Invocation).is_debug = value
    return value


def with_options(verb: Callable[..., None]) -> Callable[..., None]:
    """`verb` with one option for each field of its parameters that are dataclasses, which it gets as objects.

    The fields are annotated with options. A default object of the parameter gives other defaults than its class.
    """
    parameters: list[Parameter] = []
    groups: dict[str, tuple[type, list[str]]] = {}
    for one in signature(verb, eval_str=True).parameters.values():
        kind = one.annotation
        if not (isinstance(kind, type) and is_dataclass(kind)):
            parameters.append(one)
            continue
        hints, defaults = get_type_hints(kind, include_extras=True), kind if one.default is one.empty else one.default
        names = [field.name for field in fields(kind)]
        groups[one.name] = kind, names
        parameters += [
            one.replace(name=name, default=getattr(defaults, name), annotation=hints[name]) for name in names
        ]

    @wraps(verb)
    def call(**given: Any) -> None:
        made = {name: kind(**{key: given.pop(key) for key in keys}) for name, (kind, keys) in groups.items()}
        verb(**given, **made)

    call.__signature__ = Signature([one.replace(kind=Parameter.KEYWORD_ONLY) for one in parameters])  # type: ignore[attr-defined]
    return call


def grouped_option(group: str, *flags: str, metavar: str | None = None, text: str) -> Any:
    """An option listed under the title `group` on its verb's help page."""
    return typer.Option(*flags, metavar=metavar, help=text, rich_help_panel=group)


ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="A checkpoint: a name of fastvlm ls ('mini' is shipped), a folder, or a Hub name: apple/FastVLM-0.5B.",
    ),
]
RevisionOption = Annotated[
    str | None, typer.Option("--revision", metavar="REV", help="Branch, tag or commit of a Hub name.")
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, mps; a GPU if there is one.")
]
DtypeOption = Annotated[
    str,
    typer.Option(
        "--dtype",
        metavar="DTYPE",
        help="float32, bfloat16, float16, or auto: the checkpoint's own; float32 on a CPU that only emulates bfloat16.",
    ),
]
RuntimeOption = Annotated[
    str | None,
    typer.Option(
        "--runtime",
        metavar="RUNTIME",
        help="torch, or onnx for a folder of fastvlm export; if not given, what the folder is made for. With onnx, "
        "--dtype names files: fp32, fp16, q8, q4, q4f16.",
    ),
]
BitsOption = Annotated[
    int,
    typer.Option(
        "--bits",
        metavar="BITS",
        help="Round the decoder's weights to 8 or 4 bits on a CPU, while opening; 16: as the checkpoint has them.",
    ),
]
EncoderBitsOption = Annotated[
    int,
    typer.Option(
        "--encoder-bits",
        metavar="BITS",
        help="8: round the image encoder's weights and activations to 8 bits on a CPU; 16: as the checkpoint has them.",
    ),
]
AdapterOption = Annotated[
    str | None,
    typer.Option("--adapter", metavar="DIR", help="Add an adapter that fastvlm train wrote, or another of peft's."),
]
PromptLookupOption = Annotated[
    int | None,
    typer.Option(
        "--prompt-lookup",
        metavar="N",
        help="Draft up to N tokens from what prompt and reply already contain and check them in one step: the same "
        "replies, sooner where they repeat text. 8 to 16 are good.",
    ),
]
MaxNewTokensOption = Annotated[
    int, typer.Option("--max-new-tokens", "-n", metavar="N", help="Maximum number of tokens in a reply.")
]
TemperatureOption = Annotated[
    float,
    typer.Option("--temperature", metavar="T", help="0 is greedy decoding; higher values are more varied."),
]
TopPOption = Annotated[
    float | None,
    typer.Option("--top-p", metavar="P", help="Sample from the most likely tokens that together have probability P."),
]
SeedOption = Annotated[
    int | None, typer.Option("--seed", metavar="SEED", help="Random seed; makes sampling repeatable.")
]
SystemOption = Annotated[
    str | None, typer.Option("--system", metavar="TEXT", help="System prompt in place of the model's own.")
]
FitOption = Annotated[
    str | None,
    typer.Option(
        "--image-fit",
        metavar="FIT",
        help="pad to a black square (as trained), crop the longer sides, or stretch; if not given, the checkpoint's.",
    ),
]
ImageSizeOption = Annotated[
    str | None,
    typer.Option(
        "--image-size", metavar="SIZE", help="Side in pixels, or HEIGHTxWIDTH; multiples of 64. More sees finer detail."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Nothing on stderr but errors: no progress, no summary.")
]
DebugOption = Annotated[
    bool,
    typer.Option("--debug", callback=_note_debug, is_eager=True, help="Show tracebacks and the libraries' warnings."),
]
