"""The models of a server as `/v1/models` lists them: OpenAI's fields, vLLM's `parent` and `max_model_len`, limits."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from fastvlm.formats.places import SHIPPED
from fastvlm.server.service import Service

_ABOUT_SHIPPED = (
    "Drawings only, one question at a time: colors, shapes, counts to six, short words, 44 objects. Not photographs."
)


class ModelLimits(BaseModel, from_attributes=True):
    """What one request may have: settings of the server, in tokens, bytes and pixels."""

    max_images: int
    max_image_bytes: int
    max_image_pixels: int
    max_body_bytes: int
    max_output_tokens: int
    accepts: tuple[str, ...] = Field(description="Files that may be sent where an image may be: pdf, video.")


class ImagePreparation(BaseModel):
    """What becomes of an image: height and width in pixels, visual tokens each."""

    height: int
    width: int
    fit: str = Field(description="pad, crop or stretch.")
    tokens: int


class Model(BaseModel):
    """A model of this server."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["fastvlm"] = "fastvlm"
    parent: str | None = Field(None, description="The model that an adapter stands on.")
    description: str | None = Field(None, description="What the model can and cannot do.")
    max_model_len: int | None = Field(default=None, description="Tokens of a conversation, reply included.")
    limits: ModelLimits
    image: ImagePreparation | None = None


class ModelList(BaseModel):
    """The reply of /v1/models."""

    object: Literal["list"] = "list"
    data: list[Model]


def list_models(service: Service) -> list[Model]:
    """The model, then its adapters; what only the open model knows is None until it is open."""
    return [_model(service, name) for name in service.settings.served_names]


def _model(service: Service, name: str) -> Model:
    settings = service.settings
    is_adapter = name != settings.served_name
    is_shipped = settings.model == SHIPPED and not Path(SHIPPED).is_dir()
    model = Model(
        id=name,
        created=service.started_at,
        parent=settings.served_name if is_adapter else None,
        description=_ABOUT_SHIPPED if is_shipped and not is_adapter else None,
        limits=ModelLimits.model_validate(settings),
    )
    if service.context is not None:
        engine = service.context.models[name].all[0].engine
        processor = engine.processor.image_processor
        height, width = processor.image_size
        model.max_model_len = engine.context
        model.image = ImagePreparation(
            height=height, width=width, fit=processor.image_fit, tokens=processor.num_visual_tokens()
        )
    return model
