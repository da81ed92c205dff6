"""The engines of a server: one per replica, for the model and each adapter, on shared weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastvlm.backends.devices import pick_device
from fastvlm.backends.local import LocalBackend, compute_dtype
from fastvlm.config_limits import parse_size
from fastvlm.engine.engine import Engine
from fastvlm.formats.checkpoint import Checkpoint
from fastvlm.formats.places import checkpoint_path
from fastvlm.opening import choose_images, open_checkpoint
from fastvlm.server.settings import ServeSettings


def open_engines(
    settings: ServeSettings, on_adapter: Callable[[str, int], None] = lambda *_: None
) -> dict[str, list[Engine]]:
    """The engines of each model name, the model's own first.

    Args:
        settings: the checkpoint and how it is opened, adapters, replicas, and the settings of each engine.
        on_adapter: called with the name of each adapter and the bytes of decoder weights that it needs for itself.

    Raises:
        CheckpointError: an adapter that does not fit the model.
        MissingExtraError: there are adapters, and peft is not installed.
    """
    folder = checkpoint_path(settings.model, revision=settings.revision)
    place, bits = _place(settings), {"bits": settings.bits, "encoder_bits": settings.encoder_bits}
    checkpoints = _checkpoints(folder, settings, place)
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
            on_adapter(name, first.backend.weights.own_bytes)
    return engines


def _place(settings: ServeSettings) -> dict[str, Any]:
    """Device and dtype of the computation."""
    device = pick_device(settings.device)
    return {"device": device, "dtype": compute_dtype(settings.dtype, device)}


def _checkpoints(folder: Path, settings: ServeSettings, place: dict[str, Any]) -> dict[str, Checkpoint]:
    """Name -> checkpoint: the model's, then one for each adapter."""
    adapters = settings.adapter_folders
    if adapters:
        from fastvlm.hf.lora import open_with_adapters  # noqa: PLC0415 - transformers, not needed without adapters

        base, adapted = open_with_adapters(folder, list(adapters.values()), **place)
    else:
        base, adapted = open_checkpoint(folder, **place), []
    choose_images(base.processor, parse_size(settings.image_size), settings.image_fit)
    return {settings.served_name: base, **dict(zip(adapters, adapted, strict=True))}


def _engine(checkpoint: Checkpoint, settings: ServeSettings, base: Engine | None, **place: Any) -> Engine:
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
