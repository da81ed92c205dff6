"""`fastvlm bench`: measure FastVLM on this machine, and on request its peers."""

from __future__ import annotations

import datetime
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastvlm.cli.choices import check_word
from fastvlm.cli.options import DEFAULT_MODEL, DebugOption, DeviceOption, QuietOption, RevisionOption
from fastvlm.cli.terminal import Notes, in_bytes, print_json, quiet_libraries
from fastvlm.cli.user_folders import cache_folder
from fastvlm.config_limits import dtype_name
from fastvlm.errors import UsageError

if TYPE_CHECKING:
    from fastvlm.bench.plan import BenchOptions

_PRESETS = ("0.5b", "1.5b", "7b", "mini")
_LARGEST_IMAGE_PX = 10_000

_Model = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help="The shipped 'mini', a folder, or a Hub name; instead of --preset."),
]
_Preset = Annotated[
    str | None,
    typer.Option("--preset", metavar="SIZE", help="0.5b, 1.5b, 7b or mini: a checkpoint of that size, random weights."),
]
_Peers = Annotated[
    bool,
    typer.Option("--peers", help="Also transformers, OpenVINO, llama.cpp (decoder) and ONNX Runtime (encoder)."),
]
_Kernels = Annotated[
    str | None,
    typer.Option(
        "--kernels",
        metavar="LIST",
        help="Levels of the compiled kernels, each a contestant: amx, avx512, avx2vnni, avx2, neon, torch; the first "
        "gives the ratios. If not given: the best of this machine, or FASTVLM_KERNELS.",
    ),
]
_Resume = Annotated[
    Path | None,
    typer.Option(
        "--resume",
        metavar="FILE",
        help="Keep finished phases in FILE until the run is done; those of an equal run are not measured again.",
    ),
]
_What = Annotated[
    str | None,
    typer.Option(
        "--what",
        metavar="LIST",
        help="Some of encode,prefill,ttft,second-question,decode,throughput,cold-start,memory; all if not given.",
    ),
]
_ImageSizes = Annotated[
    str | None,
    typer.Option(
        "--image-size", metavar="LIST", help="Sides in pixels, such as 256,512,1024; if not given, the checkpoint's."
    ),
]
_Dtypes = Annotated[
    str,
    typer.Option(
        "--dtype",
        metavar="LIST",
        help="Of all contestants: bfloat16, float32, float16; ratios are of the first. auto: bfloat16, or float32 on a "
        "CPU that only emulates bfloat16.",
    ),
]
_Bits = Annotated[str, typer.Option("--bits", metavar="LIST", help="Bits of the decoder's weights: 16, 8, 4.")]
_EncoderBits = Annotated[
    str, typer.Option("--encoder-bits", metavar="LIST", help="Bits of our encoder's weights: 16, 8; each a contestant.")
]
_Streams = Annotated[str, typer.Option("--streams", metavar="LIST", help="Concurrent replies, for throughput.")]
_Image = Annotated[
    str,
    typer.Option("--image", metavar="WIDTHxHEIGHT", help="Size in pixels of the JPEG that ttft decodes."),
]
_Rounds = Annotated[int, typer.Option("--rounds", metavar="N", help="Repetitions of every measurement.")]
_Minutes = Annotated[float, typer.Option("--max-minutes", metavar="M", help="No new round starts after M minutes.")]
_NewTokens = Annotated[int, typer.Option("--new-tokens", metavar="N", help="Tokens per reply.")]
_Threads = Annotated[
    int, typer.Option("--threads", metavar="N", help="CPU threads of every contestant; 0: the default of each.")
]
_Checkpoint = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        metavar="FOLDER",
        help="Folder of the checkpoint of --preset: used if it exists, else made and kept.",
    ),
]
_Keep = Annotated[
    bool, typer.Option("--keep", help="Keep the checkpoint of --preset, and what peers make of it, for the next run.")
]
_Plot = Annotated[
    Path | None, typer.Option("--plot", metavar="FILE", help="Draw the medians: .svg or .png. Needs the extra plots.")
]
_Out = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="FOLDER", help="Also write the report to FOLDER, as WHAT_HARDWARE_YYYYMM.md and .json."
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print only the JSON object.")]


@dataclass(frozen=True)
class _Source:
    """The checkpoint to measure: an existing one, or a random one of a preset's size."""

    model: str | None
    preset: str | None
    checkpoint: Path | None
    is_kept: bool
    revision: str | None

    def __post_init__(self) -> None:
        if self.preset is not None:
            check_word("--preset", self.preset, _PRESETS)
        if self.preset is not None and self.model is not None:
            raise UsageError(f"Both the model {self.model!r} and --preset {self.preset} were given; give one of them.")
        if self.preset is None and (self.checkpoint is not None or self.is_kept):
            raise UsageError("--checkpoint and --keep apply to the checkpoint that --preset makes; give --preset too.")

    @property
    def name(self) -> str:
        """The model's name in reports."""
        return f"random {self.preset}" if self.preset else Path(self.model or DEFAULT_MODEL).name


