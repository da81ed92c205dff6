"""`fastvlm export`: write a checkpoint for another runtime, and compare what that computes with the checkpoint."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastvlm.cli.choices import check_word
from fastvlm.cli.leaving import leaving_cleanly
from fastvlm.cli.options import DebugOption, JsonOption, QuietOption, RevisionOption
from fastvlm.cli.request import check_images
from fastvlm.cli.terminal import Notes, in_bytes, print_json, quiet_libraries, quiet_warnings, say
from fastvlm.errors import UsageError
from fastvlm.formats.places import checkpoint_path, new_folder

if TYPE_CHECKING:
    from fastvlm.export.export import ExportReport

FORMATS = ("onnx", "openvino", "mlx", "coreml", "executorch", "gguf")


def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="The shipped 'mini', a folder, or a Hub name, which is fetched.")
    ],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A folder that does not exist yet.")],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help=f"{', '.join(FORMATS)}.")] = "onnx",
    image_size: Annotated[
        int | None,
        typer.Option(
            "--image-size", metavar="PX", help="Side of the images, which the files fix; if not given, the model's own."
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            metavar="LIST",
            help="What to write, with commas. onnx: fp32,fp16,q8,q4,q4f16; coreml: fp16,fp32,app; "
            "executorch: fp32,q8,q4; gguf: bf16,q8,q4; openvino: one of fp32, fp16, int8, int4. "
            "[default: all; coreml: fp16,app; executorch: q8; openvino: fp16]",
        ),
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option("--check-images", metavar="FILE", help="Compare on this image too; can be given several times."),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            "--context",
            metavar="TOKENS",
            help="executorch: longest conversation, which the files fix. [default: 2048, or what the model has]",
        ),
    ] = None,
    has_page: Annotated[
        bool, typer.Option("--page", help="onnx: add a page that answers in the browser, without a server.")
    ] = False,
    page_library: Annotated[
        str | None,
        typer.Option(
            "--page-library",
            metavar="DIR",
            help="node_modules with transformers.js, copied for the page; if not given, it comes from a CDN.",
        ),
    ] = None,
    is_unchecked: Annotated[
        bool, typer.Option("--no-check", help="Do not run the files afterwards; large models take minutes for that.")
    ] = False,
    revision: RevisionOption = None,
    is_json: JsonOption = False,
    is_quiet: QuietOption = False,
    is_debug: DebugOption = False,
) -> None:
    """Write a model for another runtime, run the files, and say how far they are from the model.

    Visual tokens, logits and the first 16 tokens of greedy replies are compared on shipped images; the folder's
    README.md has the differences and the lines that ask a question. NaN or infinity in half precision is an error. The
    folder appears when all of it is written and checked; the source is only read. The path of the new folder is
    printed.

    \b
    Examples:
      fastvlm export mini ./mini-onnx --page
      fastvlm export apple/FastVLM-0.5B ./fastvlm-onnx --dtype fp16,q4f16 --check-images photo.jpg
      fastvlm ask photo.jpg "What is this?" --model ./fastvlm-onnx --runtime onnx
    """
    check_word("--to", to, FORMATS)
    dtypes = [] if dtype is None else [word.strip() for word in dtype.split(",")]
    if dtype is not None and not all(dtypes):
        raise UsageError(f"--dtype is {dtype!r}; expected names with commas between them, such as fp16,q8.")
    if page_library is not None and not has_page:
        raise UsageError("--page-library is about the page; give --page too.")
    if images and is_unchecked:
        raise UsageError("--check-images gives images to compare on, but --no-check compares nothing; give one.")
    new_folder(target)  # report mistakes before anything is imported or downloaded
    check_images(images or [], "")
    notes = Notes(is_quiet=is_quiet)
    quiet_warnings(is_quiet=is_quiet, is_debug=is_debug)
    with notes.waiting("Starting"):
        quiet_libraries(is_quiet=is_quiet, is_debug=is_debug)
        from fastvlm.export.export import chosen_dtypes, format_of
        from fastvlm.export.export import export as write_export

        kind = format_of(to)
        chosen_dtypes(kind, to, dtypes)
        kind.need()
    folder = checkpoint_path(model, revision=revision)
    with leaving_cleanly(), notes.counting(f"Writing {target}") as progress:
        report = write_export(
            folder,
            target,
            to,
            image_size=image_size,
            dtypes=dtypes,
            check_images=images or (),
            context=context,
            has_page=has_page,
            page_library=page_library,
            is_checked=not is_unchecked,
            progress=progress,
        )
    _show(model, report, notes, is_json=is_json)


def _show(model: str, report: ExportReport, notes: Notes, *, is_json: bool) -> None:
    if not notes.is_quiet:
        for warning in report.warnings:
            say("warning", warning)
    if is_json:
        print_json({"model": model, **_facts(report)})
        return
    if not notes.is_quiet:  # also where stderr is a file: they are what a script's author looks for
        for check in report.checks:
            say("checked", str(check))
        if report.not_run:
            say("note", f"not run here: {report.not_run}")
    notes.say(f"{in_bytes(report.num_bytes)}, images of {report.image_size} px")
    typer.echo(str(report.path))


def _facts(report: ExportReport) -> dict[str, Any]:
    return {**asdict(report), "path": str(report.path)}
