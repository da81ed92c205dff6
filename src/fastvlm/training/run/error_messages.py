"""Readable errors of a run: out of memory, disk full, samples that a DataLoader worker could not read."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from fastvlm.errors import DataError, StorageError, TrainingError
from fastvlm.training.recipe import Recipe
from fastvlm.training.run.run_folder import RunFolder

_DISK_FAILED = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG, errno.EIO, errno.EROFS)
# torch and safetensors put the system's words into errors of their own.
_NO_ROOM_WORDS = re.compile(
    r"No space left|quota exceeded|File too large|PytorchStreamWriter failed|unexpected pos", re.I
)
_NO_MEMORY_WORDS = re.compile(r"can't allocate memory|out of memory|not enough memory|Cannot allocate memory", re.I)
_FROM_WORKER = re.compile(r"^Caught \w+ in DataLoader worker process")


@contextmanager
def readable_errors(recipe: Recipe, files: RunFolder) -> Iterator[None]:
    """Context that turns errors of the system and of libraries into a TrainingError with advice."""
    try:
        yield
    except (MemoryError, OSError, RuntimeError, SafetensorError, DataError) as error:
        if (words := _words(error, recipe, files)) is None:
            raise
        raise words from error


def _words(error: Exception, recipe: Recipe, files: RunFolder) -> Exception | None:
    if isinstance(error, TrainingError):
        return None
    if isinstance(error, StorageError):
        return TrainingError(_not_written(str(error), files))
    if isinstance(error, DataError):
        is_relayed = _FROM_WORKER.match(str(error)) is not None
        return DataError(str(error).strip().splitlines()[-1].split("Error: ", 1)[-1]) if is_relayed else None
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or _NO_MEMORY_WORDS.search(str(error)):
        return TrainingError(_no_memory(recipe, files))
    if _is_of_the_disk(error, files) or _NO_ROOM_WORDS.search(str(error)):
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        return TrainingError(
            _not_written(f"Writing to {files.folder} failed: {reason}. Free space there, or repair the disk.", files)
        )
    return None


def _is_of_the_disk(error: Exception, files: RunFolder) -> bool:
    """True for an error of writing into the run's folder, such as TensorBoard's, but not for other files."""
    if not isinstance(error, OSError) or error.errno not in _DISK_FAILED:
        return False
    return error.filename is None or Path(str(error.filename)).absolute().is_relative_to(files.folder)


def _kept(files: RunFolder) -> str:
    last = files.last_good()
    return f"the last good checkpoint, {last}, is kept" if last else "there was no checkpoint yet"


def _no_memory(recipe: Recipe, files: RunFolder) -> str:
    ways = []
    if recipe.micro_batch_size > 1:
        ways.append(f"micro_batch_size (now {recipe.micro_batch_size}; batch_size can stay)")
    if not recipe.gradient_checkpointing:
        ways.append("set gradient_checkpointing: true")
    ways.append("image_size or max_tokens")
    if recipe.lora is None:
        ways.append("train adapters only (lora)")
    elif recipe.base_bits == 16:
        ways.append("base_bits: 8 or 4")
    return f"There is too little memory for a step; {_kept(files)}. Lower or try, in this order: {'; '.join(ways)}."


def _not_written(what: str, files: RunFolder) -> str:
    return f"{what} No incomplete file was left there, and {_kept(files)}; continue with --resume."