def bench(
    model: _Model = None,
    preset: _Preset = None,
    has_peers: _Peers = False,
    what: _What = None,
    image_size: _ImageSizes = None,
    dtype: _Dtypes = "auto",
    bits: _Bits = "16,8,4",
    encoder_bits: _EncoderBits = "16",
    kernels: _Kernels = None,
    streams: _Streams = "1,2,4,8",
    image: _Image = "1024x1024",
    rounds: _Rounds = 5,
    max_minutes: _Minutes = 9.0,
    new_tokens: _NewTokens = 32,
    threads: _Threads = 0,
    device: DeviceOption = "cpu",
    checkpoint: _Checkpoint = None,
    is_kept: _Keep = False,
    plot: _Plot = None,
    out: _Out = None,
    resume: _Resume = None,
    revision: RevisionOption = None,
    is_json: _Json = False,
    is_quiet: QuietOption = False,
    is_debug: DebugOption = False,
) -> None:
    """Measure time to first token, decoding, throughput, memory and cold start.

    Every contestant runs in its own process. They are measured one at a time, in turn, so that other load on the
    machine slows all of them alike; in phases (images, decoding with 16, 8 and 4 bits, cold starts), so that they fit
    into memory. Stdout gets a table of medians with their spread and their limits; its last line is one JSON object.
    Ratios above 1 mean that fastvlm is better.

    --preset makes a checkpoint in the user's cache directory (0.5b: 1.2 GB, 1.5b: 3.3 GB, 7b: 15.5 GB, mini: 28.7 MB)
    and removes it afterwards, unless --keep or --checkpoint is given. An existing one is used and kept. Peers convert
    it to files of their own beside it (0.5b: 5 GB); one whose logits are not ours is reported and not timed.

    Peers come from the folder that FASTVLM_PEERS names or from .venv-peers, where `make peers` puts them. Those that
    are not installed are reported and left out.

    \b
    Examples:
      fastvlm bench
      fastvlm bench --preset 0.5b --peers --json
      fastvlm bench --preset 0.5b --peers --streams 8 --keep --resume bench.json
      fastvlm bench --preset 0.5b --kernels avx512,avx2,torch --what decode
      fastvlm bench --preset 0.5b --what encode,ttft --image-size 256,512,1024,1536 --plot encode.svg
      fastvlm bench apple/FastVLM-0.5B --what decode --bits 16,8 --threads 4
    """
    if out is not None and out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; expected a folder.")
    source = _Source(model, preset, checkpoint, is_kept, revision)
    image_px = _image_size(image)
    notes = Notes(is_quiet=is_quiet)
    with notes.waiting("Starting"):
        quiet_libraries(is_quiet=is_quiet, is_debug=is_debug)
        from fastvlm.bench.contestants import check_kernels
        from fastvlm.bench.plan import MEASURES, BenchOptions

        levels = () if kernels is None else _words(kernels)
        check_kernels(levels)
        device = device or "cpu"
        options = BenchOptions(  # refuses bad values before anything is made
            folder="",
            image="",
            what=tuple(MEASURES) if what is None else _words(what),
            sides_px=() if image_size is None else _numbers("--image-size", image_size),
            dtypes=_default_dtypes(device) if dtype == "auto" else _words(dtype),
            bits=_numbers("--bits", bits),
            encoder_bits=_numbers("--encoder-bits", encoder_bits),
            kernels=levels,
            streams=_numbers("--streams", streams),
            has_peers=has_peers,
            rounds=rounds,
            max_minutes=max_minutes,
            threads=threads,
            device=device,
            new_tokens=new_tokens,
        )
        if plot is not None:
            from fastvlm.plots import check_plot_file

            check_plot_file(plot)
    result = {**_measure(source, options, image_px, notes, resume), "image_px": list(image_px)}
    _show(result, plot, out, is_json=is_json)
    if resume is not None:
        resume.unlink(missing_ok=True)


def _default_dtypes(device: str) -> tuple[str]:
    """bfloat16, as checkpoints are published, unless the CPU only emulates it."""
    import torch

    from fastvlm.backends.local import fast_dtype

    kind = fast_dtype(torch.device("cpu" if device == "cpu" else "cuda")) or torch.bfloat16
    return (dtype_name(kind),)


