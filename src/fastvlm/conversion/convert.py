"""``fastvlm.convert``: a checkpoint in the other layout, tensor by tensor, all or nothing.

Values are not touched: names change, and with them the files around the weights.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fastvlm.backends.devices import as_dtype
from fastvlm.conversion.apple_extras import AppleExtras
from fastvlm.conversion.new_folder import carry_files, planned_tensors, write_fast_vlm_files
from fastvlm.conversion.shards import (
    PlannedTensor,
    num_bytes_of,
    split_into_shards,
    write_index,
    write_safetensors,
)
from fastvlm.errors import CheckpointError, UsageError
from fastvlm.formats.apple_config import to_apple_config
from fastvlm.formats.checksums import write_checksums
from fastvlm.formats.folder import CheckpointFolder, inspect_folder
from fastvlm.formats.names import EMBEDDING, HEAD, LAYOUTS, Layout, names_to_apple
from fastvlm.formats.places import checkpoint_path, new_folder
from fastvlm.hf.config import FastVlmConfig
from fastvlm.hf.loading import load_processor
from fastvlm.hf.pretrained import generation_config_of
from fastvlm.hf.processor import FastVlmProcessor
from fastvlm.storage.whole_folders import whole_folder

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ConversionReport:
    """What :func:`convert` did.

    Args:
        path: the folder written.
        source, to: layouts read and written.
        num_tensors, num_bytes: of the weights written.
        files: names of the weight files.
        dropped: names in the source of tensors that the VLM does not use and the weights written do not have.
        added_rows: rows of zeros appended to the vocabulary.
    """

    path: Path
    source: Layout
    to: Layout
    num_tensors: int
    num_bytes: int
    files: tuple[str, ...]
    dropped: tuple[str, ...]
    added_rows: int


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    to: str = "fast_vlm",
    *,
    dtype: str | torch.dtype | None = None,
    max_shard_size: int | str = "2GB",
    fuse: bool = False,
    progress: Progress | None = None,
    **hub: Any,
) -> ConversionReport:
    """Write the checkpoint `source` to the new folder `target` in the layout `to`.

    Tensors are read, renamed and written one at a time; memory is needed for the largest of them. The folder appears
    under its name when all of it is written, or not at all. `source` is only read. A source that has the layout
    already gives a copy in the form that this function writes, and converting that again gives the same bytes.

    Args:
        source: as for :func:`fastvlm.load`.
        target: a folder that does not exist yet.
        to: "fast_vlm" (transformers) or "llava_qwen2" (Apple).
        dtype: of the floating tensors written; None or "auto" to keep theirs.
        max_shard_size: bytes, or a size such as "2GB".
        fuse: turn a multi-branch encoder into the inference form.
        progress: called with (bytes written, bytes in all) after every tensor.
        hub: `revision`, `token`, `cache_dir`, `local_files_only`, `subfolder`, for a source on the Hub.

    Raises:
        UsageError: an unknown layout or dtype, a target that exists.
        CheckpointError: the source is not a complete checkpoint, or the layout cannot express it.
    """
    layout = next((known for known in LAYOUTS if known == to), None)
    if layout is None:
        raise UsageError(f"to is {to!r}; the layouts are {', '.join(LAYOUTS)}.")
    target, max_bytes, wanted = new_folder(target), num_bytes_of(max_shard_size), as_dtype(dtype)
    folder = inspect_folder(checkpoint_path(source, **hub))
    config = FastVlmConfig.from_dict(dict(folder.config))
    processor, extras = load_processor(folder.path, config), AppleExtras.of(folder)
    tensors = planned_tensors(folder, config, do_fuse=fuse)
    tensors = _in_dtype(tensors if layout == "fast_vlm" else _as_apple(tensors, config, extras), wanted)
    config.dtype = next((t.dtype for t in tensors if t.dtype.is_floating_point), torch.float32)
    shards = split_into_shards(tensors, max_bytes)
    with whole_folder(target) as work:
        _write_weights(work, shards, progress)
        write_files = write_fast_vlm_files if layout == "fast_vlm" else _write_apple
        write_files(work, folder, config, processor, extras)
        carry_files(folder.path, work)
        write_checksums(work)
    folder.weights.close()
    return _report(target, folder, layout, shards)


def _report(
    target: Path, folder: CheckpointFolder, layout: Layout, shards: dict[str, list[PlannedTensor]]
) -> ConversionReport:
    tensors = [tensor for shard in shards.values() for tensor in shard]
    written = {tensor.name for tensor in tensors}
    return ConversionReport(
        path=target,
        source=folder.layout,
        to=layout,
        num_tensors=len(tensors),
        num_bytes=sum(tensor.num_bytes for tensor in tensors),
        files=tuple(shards),
        dropped=tuple(name for name in folder.dropped if name not in written),
        added_rows=folder.added_rows if layout == "fast_vlm" else 0,
    )


def _in_dtype(tensors: list[PlannedTensor], dtype: torch.dtype | None) -> list[PlannedTensor]:
    if dtype is None:
        return tensors
    return [replace(t, dtype=dtype) if t.dtype.is_floating_point else t for t in tensors]


def _as_apple(tensors: list[PlannedTensor], config: FastVlmConfig, extras: AppleExtras | None) -> list[PlannedTensor]:
    """The same under Apple's names: with a head even if tied, the rows Apple had, and what was kept of Apple's."""
    by_name = {tensor.name: tensor for tensor in tensors}
    if HEAD not in by_name and (extras is None or extras.has_head):
        by_name[HEAD] = replace(by_name[EMBEDDING], name=HEAD)
    rows = config.text_config.vocab_size if extras is None else min(extras.num_rows, config.text_config.vocab_size)
    for name in (EMBEDDING, HEAD):
        if name in by_name:
            by_name[name] = _first_rows(by_name[name], rows)
    names = names_to_apple(by_name)
    renamed = [replace(tensor, name=names[name]) for name, tensor in by_name.items()]
    return renamed + list(() if extras is None else extras.tensors)


def _first_rows(tensor: PlannedTensor, rows: int) -> PlannedTensor:
    return replace(tensor, shape=(rows, *tensor.shape[1:]), read=lambda: tensor.read()[:rows])


def _write_weights(work: Path, shards: dict[str, list[PlannedTensor]], progress: Progress | None) -> None:
    total, done = sum(t.num_bytes for shard in shards.values() for t in shard), 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    for name, tensors in shards.items():
        write_safetensors(work / name, tensors, on_bytes)
    write_index(work, shards)


def _write_apple(
    work: Path,
    folder: CheckpointFolder,
    config: FastVlmConfig,
    processor: FastVlmProcessor,
    extras: AppleExtras | None,
) -> None:
    images = processor.image_processor
    height, width = images.image_size
    if height != width:
        raise CheckpointError(f"The images are {height} x {width} px; Apple's layout has square images only.")
    content = to_apple_config(config.to_dict(), size_px=height, fit=images.image_fit)
    if extras is not None:
        content = {**content, **extras.config, **_recomputed(content)}
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    (work / "config.json").write_text(text, encoding="utf-8")
    generation_config_of(folder, config).save_pretrained(work)
    processor.tokenizer.save_pretrained(work)


def _recomputed(content: dict[str, Any]) -> dict[str, Any]:
    """The keys that follow from the tensors; they replace those of Apple's file."""
    return {key: content[key] for key in ("tie_word_embeddings", "torch_dtype")}
