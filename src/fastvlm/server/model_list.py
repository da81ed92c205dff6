"""The models of a server as `/v1/models` lists them: OpenAI's fields, vLLM's `parent` and `max_model_len`, limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastvlm.formats.places import SHIPPED
from fastvlm.server.service import Service

_LIMITS = ("max_images", "max_image_bytes", "max_image_pixels", "max_body_bytes", "max_output_tokens")
_ABOUT_SHIPPED = (
    "Drawings only, one question at a time: colors, shapes, counts to six, short words, 44 objects. Not photographs."
)


def list_models(service: Service) -> list[dict[str, Any]]:
    """The model, then its adapters; what only the open model knows is None until it is open.

    `limits` are the server's settings, in tokens, bytes and pixels. `image` says how images are prepared: height and
    width in pixels, fit, visual tokens each.
    """
    settings = service.settings
    limits = {name: getattr(settings, name) for name in _LIMITS}
    is_shipped = settings.model == SHIPPED and not Path(SHIPPED).is_dir()
    return [
        {
            "id": name,
            "object": "model",
            "created": service.started_at,
            "owned_by": "fastvlm",
            "parent": None if name == settings.served_name else settings.served_name,
            "description": _ABOUT_SHIPPED if is_shipped and name == settings.served_name else None,
            "limits": limits,
            **_of_engine(service, name),
        }
        for name in settings.served_names
    ]


def _of_engine(service: Service, name: str) -> dict[str, Any]:
    """`max_model_len` (tokens of a conversation, reply included) and `image`, of the open model."""
    if service.context is None:
        return {"max_model_len": None, "image": None}
    engine = service.context.models[name].all[0].engine
    processor = engine.processor.image_processor
    height, width = processor.image_size
    image = {"height": height, "width": width, "fit": processor.image_fit, "tokens": processor.num_visual_tokens()}
    return {"max_model_len": engine.context, "image": image}
