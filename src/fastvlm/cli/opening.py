"""Opening what a verb works with: images first, because a wrong path should be told before a model is loaded."""

from __future__ import annotations

import gc
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fastvlm.cli.choices import ModelChoice, Sampling
from fastvlm.cli.request import STDIN
from fastvlm.cli.terminal import Notes, quiet_libraries, quiet_warnings
from fastvlm.errors import UsageError

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from fastvlm.cli.answering import Answerer
    from fastvlm.engine.engine import Engine
    from fastvlm.engine.types import Bits
    from fastvlm.processing.tokenizer import LightTokenizer

__all__ = [
    "engine_settings",
    "open_answerer",
    "open_engine",
    "open_images",
    "open_model",
    "system_message",
    "user_message",
]


def open_images(names: Sequence[str], notes: Notes) -> tuple[list[Image], float]:
    """The images as RGB, and the milliseconds it took.

    Raises:
        UsageError: nothing came through stdin.
        ImageError: something that is no image, or too large a one, or an address that does not answer.
    """
    from fastvlm.images import open_image

    start_s = time.perf_counter()
    with notes.waiting("Fetching images"):
        images = [open_image(_source(name)) for name in names]
    return images, 1000 * (time.perf_counter() - start_s)


def _source(name: str) -> str | bytes:
    """What `open_image` takes for an image as typed: bytes for stdin and for pipes, such as the shell's <(...)."""
    if name == STDIN:
        return _read_stdin()
    return Path(name).read_bytes() if Path(name).is_fifo() else name


def _read_stdin() -> bytes:
    data = sys.stdin.buffer.read()
    if not data:
        raise UsageError("'-' reads an image from stdin, but nothing came. Try: fastvlm ask - \"...\" < cat.png")
    return data


def open_answerer(choice: ModelChoice, sampling: Sampling, notes: Notes, *, is_debug: bool) -> Answerer:
    """The chosen model, ready to answer; the libraries are imported here, and the time for it is part of loading."""
    from fastvlm.cli.mini_notice import tell_once
    from fastvlm.formats.places import checkpoint_path
    from fastvlm.processing.tokenizer import light_tokenizer

    start_s = time.perf_counter()
    quiet_warnings(is_quiet=notes.is_quiet, is_debug=is_debug)
    folder = checkpoint_path(choice.name, revision=choice.revision)  # the Hub shows a bar of its own
    tell_once(folder, notes)
    with _nothing_collected(), ThreadPoolExecutor(1) as beside:
        tokenizer = beside.submit(light_tokenizer, folder)  # while this thread imports torch
        with notes.waiting("Starting"):
            from fastvlm.cli.answering import Answerer
        with notes.waiting(f"Opening {choice.name}"):
            opened = _open_light(folder, choice, tokenizer.result)
            if opened is None:
                quiet_libraries(is_quiet=notes.is_quiet, is_debug=is_debug)
            engine = open_engine(folder, choice, opened, num_slots=1)
    return Answerer(engine, sampling, load_ms=1000 * (time.perf_counter() - start_s))


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Without looks for garbage: what opening makes stays, and 1,700 looks at it took a tenth of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def open_engine(folder: Path, choice: ModelChoice, opened: tuple[Any, Any] | None = None, **settings: Any) -> Engine:
    """The engine for a checkpoint as chosen, over `opened` if model and processor are; `settings` are the engine's."""
    from fastvlm.backends.fast import fast_engine

    model, processor = opened or open_model(folder, choice)
    return fast_engine(model, processor, **engine_settings(model, choice), **settings)


def _open_light(folder: Path, choice: ModelChoice, tokenizer: Callable[[], LightTokenizer | None]) -> Any:
    """Model and processor without transformers, or None where it needs them (and for adapters, peft)."""
    from fastvlm.backends.devices import pick_device
    from fastvlm.formats.opening import open_light

    opened = None if choice.adapter or pick_device(choice.device).type != "cpu" else open_light(folder, tokenizer)
    if opened is not None:
        _choose(opened[1], choice)
    return opened


def _choose(processor: Any, choice: ModelChoice) -> None:
    """Size and fit of images as chosen, with a warning about more pixels than the checkpoint states."""
    images = processor.image_processor
    own = images.image_size
    images.choose(choice.image_size_px, choice.image_fit)
    size = images.image_size
    if size[0] * size[1] > own[0] * own[1]:
        warnings.warn(
            f"--image-size is {size[0]}x{size[1]}, and this checkpoint was made for {own[0]}x{own[1]}: its answers may "
            "be wrong. Leave --image-size out unless it was trained at several sizes.",
            stacklevel=2,
        )


def engine_settings(model: Any, choice: ModelChoice) -> dict[str, Any]:
    """What :func:`fastvlm.fast_engine` has to know of the choice: bits, and what to compute in."""
    return {"bits": cast("Bits", choice.bits), "dtype": _computed_in(model.device, choice)}


def _computed_in(device: torch.device, choice: ModelChoice) -> torch.dtype | None:
    """None for the checkpoint's own."""
    from fastvlm.backends.devices import as_dtype
    from fastvlm.backends.fast import fast_dtype

    return fast_dtype(device) if choice.dtype == "auto" else as_dtype(choice.dtype)


def open_model(folder: Path, choice: ModelChoice, *, is_turned: bool = False) -> tuple[Any, Any]:
    """Model and processor as chosen, for :func:`fastvlm.fast_engine` with :func:`engine_settings` alone.

    For a CPU the weights stay as the file has them, mapped: the engine lays them out in what it computes in. Products
    that are stored in 8 or 4 bits are left to it too; elsewhere they become plain weights. With `is_turned` the weights
    are in what is computed in already, for who changes them before. An adapter is added into plain weights.
    """
    from fastvlm.backends.devices import pick_device
    from fastvlm.hf import loading

    device = pick_device(choice.device)
    is_plain = device.type != "cpu" or choice.adapter is not None
    dtype = _computed_in(device, choice) if is_plain or is_turned else None
    model: Any
    model, processor = loading.load(folder, device=device, dtype=dtype, has_products=is_plain)
    if choice.adapter is not None:
        from fastvlm.hf.lora import merge_adapter

        model = merge_adapter(model, choice.adapter)
    _choose(processor, choice)
    return model, processor


def user_message(images: Sequence[Image], question: str) -> dict[str, Any]:
    """A user's turn: the images, then the question."""
    items: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [*items, {"type": "text", "text": question}]}


def system_message(text: str | None) -> list[dict[str, Any]]:
    """The system turn as a list of none or one."""
    return [] if text is None else [{"role": "system", "content": [{"type": "text", "text": text}]}]
