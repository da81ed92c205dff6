"""`demo-data`, also `fastvlm demo-data`: draw the data set that the mini is trained on, into shards."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastvlm.cli.choices import check_word
from fastvlm.cli.help_pages import VerbHelp
from fastvlm.cli.leaving import leaving_cleanly
from fastvlm.cli.main import run as run_command
from fastvlm.cli.options import DebugOption, JsonOption, QuietOption
from fastvlm.cli.terminal import Notes, print_json, say
from fastvlm.errors import UsageError

if TYPE_CHECKING:
    from fastvlm_recipes.demo_data.drawing_plan import DrawingPlan

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_SPLITS = ("train", "heldout")


@app.command(cls=VerbHelp)
def demo_data(
    out: Annotated[str, typer.Argument(metavar="OUT", help="A new folder, or one that was begun before.")],
    images: Annotated[int, typer.Option("--images", metavar="N", help="How many to draw.")] = 10_000,
    seed: Annotated[int, typer.Option("--seed", metavar="SEED", help="Other seeds draw other images.")] = 0,
    shards_of: Annotated[int, typer.Option("--shards-of", metavar="N", help="Images in a tar file.")] = 1000,
    split: Annotated[
        str,
        typer.Option("--split", metavar="SPLIT", help="train, or heldout: fonts, words, layouts, styles kept from it."),
    ] = "train",
    mix: Annotated[
        str | None,
        typer.Option(
            "--mix",
            metavar="KIND=SHARE,...",
            help="Of shapes, letter, word, grid, lines, emoji, receipt, chart, fashion, easy, small, plain; the mini's "
            "if not given.",
        ),
    ] = None,
    workers: Annotated[int, typer.Option("--workers", metavar="N", help="Drawing processes.")] = 2,
    is_json: JsonOption = False,
    is_quiet: QuietOption = False,
    is_debug: DebugOption = False,
) -> None:
    """Draw images with questions and answers, in the format that fastvlm train reads.

    Each image depends on the seed and its number alone, not on the number of workers. Shards are tar files with an
    image and a record in LLaVA's format for each; a shard appears when it is complete, and a run that was stopped
    continues with the first missing shard. OUT/index.html shows some of the images. Kinds that need fonts, icons or
    data sets which are not on this machine are left out, and named.

    \b
    Examples:
      fastvlm demo-data ./drawn --images 60000
      fastvlm demo-data ./receipts --images 2000 --mix receipt=3,chart=1
      fastvlm demo-data ./unseen --images 1000 --split heldout --json | jq .kinds
    """
    del is_debug  # noted while the command line was read
    check_word("--split", split, _SPLITS)
    for flag, value, least in (
        ("--images", images, 1),
        ("--shards-of", shards_of, 1),
        ("--workers", workers, 1),
        ("--seed", seed, 0),
    ):
        if value < least:
            raise UsageError(f"{flag} is {value}; expected {least} or more.")
    notes = Notes(is_quiet=is_quiet)
    with notes.waiting("Looking for fonts"):
        from fastvlm_recipes.demo_data.contact_page import write_pages
        from fastvlm_recipes.demo_data.drawing_plan import DrawingPlan
        from fastvlm_recipes.demo_data.fonts import Split
        from fastvlm_recipes.demo_data.shard_writing import draw_shards

        part: Split = "train" if split == "train" else "test"
        shares, left_out = _what_can_be_drawn(part, mix, is_quiet=is_quiet)
    plan = DrawingPlan(seed, part, images, shards_of, shares)
    target, start = Path(out).expanduser().absolute(), time.perf_counter()
    with leaving_cleanly(), notes.counting(f"Drawing {images} images") as progress:
        num_drawn = draw_shards(target, plan, workers, progress)
    write_pages(target, plan)
    facts = _facts(plan, target, num_drawn, time.perf_counter() - start)
    if is_json:
        print_json({**facts, "left_out": left_out})
        return
    notes.say(f"{num_drawn} drawn, {images - num_drawn} were there; see index.html")
    typer.echo(str(target))


def _what_can_be_drawn(part: Any, mix: str | None, *, is_quiet: bool) -> tuple[dict[str, int], dict[str, str]]:
    """Shares of the kinds that this machine can draw, and hints for the others; UsageError if one was requested."""
    from fastvlm_recipes.demo_data.drawing_plan import parse_mix
    from fastvlm_recipes.demo_data.kinds import MIX, has_fonts, lacking

    asked = dict(MIX) if mix is None else parse_mix(mix)
    left_out = {kind: hint for kind, hint in lacking(part).items() if kind in asked}
    if mix is not None and left_out:
        kind, hint = next(iter(left_out.items()))
        raise UsageError(f"--mix names {kind}, which cannot be drawn here. It needs {hint}.")
    if not is_quiet:
        for kind, hint in left_out.items():
            say("note", f"{kind} is left out; it needs {hint}.")
        if not has_fonts(part):
            say("note", "Pillow's own font is all there is; fonts come with Debian's fonts-* packages and fontconfig.")
    return {kind: share for kind, share in asked.items() if kind not in left_out}, left_out


def _facts(plan: DrawingPlan, target: Path, num_drawn: int, seconds: float) -> dict[str, Any]:
    return {
        "path": str(target),
        "images": plan.num_images,
        "drawn": num_drawn,
        "shards": plan.num_shards,
        "kinds": plan.kinds(),
        "seconds": round(seconds, 1),
        "ms_per_image": round(1000 * seconds / num_drawn, 2) if num_drawn else None,
    }


def run() -> None:
    """Entry point of the installed command ``demo-data``."""
    run_command(app, "demo-data")
