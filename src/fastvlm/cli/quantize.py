"""`fastvlm quantize`: write a checkpoint whose linear layers have 8- or 4-bit weights."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from fastvlm.cli.choices import check_word
from fastvlm.cli.leaving import leaving_cleanly
from fastvlm.cli.options import DebugOption, JsonOption, QuietOption, RevisionOption
from fastvlm.cli.terminal import Notes, in_bytes, print_json, quiet_libraries, quiet_warnings
from fastvlm.config import ENCODER_BITS
from fastvlm.errors import UsageError
from fastvlm.formats.places import checkpoint_path, new_folder

if TYPE_CHECKING:
    from fastvlm.config import EncoderBits
    from fastvlm.conversion.quantize import QuantizationReport

__all__ = ["quantize"]

_BITS = (8, 4)
_GROUP_SIZES = (32, 64, 128)
FORMATS = ("fastvlm", "compressed-tensors")


def quantize(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="The shipped 'mini', a folder, or a Hub name, which is fetched.")
    ],
    target: Annotated[
        str | None,
        typer.Argument(metavar="TARGET", help="A folder that does not exist yet; if not given, ./MODEL-int8."),
    ] = None,
    bits: Annotated[int, typer.Option("--bits", metavar="BITS", help="Of the decoder's layers: 8 or 4.")] = 8,
    group_size: Annotated[
        int, typer.Option("--group-size", metavar="N", help="Inputs that share a scale at 4 bits: 32, 64 or 128.")
    ] = 32,
    head_bits: Annotated[
        int, typer.Option("--head-bits", metavar="BITS", help="Of the head: 8, or 4, which changes answers noticeably.")
    ] = 8,
    encoder_bits: Annotated[
        int, typer.Option("--encoder-bits", metavar="BITS", help="Of the image encoder: 8, or 16 to leave it as it is.")
    ] = 16,
    form: Annotated[
        str,
        typer.Option(
            "--format", metavar="FORMAT", help="fastvlm, or compressed-tensors, which vLLM and transformers read."
        ),
    ] = "fastvlm",
    revision: RevisionOption = None,
    is_json: JsonOption = False,
    is_quiet: QuietOption = False,
    is_debug: DebugOption = False,
) -> None:
    """Round a model's weights to 8 or 4 bits and write it to a new folder.

    The folder opens like any other (ask, chat, serve, fastvlm.load), faster and in less memory on a CPU, because its
    quantized weights are memory-mapped. The encoder is quantized with --encoder-bits 8 only; it then computes with
    activations of 8 bits too. With --format compressed-tensors weights are symmetric, and the head stays as it is. The
    folder appears once it is complete; the source is only read. The path of the new folder is printed.

    \b
    Examples:
      fastvlm quantize apple/FastVLM-0.5B
      fastvlm quantize ./fastvlm-0.5b ./fastvlm-0.5b-int4 --bits 4
      fastvlm quantize mini --encoder-bits 8
      fastvlm quantize apple/FastVLM-7B --bits 4 --group-size 64 --json | jq .quantized_bytes
      fastvlm quantize ./fastvlm-0.5b ./fastvlm-0.5b-w4a16 --bits 4 --format compressed-tensors
    """
    check_word("--format", form, FORMATS)
    _check_number("--bits", bits, _BITS)
    _check_number("--head-bits", head_bits, _BITS)
    _check_number("--encoder-bits", encoder_bits, ENCODER_BITS)
    _check_number("--group-size", group_size, _GROUP_SIZES)
    if form != FORMATS[0] and (head_bits, encoder_bits) != (8, 16):
        raise UsageError(
            f"--format {form} leaves head and encoder as they are; leave --head-bits and --encoder-bits out."
        )
    target = f"{Path(model).name}-int{bits}" if target is None else target
    new_folder(target)  # report mistakes before anything is imported or downloaded
    notes = Notes(is_quiet=is_quiet)
    quiet_warnings(is_quiet=is_quiet, is_debug=is_debug)
    folder = checkpoint_path(model, revision=revision)
    with notes.waiting("Starting"):
        quiet_libraries(is_quiet=is_quiet, is_debug=is_debug)
        from fastvlm.conversion.quantize import quantize
        from fastvlm.formats.compressed_tensors import CompressedOptions
        from fastvlm.formats.quantized_file import Bits, HeadBits, QuantizationOptions
    options = (
        QuantizationOptions(
            cast("Bits", bits), group_size, cast("HeadBits", head_bits), cast("EncoderBits", encoder_bits)
        )
        if form == FORMATS[0]
        else CompressedOptions(cast("Bits", bits), group_size)
    )
    with leaving_cleanly(), notes.counting(f"Rounding {model}") as progress:
        report = quantize(folder, target, options, progress=progress)
    if is_json:
        print_json(_facts(model, report))
        return
    notes.say(
        f"{in_bytes(report.source_bytes)} -> {in_bytes(report.quantized_bytes)} rounded and "
        f"{in_bytes(report.rest_bytes)} as they were; weights are {report.error.mean:.1%} off on average"
    )
    typer.echo(str(report.path))


def _check_number(flag: str, value: int, known: tuple[int, ...]) -> None:
    if value not in known:
        raise UsageError(f"{flag} is {value}; expected one of {', '.join(map(str, known))}.")


def _facts(model: str, report: QuantizationReport) -> dict[str, Any]:
    return {"model": model, **asdict(report), "path": str(report.path)}
