"""The engines of `fastvlm serve`: one per replica, for the model and each adapter, on shared weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastvlm.cli.choices import ModelChoice
from fastvlm.cli.opening import engine_settings, open_model
from fastvlm.cli.terminal import in_bytes

if TYPE_CHECKING:
    from fastvlm.backends.fast import SharedWeights
    from fastvlm.engine.engine import Engine
    from fastvlm.server.settings import ServeSettings

__all__ = ["open_engines"]


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
    from fastvlm.backends.fast import SharedWeights
    from fastvlm.hf.lora import merge_adapter, sharing_copy

    model, processor = open_model(folder, choice, is_turned=bool(settings.adapter_folders))
    models = {settings.served_name: model}
    models |= {name: merge_adapter(model, where) for name, where in settings.adapter_folders.items()}
    copies = {name: [one, *(sharing_copy(one) for _ in range(settings.replicas - 1))] for name, one in models.items()}
    shared = SharedWeights() if len(models) * settings.replicas > 1 else None
    engines: dict[str, list[Engine]] = {}
    for name, several in copies.items():
        before = 0 if shared is None else shared.num_bytes
        engines[name] = [_engine(one, processor, choice, settings, shared) for one in several]
        if shared is not None and name != settings.served_name:
            own = in_bytes(shared.num_bytes - before)
            report("adapter", f"{name}: {own} of decoder weights besides those of {settings.served_name}")
    return engines


def _engine(
    model: Any, processor: Any, choice: ModelChoice, settings: ServeSettings, shared: SharedWeights | None
) -> Engine:
    from fastvlm.backends.fast import fast_engine

    return fast_engine(
        model,
        processor,
        **engine_settings(model, choice),
        shared=shared,
        num_slots=settings.slots,
        context=settings.context,
        max_waiting=settings.max_waiting,
        admission_ratio=settings.admission_ratio,
        image_cache_bytes=settings.image_cache_bytes,
        pixel_cache_bytes=settings.pixel_cache_bytes,
    )
