"""`fastvlm convert`: a checkpoint in another layout."""

from __future__ import annotations

from typing import Annotated

import typer

from fastvlm.cli.choices import check_word
from fastvlm.cli.leaving import leaving_cleanly
from fastvlm.cli.options import DebugOption, QuietOption, RevisionOption
from fastvlm.cli.terminal import Notes, in_bytes, quiet_libraries, quiet_warnings
from fastvlm.formats.names import LAYOUTS
from fastvlm.formats.places import checkpoint_path, new_folder

DTYPES = ("float32", "bfloat16", "float16")


def convert(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="The shipped 'mini', a folder, or a Hub name, which is fetched.")
    ],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A folder that does not exist yet.")],
    to: Annotated[
        str, typer.Option("--to", metavar="LAYOUT", help="fast_vlm (transformers) or llava_qwen2 (Apple's).")
    ] = "fast_vlm",
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", metavar="DTYPE", help="float32, bfloat16 or float16; if not given, as they are."),
    ] = None,
    max_shard_size: Annotated[
        str, typer.Option("--max-shard-size", metavar="SIZE", help="Largest weight file, such as 500MB or 2GB.")
    ] = "2GB",
    is_fused: Annotated[
        bool, typer.Option("--fuse", help="Turn a multi-branch (training) encoder into the inference form.")
    ] = False,
    revision: RevisionOption = None,
    is_quiet: QuietOption = False,
    is_debug: DebugOption = False,
) -> None:
    """Write a checkpoint to a new folder in another layout.

    Values stay as they are, only names change. The folder appears when all of it is written, or not at all; the source
    is only read. The path of the new folder is printed.

    \b
    Examples:
      fastvlm convert ./llava-fastvithd_0.5b_stage3 ./fastvlm-0.5b
      fastvlm convert apple/FastVLM-7B ./fastvlm-7b --max-shard-size 5GB
      fastvlm convert ./fastvlm-0.5b ./for-ml-fastvlm-llava --to llava_qwen2
    """
    check_word("--to", to, LAYOUTS)
    if dtype is not None:
        check_word("--dtype", dtype, DTYPES)
    new_folder(target)  # report mistakes before anything is imported or downloaded
    notes = Notes(is_quiet=is_quiet)
    quiet_warnings(is_quiet=is_quiet, is_debug=is_debug)
    folder = checkpoint_path(source, revision=revision)
    with notes.waiting("Reading"):
        quiet_libraries(is_quiet=is_quiet, is_debug=is_debug)
        from fastvlm.conversion.convert import convert as write_converted
    with leaving_cleanly(), notes.counting(f"Writing {target}") as progress:
        report = write_converted(
            folder, target, to, dtype=dtype, max_shard_size=max_shard_size, fuse=is_fused, progress=progress
        )
    for name in report.dropped:
        notes.say(f"left out: {name}, which the model does not use")
    if report.added_rows:
        notes.say(f"added {report.added_rows} rows to the vocabulary, for the image's placeholder")
    notes.say(f"{report.num_tensors} tensors, {in_bytes(report.num_bytes)}, {report.source} -> {report.to}")
    typer.echo(str(report.path))
