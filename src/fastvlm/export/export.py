"""``fastvlm.export``: a checkpoint in another runtime's format, checked, all or nothing."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastvlm.conversion.new_folder import carry_files
from fastvlm.errors import UsageError
from fastvlm.export.checks import Check, samples, source_answers
from fastvlm.export.job import ExportJob, Format
from fastvlm.export.page_files import library_files
from fastvlm.export.source import ExportSource, open_source
from fastvlm.formats.checksums import write_checksums
from fastvlm.formats.exported import ExportNotes
from fastvlm.formats.places import checkpoint_path, new_folder
from fastvlm.storage.whole_folders import whole_folder

Progress = Callable[[int, int], None]
# Format -> module that has it as FORMAT; each is imported when it is asked for.
FORMATS = {
    "onnx": "fastvlm.export.onnx_folder",
    "openvino": "fastvlm.export.openvino_folder",
    "mlx": "fastvlm.export.mlx",
    "coreml": "fastvlm.export.coreml",
    "executorch": "fastvlm.export.executorch_folder",
    "gguf": "fastvlm.export.gguf_file",
}


@dataclass(frozen=True)
class ExportReport:
    """What :func:`export` did.

    Attributes:
        path: the folder written.
        format: its format.
        image_size: side in pixels of its images.
        variants: dtypes written.
        num_bytes: of all files.
        checks: how far each variant is from the source.
        not_run: why files were not run here; empty if all were.
        warnings: what a user must know.
    """

    path: Path
    format: str
    image_size: int
    variants: tuple[str, ...]
    num_bytes: int
    checks: tuple[Check, ...]
    not_run: str
    warnings: tuple[str, ...]


def export(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    to: str = "onnx",
    *,
    image_size: int | None = None,
    dtypes: Sequence[str] = (),
    check_images: Sequence[str] = (),
    context: int | None = None,
    has_page: bool = False,
    page_library: str | os.PathLike[str] | None = None,
    is_checked: bool = True,
    progress: Progress | None = None,
    **hub: Any,
) -> ExportReport:
    """Write the checkpoint `source` to the new folder `target` for another runtime, and run what was written.

    The folder appears under its name when all of it is written and checked, or not at all. `source` is only read.

    Args:
        source: as for :func:`fastvlm.load`.
        target: a folder that does not exist yet.
        to: a key of FORMATS.
        image_size: side in pixels, which the files fix; None for the checkpoint's own.
        dtypes: variants to write; empty for the format's defaults.
        check_images: paths of images on which the files are compared with the source, in addition to shipped ones.
        context: tokens of a conversation, for formats whose files fix that; None for the format's own.
        has_page: add the web page, for ONNX.
        page_library: a ``node_modules`` folder with transformers.js, which is copied for the page; None to load it from
            a CDN.
        is_checked: False to write the files without running them.
        progress: called with (pieces of work done, all).
        hub: as for :func:`fastvlm.convert`.

    Raises:
        UsageError: an unknown format or dtype, a target that exists.
        MissingExtraError: a package that writes the format is not installed.
        CheckpointError: the source is not a complete checkpoint with a plain Qwen2 decoder.
        NonFiniteError: half precision overflows.
        ExportError: the files do not compute what the source does.
    """
    kind = format_of(to)
    variants = chosen_dtypes(kind, to, dtypes)
    if has_page and to != "onnx":
        raise UsageError(f"A page was asked for with the format {to}; only onnx has one.")
    if context is not None and not kind.has_context:
        raise UsageError(f"A context was given; files of {to} take conversations of any length. Leave it out.")
    library = None if page_library is None else Path(page_library)
    if library is not None:
        library_files(library)
    target = new_folder(target)
    versions = kind.need()
    opened = open_source(checkpoint_path(source, **hub), image_size)
    total, done = kind.num_steps(variants) + 1, 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    with whole_folder(target) as work:
        not_checked = kind.not_checked if is_checked else "checks were turned off"
        asked = [] if not_checked else samples(opened, check_images)
        expected = source_answers(opened, asked) if asked else []
        step()
        job = ExportJob(opened, work, variants, asked, expected, step, has_page, library, context, not_checked)
        written = kind.write(job)
        (work / "README.md").write_text(written.readme, encoding="utf-8")
        checks = tuple(check.as_dict() for check in written.checks)
        _notes(opened, to, variants, dict(written.defaults), checks, versions).write(work)
        carry_files(opened.folder, work)
        write_checksums(work)
        num_bytes = sum(file.stat().st_size for file in work.rglob("*") if file.is_file())
    return ExportReport(
        target, to, opened.side_px, variants, num_bytes, written.checks, written.not_run, written.warnings
    )


def format_of(to: str) -> Format:
    """The format of this name; raises UsageError."""
    if to not in FORMATS:
        raise UsageError(f"to is {to!r}; the formats are {', '.join(FORMATS)}.")
    kind: Format = importlib.import_module(FORMATS[to]).FORMAT
    return kind


def chosen_dtypes(kind: Format, to: str, dtypes: Sequence[str]) -> tuple[str, ...]:
    """The format's variants that `dtypes` names, in its order, its defaults if empty; raises UsageError."""
    if unknown := [dtype for dtype in dtypes if dtype not in kind.variants]:
        raise UsageError(f"{to} has no dtype {unknown[0]!r}; it has {', '.join(kind.variants)}.")
    if kind.is_single and len(dtypes) > 1:
        raise UsageError(
            f"A folder for {to} holds one dtype; got {', '.join(dtypes)}. Export each to a folder of its own."
        )
    chosen = dtypes or kind.default or kind.variants
    return tuple(variant for variant in kind.variants if variant in chosen)


def _notes(
    source: ExportSource,
    to: str,
    variants: tuple[str, ...],
    defaults: dict[str, str],
    checks: tuple[dict[str, Any], ...],
    versions: dict[str, str],
) -> ExportNotes:
    images, checkpoint = source.checkpoint.processor.image_processor, source.checkpoint
    return ExportNotes(
        format=to,
        config=source.config,
        image_size=images.image_size,
        image_fit=images.image_fit,
        chat_template=checkpoint.processor.chat_template,
        stop_token_ids=tuple(sorted(checkpoint.stop_token_ids)),
        variants=variants,
        defaults=defaults,
        checks=checks,
        versions=versions,
    )