def _measure(
    source: _Source, options: BenchOptions, image_px: tuple[int, int], notes: Notes, resumed: Path | None
) -> dict[str, Any]:
    """The result; checkpoint and image are made if need be, and removed afterwards."""
    from fastvlm.bench.inputs import photo_jpeg
    from fastvlm.bench.session import measure
    from fastvlm.cli.checkpoint_facts import read_facts

    with ExitStack() as stack:
        is_kept = source.preset is not None and _is_kept(source)
        folder = stack.enter_context(_folder(source, notes))
        facts = read_facts(folder)
        about = {"name": source.name, "is_random": source.preset is not None, "parameters": facts.parameters.total}
        jpeg = Path(stack.enter_context(TemporaryDirectory(prefix="fastvlm-bench-"))) / "photo.jpg"
        jpeg.write_bytes(photo_jpeg(*image_px))
        work = stack.enter_context(_work_folder(folder, is_kept=is_kept)) if options.has_peers else Path()
        on_progress = stack.enter_context(_progress(notes))
        sides_px = options.sides_px or (max(facts.images.height_px, facts.images.width_px),)
        options = replace(options, folder=str(folder), image=str(jpeg), sides_px=sides_px, work=str(work))
        return {"model": about, **measure(options, on_progress, resumed)}


def _show(result: dict[str, Any], plot: Path | None, out: Path | None, *, is_json: bool) -> None:
    from fastvlm.bench.report import as_text, file_name, write_files
    from fastvlm.storage.whole_files import write_file

    result["command"] = shlex.join(["fastvlm", *sys.argv[1:]])
    if plot is not None:
        from fastvlm.bench.plot import save_plot

        save_plot(result, plot)
    if out is not None:
        stem = file_name(result, datetime.datetime.now(datetime.timezone.utc).date())
        write_files(result, out, stem)
        write_file(out / f"{stem}.json", json.dumps(result) + "\n")
    if not is_json:
        typer.echo(as_text(result) + "\n")
    print_json(result)


def _random_folder(source: _Source) -> Path:
    return source.checkpoint or cache_folder() / "bench" / f"random-{source.preset}"


def _is_kept(source: _Source) -> bool:
    """True if the random checkpoint stays."""
    return source.is_kept or source.checkpoint is not None or _random_folder(source).exists()


@contextmanager
def _folder(source: _Source, notes: Notes) -> Iterator[Path]:
    """The checkpoint's folder; a random one is made, and removed afterwards unless it is kept."""
    if source.preset is None:
        from fastvlm.formats.places import checkpoint_path

        yield checkpoint_path(source.model or DEFAULT_MODEL, revision=source.revision)
        return
    from fastvlm.bench.random_checkpoint import checkpoint_bytes, make_checkpoint

    folder, is_kept = _random_folder(source), _is_kept(source)
    size = checkpoint_bytes(source.preset)
    if not folder.exists():
        fate = " and stays there." if is_kept else " and is removed afterwards (--keep keeps it)."
        notes.say(f"A random {source.preset} checkpoint, {in_bytes(size)}, goes to {folder}{fate}")
    try:
        with notes.counting("Making the checkpoint") as on_count:
            num_done = 0

            def on_bytes(count: int) -> None:
                nonlocal num_done
                num_done += count
                on_count(num_done, size)

            make_checkpoint(source.preset, folder, on_bytes)
        yield folder
    finally:
        if not is_kept:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _work_folder(folder: Path, *, is_kept: bool) -> Iterator[Path]:
    """The folder of the peers' files: beside a random checkpoint that is kept, else removed afterwards."""
    if is_kept:
        yield folder.with_name(f"{folder.name}-peers")
    else:
        with TemporaryDirectory(prefix="fastvlm-peers-", dir=_made(cache_folder() / "bench")) as made:
            yield Path(made)


def _made(folder: Path) -> Path:
    from fastvlm.storage.write_errors import clear_write_errors

    with clear_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _progress(notes: Notes) -> Iterator[Callable[[float, float, str], None]]:
    """A progress bar on a terminal's stderr: what is being measured, and the minutes left."""
    from rich.progress import BarColumn, TextColumn

    columns = (TextColumn("{task.description:<40}", markup=False), BarColumn(), TextColumn("{task.fields[left]}"))
    with notes.bars(*columns) as progress:
        task = progress.add_task("opening", total=None, left="")

        def on_progress(done_s: float, total_s: float, what: str) -> None:
            left_s = max(0.0, total_s - done_s)
            left = f"about {left_s / 60:.0f} min left" if left_s >= 90 else f"about {left_s:.0f} s left"
            progress.update(task, description=what, completed=done_s, total=total_s, left=left)

        yield on_progress


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(flag: str, text: str) -> tuple[int, ...]:
    words = _words(text)
    if not words or not all(re.fullmatch(r"\d{1,6}", word) for word in words):
        raise UsageError(f"{flag} is {text!r}; expected whole numbers joined by commas.")
    return tuple(int(word) for word in words)


def _image_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text.strip().lower())
    if match is None or max(int(match[1]), int(match[2])) > _LARGEST_IMAGE_PX:
        raise UsageError(
            f"--image is {text!r}; expected WIDTHxHEIGHT in pixels, at most {_LARGEST_IMAGE_PX} each, such as "
            "4000x3000."
        )
    return int(match[1]), int(match[2])
