"""Opening what a verb works with: images first, so that a wrong path is reported before a model is loaded."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastvlm.cli.choices import ModelChoice, Sampling
from fastvlm.cli.request import STDIN
from fastvlm.cli.terminal import Notes, quiet_libraries, quiet_warnings
from fastvlm.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastvlm.cli.answering import Answerer
    from fastvlm.engine.engine import Engine
    from fastvlm.formats.checkpoint import Checkpoint
    from fastvlm.processing.processor import Processor


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
    """The chosen model, ready to answer; importing the libraries is part of loading."""
    from fastvlm.cli.mini_notice import tell_once
    from fastvlm.formats.places import checkpoint_path
    from fastvlm.opening import garbage_collection_off

    start_s = time.perf_counter()
    quiet_warnings(is_quiet=notes.is_quiet, is_debug=is_debug)
    folder = checkpoint_path(choice.name, revision=choice.revision)  # the Hub shows a bar of its own
    tell_once(folder, notes)
    with notes.waiting(f"Opening {choice.name}"), garbage_collection_off():
        engine = open_engine(folder, choice, notes, is_debug=is_debug, num_slots=1)
        from fastvlm.cli.answering import Answerer
    return Answerer(engine, sampling, load_ms=1000 * (time.perf_counter() - start_s))


def open_engine(folder: Path, choice: ModelChoice, notes: Notes, *, is_debug: bool = False, **settings: Any) -> Engine:
    """The engine for the checkpoint in `folder` as chosen; `settings` are those of :meth:`Engine.from_checkpoint`."""
    checkpoint = open_chosen(folder, choice, notes, is_debug=is_debug)
    from fastvlm.engine.engine import Engine

    return Engine.from_checkpoint(checkpoint, **engine_settings(choice), **settings)


def open_chosen(folder: Path, choice: ModelChoice, notes: Notes, *, is_debug: bool = False) -> Checkpoint:
    """The checkpoint in `folder`, with the chosen adapter merged, and size and fit of images as chosen."""
    from fastvlm.opening import open_checkpoint

    def be_quiet() -> None:
        quiet_libraries(is_quiet=notes.is_quiet, is_debug=is_debug)

    if choice.adapter is None:
        checkpoint = open_checkpoint(folder, **device_and_dtype(choice), before_transformers=be_quiet)
    else:
        be_quiet()
        from fastvlm.hf.lora import open_with_adapters

        _, [checkpoint] = open_with_adapters(folder, [choice.adapter], **device_and_dtype(choice))
    choose_images(checkpoint.processor, choice)
    return checkpoint


def choose_images(processor: Processor, choice: ModelChoice) -> None:
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


def engine_settings(choice: ModelChoice) -> dict[str, Any]:
    """What :meth:`fastvlm.Engine.from_checkpoint` has to know of the choice: device, dtype and bits."""
    return {**device_and_dtype(choice), "bits": choice.bits}


def device_and_dtype(choice: ModelChoice) -> dict[str, Any]:
    """Device and dtype of the computation; None as dtype for the checkpoint's own."""
    from fastvlm.backends.devices import pick_device
    from fastvlm.backends.local import compute_dtype

    device = pick_device(choice.device)
    return {"device": device, "dtype": compute_dtype(choice.dtype, device)}


def user_message(images: Sequence[Image], question: str) -> dict[str, Any]:
    """A user's turn: the images, then the question."""
    items: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [*items, {"type": "text", "text": question}]}


def system_message(text: str | None) -> list[dict[str, Any]]:
    """The system turn as a list of none or one."""
    return [] if text is None else [{"role": "system", "content": [{"type": "text", "text": text}]}]
