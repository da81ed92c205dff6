"""Opens a checkpoint by its name, whatever its layout. Commands, server and classes use these functions."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastvlm.errors import CheckpointError, UnusualCheckpointError, UsageError
from fastvlm.formats.places import EXPORT_FILE, SHIPPED, checkpoint_path
from fastvlm.processing.tokenizer import Tokenizer, open_tokenizer

if TYPE_CHECKING:
    import torch

    from fastvlm.config import Bits
    from fastvlm.engine.engine import Engine
    from fastvlm.formats.checkpoint import Checkpoint
    from fastvlm.processing.processor import Processor

RUNTIMES = ("torch", "onnx")
_OF_TORCH: dict[str, Any] = {"encoder_bits": 16, "context": None, "kernels": "fast", "base": None}  # engine settings


def open_engine(
    name_or_folder: str | os.PathLike[str] = SHIPPED,
    *,
    revision: str | None = None,
    device: str | None = None,
    dtype: str = "auto",
    bits: Bits = 16,
    adapter: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    image_fit: str | None = None,
    runtime: str | None = None,
    before_transformers: Callable[[], None] = lambda: None,
    **settings: Any,
) -> Engine:
    """Open a checkpoint, or a folder of ``fastvlm export --to onnx``, and build an engine for it.

    Args:
        name_or_folder, revision, before_transformers: see :func:`open_checkpoint`.
        device: "cpu", "cuda", "cuda:1", "mps"; None for the first of cuda, mps, cpu that is there.
        dtype: "float32", "bfloat16", "float16"; "auto" for what is fast on the device.
        bits: of the decoder's weights, 16, 8 or 4; fewer than 16 on a CPU only.
        adapter: folder of a LoRA adapter to merge.
        image_size, image_fit: see :func:`choose_images`.
        runtime: "torch" or "onnx"; None for what the folder is made for. With "onnx", `dtype` is one of the variants
            that were exported ("fp32", "q8", ...), and what the export has fixed cannot be changed.
        settings: further ones of :meth:`fastvlm.Engine.from_checkpoint`.

    Raises:
        CheckpointError, ConfigError: not a FastVLM checkpoint or adapter that can be opened.
        UsageError: a device, dtype or number that does not exist.
        MissingExtraError: an adapter is given and peft is not installed; onnxruntime is needed and is not installed.
    """
    folder = checkpoint_path(name_or_folder, revision=revision)
    if _runtime(folder, runtime) == "onnx":
        fixed = {"device": device, "bits": bits, "adapter": adapter, "image_size": image_size, "image_fit": image_fit}
        return _open_onnx(folder, dtype, fixed, settings)
    with _tokenizer_being_read(folder) as tokenizer:
        from fastvlm.backends.devices import pick_device  # noqa: PLC0415  # imports torch
        from fastvlm.backends.local import compute_dtype  # noqa: PLC0415
        from fastvlm.engine.engine import Engine  # noqa: PLC0415

        where = pick_device(device)
        kind = compute_dtype(dtype, where)
        if adapter is None:
            checkpoint = _opened(folder, tokenizer, where, kind, before_transformers)
        else:
            before_transformers()
            from fastvlm.hf.lora import open_with_adapters  # noqa: PLC0415

            _, [checkpoint] = open_with_adapters(folder, [adapter], device=where, dtype=kind)
        choose_images(checkpoint.processor, image_size, image_fit)
        return Engine.from_checkpoint(checkpoint, device=where, dtype=kind, bits=bits, **settings)


def _runtime(folder: Path, asked: str | None) -> str:
    """The runtime for `folder`; raises UsageError for an unknown one."""
    if asked not in (None, *RUNTIMES):
        raise UsageError(f"runtime is {asked!r}; expected one of {', '.join(RUNTIMES)}.")
    return asked or ("onnx" if (folder / EXPORT_FILE).is_file() else "torch")


def _open_onnx(folder: Path, dtype: str, fixed: dict[str, Any], settings: dict[str, Any]) -> Engine:
    """An engine on ONNX Runtime; `fixed` are settings that must have their defaults, because the files fix them."""
    from fastvlm.backends.onnx import OnnxBackend, chosen_variants  # noqa: PLC0415  # imports torch
    from fastvlm.engine.engine import Engine  # noqa: PLC0415
    from fastvlm.formats.exported import ExportNotes, open_exported  # noqa: PLC0415

    fixed = {**fixed, **{name: settings.pop(name, default) for name, default in _OF_TORCH.items()}}
    defaults = {"device": (None, "cpu"), "bits": (16,), **{name: (value,) for name, value in _OF_TORCH.items()}}
    for name, value in fixed.items():
        if value not in defaults.get(name, (None,)):
            raise UsageError(f"{name} is {value!r}, but {folder} is an export to ONNX, whose files fix it.")
    notes = ExportNotes.read(folder)
    if notes.format != "onnx":
        raise CheckpointError(f"{folder} is an export to {notes.format}; its README.md says which program reads it.")
    checkpoint = open_exported(folder, notes)
    variants = chosen_variants(dtype, notes.variants, notes.defaults)
    num_slots, threads = settings.pop("num_slots", 4), settings.pop("threads", 0)
    backend = OnnxBackend(folder, checkpoint.config.text_config, variants, num_slots, threads)
    return Engine(checkpoint, backend, **settings)


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
    with _tokenizer_being_read(folder) as tokenizer:
        return _opened(folder, tokenizer, device, dtype, before_transformers)


def _opened(
    folder: Path,
    tokenizer: Callable[[], Tokenizer],
    device: torch.device | None,
    dtype: torch.dtype | None,
    before_transformers: Callable[[], None],
) -> Checkpoint:
    from fastvlm.formats.opening import open_folder  # noqa: PLC0415  # imports torch, which takes a second

    try:
        return open_folder(folder, tokenizer)
    except UnusualCheckpointError:
        # The one import of transformers on this way: it reads every configuration and tokenizer that there is, at the
        # price of seconds, and its errors say what is wrong with a folder that nothing can open.
        before_transformers()
        from fastvlm.hf.loading import open_with_transformers  # noqa: PLC0415

        return open_with_transformers(folder, device, dtype)


@contextmanager
def _tokenizer_being_read(folder: Path) -> Iterator[Callable[[], Tokenizer]]:
    """Read the tokenizer in a thread while this one imports torch; the function that is yielded waits for it."""
    with garbage_collection_off(), ThreadPoolExecutor(1) as thread:
        yield thread.submit(open_tokenizer, folder).result


def choose_images(processor: Processor, image_size: int | tuple[int, int] | None, image_fit: str | None) -> None:
    """Set size and fit of images; a size with more pixels than the checkpoint's own warns.

    Args:
        processor: of the opened checkpoint.
        image_size: pixels a side, or (height, width); None for the checkpoint's own.
        image_fit: "pad", "crop" or "stretch"; None for the checkpoint's own.

    Raises:
        ConfigError: a size or fit that the processor does not have.
    """
    images = processor.image_processor
    own = images.image_size
    images.choose(image_size, image_fit)
    size = images.image_size
    if size[0] * size[1] > own[0] * own[1]:
        warnings.warn(
            f"The image size is {size[0]}x{size[1]}, and this checkpoint was made for {own[0]}x{own[1]}: its answers "
            "may be wrong. Give no image size unless the checkpoint was trained at several sizes.",
            stacklevel=2,
        )


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
