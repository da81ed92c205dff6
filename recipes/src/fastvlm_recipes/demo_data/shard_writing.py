"""Draws images in several processes and writes them into tar shards, in webdataset's layout.

A shard has an image ``000123.png`` (or ``.jpg``) and a record ``000123.json`` in LLaVA's format per sample. It is
written under a temporary name and renamed when complete, so a run that was stopped continues with the first missing
shard.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import signal
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from PIL import Image

from fastvlm.storage.locks import exclusive_folder
from fastvlm.storage.whole_files import whole_file, write_file
from fastvlm.storage.whole_folders import remove_leftovers
from fastvlm.storage.write_errors import clear_write_errors
from fastvlm_recipes.demo_data.drawing_plan import DrawingPlan, claim_target, shard_name
from fastvlm_recipes.demo_data.fonts import known_faces, use_faces
from fastvlm_recipes.demo_data.kinds import Sample, draw_sample
from fastvlm_recipes.demo_data.record_grounding import known_names, record_grounding

NAMES_FILE = "names.json"
CHUNK = 20  # images per task of a worker process
JPEG_QUALITY = 95
MOST_PNG_COLORS = 4096  # with more colors PNG is never smaller than JPEG
Member = tuple[str, bytes]  # name, content


def encoded(image: Image.Image) -> tuple[str, bytes]:
    """("png" or "jpg", the file): whichever is smaller of PNG and JPEG at quality 95 with full color."""
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    best = ("jpg", jpeg.getvalue())
    if image.getcolors(MOST_PNG_COLORS) is not None:
        png = io.BytesIO()
        image.save(png, "PNG", compress_level=4)
        best = min(best, ("png", png.getvalue()), key=lambda one: len(one[1]))
    return best


def record_of(name: str, file: str, sample: Sample) -> dict[str, object]:
    """`id`, `image`, `kind`, `conversations`, `objects`, `looks`; the first question follows the image."""
    turns: list[dict[str, str]] = []
    for index, (question, answer) in enumerate(sample.turns):
        turns.append({"from": "human", "value": f"<image>\n{question}" if index == 0 else question})
        turns.append({"from": "gpt", "value": answer})
    grounding = record_grounding(sample.scene, sample.turns)
    return {"id": name, "image": file, "kind": sample.kind, "conversations": turns, **grounding}


def _members(plan: DrawingPlan, indices: Sequence[int]) -> list[Member]:
    """Image and record of each number, in order."""
    members: list[Member] = []
    for index in indices:
        sample = draw_sample(plan.seed, plan.split, index, plan.mix)
        suffix, content = encoded(sample.image)
        name = f"{index:06d}"
        record = record_of(name, f"{name}.{suffix}", sample)
        members.append((f"{name}.{suffix}", content))
        members.append((f"{name}.json", json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()))
    return members


def draw_shards(
    target: Path, plan: DrawingPlan, num_workers: int, on_progress: Callable[[int, int], None] | None = None
) -> int:
    """Draw the missing shards; return the number of images drawn.

    Args:
        target: the folder, new or begun by the same plan.
        plan: what to draw; the files do not depend on `num_workers`.
        num_workers: drawing processes, 1 or more; with 1 this process draws.
        on_progress: called with the number of finished images, and of all.

    Raises:
        UsageError: the folder holds something else, or another process draws into it, or it cannot be written to.
        StorageError: the disk is full or failed.
    """
    with exclusive_folder(target):
        with clear_write_errors(target):
            claim_target(target, plan)
            remove_leftovers(target)
        write_file(target / NAMES_FILE, json.dumps(known_names(), ensure_ascii=False) + "\n")
        return _draw_missing(target, plan, num_workers, on_progress)


def _draw_missing(
    target: Path, plan: DrawingPlan, num_workers: int, on_progress: Callable[[int, int], None] | None
) -> int:
    missing = [shard for shard in range(plan.num_shards) if not (target / shard_name(shard)).is_file()]
    chunks = [chunk for shard in missing for chunk in _chunks(plan.shard_range(shard))]
    num_to_draw = sum(map(len, chunks))
    done = plan.num_images - num_to_draw
    with _drawn(plan, chunks, min(num_workers, max(1, len(chunks)))) as drawn:
        for shard in missing:
            with _whole_tar(target / shard_name(shard)) as tar:
                for chunk in _chunks(plan.shard_range(shard)):
                    for name, content in next(drawn):
                        _add(tar, name, content)
                    done += len(chunk)
                    if on_progress is not None:
                        on_progress(done, plan.num_images)
    return num_to_draw


def _chunks(indices: range) -> list[range]:
    return [indices[start : start + CHUNK] for start in range(0, len(indices), CHUNK)]


@contextmanager
def _drawn(plan: DrawingPlan, chunks: list[range], num_workers: int) -> Iterator[Iterator[list[Member]]]:
    """The chunks' members in order, drawn here or by other processes."""
    if num_workers == 1 or not chunks:
        yield map(partial(_members, plan), chunks)
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    with context.Pool(num_workers, _begin_worker, (known_faces(),)) as pool:
        yield pool.imap(partial(_members, plan), chunks)


def _begin_worker(faces: tuple[tuple[str, str], ...]) -> None:
    """Take the parent's fonts; ignore Ctrl-C, because the parent ends its workers by SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    use_faces(faces)


@contextmanager
def _whole_tar(path: Path) -> Iterator[tarfile.TarFile]:
    """A tar file that gets its name when it is complete."""
    with (
        whole_file(path) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        yield tar


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a member without time or owner, so that the same images make the same file."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    tar.addfile(info, io.BytesIO(content))
