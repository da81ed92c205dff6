"""A checkpoint by its name -> :class:`Checkpoint`, whatever its layout. Commands, server and classes open it here."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fastvlm.errors import UnusualCheckpointError
from fastvlm.formats.places import SHIPPED, checkpoint_path
from fastvlm.processing.tokenizer import open_tokenizer

if TYPE_CHECKING:
    import torch

    from fastvlm.formats.checkpoint import Checkpoint


def open_checkpoint(
    name_or_folder: str | os.PathLike[str] = SHIPPED,
    *,
    revision: str | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    before_transformers: Callable[[], None] = lambda: None,
) -> Checkpoint:
    """Open a checkpoint: ``fast_vlm``, Apple's ``llava_qwen2`` or what ``fastvlm quantize`` wrote.

    Weights stay in their files, mapped, until an engine lays them out.

    Args:
        name_or_folder: a folder, ``"owner/repository"`` on the Hub, or ``"mini"`` for the shipped checkpoint.
        revision: branch, tag or commit on the Hub.
        device, dtype: only for a checkpoint that transformers has to open: where and in what it loads the weights.
        before_transformers: called before transformers is imported, if it is.

    Raises:
        CheckpointError: not found, gated, offline and not in the cache, or not a complete FastVLM checkpoint.
        ConfigError: a configuration or image settings that no FastVLM can have.
    """
    folder = checkpoint_path(name_or_folder, revision=revision)
    with garbage_collection_off(), ThreadPoolExecutor(1) as beside:
        tokenizer = beside.submit(open_tokenizer, folder)  # while this thread imports torch
        from fastvlm.formats.opening import open_folder  # noqa: PLC0415  # imports torch, which takes a second

        try:
            return open_folder(folder, tokenizer.result)
        except UnusualCheckpointError:
            before_transformers()
            return _open_with_transformers(folder, device, dtype)


def _open_with_transformers(folder: Path, device: torch.device | None, dtype: torch.dtype | None) -> Checkpoint:
    # The one import of transformers on this way: it reads every configuration and tokenizer that there is, at the price
    # of seconds, and its errors say what is wrong with a folder that nothing can open.
    from fastvlm.hf.checkpoint import open_with_transformers  # noqa: PLC0415

    return open_with_transformers(folder, device, dtype)


@contextmanager
def garbage_collection_off() -> Iterator[None]:
    """Disable garbage collection while opening: what is made stays, and 1,700 collections took 10 % of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
