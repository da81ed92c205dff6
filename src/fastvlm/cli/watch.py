"""`fastvlm watch`: one question about a camera, screen, stream, video or folder, asked again at each change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from fastvlm.cli.choices import ModelChoice, Sampling
from fastvlm.cli.image_names import file_name
from fastvlm.cli.leaving import leaving_cleanly
from fastvlm.cli.opening import open_model
from fastvlm.cli.options import DebugOption, QuietOption, SystemOption, with_options
from fastvlm.cli.question import Question
from fastvlm.cli.request import check_question
from fastvlm.cli.schema_choice import SchemaChoice
from fastvlm.cli.terminal import Notes, say
from fastvlm.cli.watch_command import CommandChoice
from fastvlm.errors import UsageError

if TYPE_CHECKING:
    from fastvlm.images.live_folder import FolderSource
    from fastvlm.images.live_video import VideoSource

_CACHE_BYTES = 2**24  # images seldom come back: without a limit so small, memory would grow for hours


@dataclass(frozen=True)
class WatchChoice:
    """Which frames are asked about, and when watching ends.

    Raises:
        UsageError: a number out of range.
    """

    interval_s: Annotated[
        float, typer.Option("--interval", metavar="SECONDS", help="At least this long between two frames asked about.")
    ] = 0.0
    is_each: Annotated[
        bool,
        typer.Option("--all-frames", help="Look at each frame of a video, as fast as it is answered; drop none."),
    ] = False
    max_answers: Annotated[int | None, typer.Option("--max-answers", metavar="N", help="End after N answers.")] = None

    def __post_init__(self) -> None:
        if not 0 <= self.interval_s <= 86400:
            raise UsageError(f"--interval is {self.interval_s:g}; expected 0 to 86400 seconds.")
        if self.max_answers is not None and self.max_answers < 1:
            raise UsageError(f"--max-answers is {self.max_answers}; expected 1 or more.")

    def check_source(self, source: VideoSource | FolderSource) -> None:
        """Raise UsageError for an option that `source` does not have; ImageError if it cannot be opened."""
        if self.is_each and source.kind not in ("video", "folder"):
            raise UsageError(f"--all-frames is for video files; a {source.kind} goes on by itself. Leave it out.")
        if self.interval_s and source.kind == "folder":
            raise UsageError(
                "--interval is for videos and cameras; each new file of a folder is answered. Leave it out."
            )
        source.check()


@with_options
def watch(
    given: Annotated[
        str, typer.Argument(metavar="SOURCE", help="camera:0, screen, an rtsp or http URL, a video file, or a folder.")
    ],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="The question, in quotes.")],
    choice: ModelChoice,
    sampling: Sampling,
    watching: WatchChoice,
    command: CommandChoice,
    schema: SchemaChoice,
    system: SystemOption = None,
    is_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line instead.")] = False,
    is_quiet: QuietOption = False,
    is_debug: DebugOption = False,
) -> None:
    """Ask about a camera, screen, stream, video or folder, again at each change.

    A frame is new if it differs from the last one asked about, by the rule for frames of videos (docs/quickstart.md).
    Frames that come while an answer is made are dropped, all but the newest. Of a folder, each image file that is
    added or changed is asked about. All sources but folders need the extra video. Ctrl-C ends it with a summary.

    \b
    Examples:
      fastvlm watch camera:0 "Is somebody at the door?"
      fastvlm watch camera:0 "Is the door open? yes or no" --when yes --run "notify-send Open"
      fastvlm watch rtsp://10.0.0.5/stream "How many cars are there?" --interval 10 --json
      fastvlm watch clip.mp4 "What is this?" --all-frames
      fastvlm watch scans/ "What is the total?" --schema receipt.json --json
    """
    from fastvlm.images.live_frames import ChangeFilter
    from fastvlm.images.live_sources import find_source

    check_question(question)
    asked = Question(question, system, sampling, schema.schema)
    source = find_source(file_name(given))
    watching.check_source(source)
    notes = Notes(is_quiet=is_quiet)
    warn = _warnings(is_quiet)
    model, load_ms = open_model(choice, notes, is_debug=is_debug, image_cache_bytes=_CACHE_BYTES, pixel_cache_bytes=0)
    from fastvlm.cli.watch_loop import Counts, WatchLoop, opened_frames

    is_each = watching.is_each or source.kind == "folder"
    changes = ChangeFilter(every_s=watching.interval_s, is_off=source.kind == "folder")
    counts = Counts()
    loop = WatchLoop(model, load_ms, asked, command, is_json, warn, counts)
    notes.say(f"Watching {source.name}. Ctrl-C ends it.")
    with leaving_cleanly(), model:
        try:
            with opened_frames(source, counts, warn, is_each=is_each) as frames:
                loop.run(frames, changes, watching.max_answers)
        finally:
            if not is_quiet:
                say("watched", counts.summary())


def _warnings(is_quiet: bool) -> Callable[[str], None]:
    return lambda line: None if is_quiet else say("warning", line)
