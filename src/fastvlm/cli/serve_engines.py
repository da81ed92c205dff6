"""The engines of `fastvlm serve`: one per replica, for the model and each adapter, on shared weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastvlm.cli.choices import ModelChoice
from fastvlm.cli.terminal import in_bytes

if TYPE_CHECKING:
    from fastvlm.engine.engine import Engine
    from fastvlm.formats.checkpoint import Checkpoint
    from fastvlm.server.settings import ServeSettings


def open_engines(
    folder: Path, choice: ModelChoice, settings: ServeSettings, report: Callable[[str, str], None]
) -> dict[str, list[Engine]]:
    """The engines of each model name, the model's own first.

    Args:
        folder, choice: the checkpoint, and how it is opened.
        settings: adapters, replicas, and the settings of each engine.
        report: called with (kind, message): the memory that each adapter takes.

    Raises:
        CheckpointError: an adapter that does not fit the model.
        MissingExtraError: there are adapters, and peft is not installed.
    """
    from fastvlm.backends.local import LocalBackend

    place, bits = _place(choice), {"bits": choice.bits, "encoder_bits": choice.encoder_bits}
    checkpoints = _checkpoints(folder, choice, settings, place)
    engines: dict[str, list[Engine]] = {}
    base: Engine | None = None
    for name, checkpoint in checkpoints.items():
        first = _engine(checkpoint, settings, base, **bits, **place)
        base = first if base is None else base
        engines[name] = [
            first,
            *(_engine(checkpoint, settings, first, **bits, **place) for _ in range(settings.replicas - 1)),
        ]
        if name != settings.served_name and isinstance(first.backend, LocalBackend):
            own = in_bytes(first.backend.weights.own_bytes)
            report("adapter", f"{name}: {own} of decoder weights besides those of {settings.served_name}")
    return engines


def _place(choice: ModelChoice) -> dict[str, Any]:
    """Device and dtype of the computation."""
    from fastvlm.backends.devices import pick_device
    from fastvlm.backends.local import compute_dtype

    device = pick_device(choice.device)
    return {"device": device, "dtype": compute_dtype(choice.dtype, device)}


def _checkpoints(
    folder: Path, choice: ModelChoice, settings: ServeSettings, place: dict[str, Any]
) -> dict[str, Checkpoint]:
    """Name -> checkpoint: the model's, then one for each adapter."""
    from fastvlm.opening import choose_images, open_checkpoint

    adapters = settings.adapter_folders
    if adapters:
        from fastvlm.hf.lora import open_with_adapters

        base, adapted = open_with_adapters(folder, list(adapters.values()), **place)
    else:
        base, adapted = open_checkpoint(folder, **place), []
    choose_images(base.processor, choice.image_size_px, choice.image_fit)
    return {settings.served_name: base, **dict(zip(adapters, adapted, strict=True))}


def _engine(checkpoint: Checkpoint, settings: ServeSettings, base: Engine | None, **place: Any) -> Engine:
    from fastvlm.engine.engine import Engine

    return Engine.from_checkpoint(
        checkpoint,
        **place,
        base=base,
        num_slots=settings.slots,
        context=settings.context,
        max_waiting=settings.max_waiting,
        admission_ratio=settings.admission_ratio,
        prompt_lookup_num_tokens=settings.prompt_lookup,
        image_cache_bytes=settings.image_cache_bytes,
        pixel_cache_bytes=settings.pixel_cache_bytes,
    )
