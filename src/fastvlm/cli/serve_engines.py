"""The engines of `fastvlm serve`: one per replica, for the model and each adapter, on shared weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fastvlm.cli.choices import ModelChoice
from fastvlm.cli.opening import choose_images, device_and_dtype, engine_settings
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

    checkpoints = _checkpoints(folder, choice, settings)
    engines: dict[str, list[Engine]] = {}
    base: Engine | None = None
    for name, checkpoint in checkpoints.items():
        first = _engine(checkpoint, choice, settings, base)
        base = first if base is None else base
        engines[name] = [first, *(_engine(checkpoint, choice, settings, first) for _ in range(settings.replicas - 1))]
        if name != settings.served_name and isinstance(first.backend, LocalBackend):
            own = in_bytes(first.backend.weights.own_bytes)
            report("adapter", f"{name}: {own} of decoder weights besides those of {settings.served_name}")
    return engines


def _checkpoints(folder: Path, choice: ModelChoice, settings: ServeSettings) -> dict[str, Checkpoint]:
    """Name -> checkpoint: the model's, then one for each adapter."""
    from fastvlm.opening import open_checkpoint

    place = device_and_dtype(choice)
    adapters = settings.adapter_folders
    if adapters:
        from fastvlm.hf.lora import open_with_adapters

        base, adapted = open_with_adapters(folder, list(adapters.values()), **place)
    else:
        base, adapted = open_checkpoint(folder, **place), []
    choose_images(base.processor, choice)
    return {settings.served_name: base, **dict(zip(adapters, adapted, strict=True))}


def _engine(checkpoint: Checkpoint, choice: ModelChoice, settings: ServeSettings, base: Engine | None) -> Engine:
    from fastvlm.engine.engine import Engine

    return Engine.from_checkpoint(
        checkpoint,
        **engine_settings(choice),
        base=base,
        num_slots=settings.slots,
        context=settings.context,
        max_waiting=settings.max_waiting,
        admission_ratio=settings.admission_ratio,
        image_cache_bytes=settings.image_cache_bytes,
        pixel_cache_bytes=settings.pixel_cache_bytes,
    )
