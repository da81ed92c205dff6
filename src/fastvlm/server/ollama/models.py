"""/api/tags, /api/ps, /api/show and /api/version (ollama-python 0.6.3, `_types.py`)."""

from __future__ import annotations

import hashlib
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fastvlm import __version__
from fastvlm.config_limits import dtype_name
from fastvlm.errors import FastVlmError
from fastvlm.formats.places import checkpoint_path
from fastvlm.server.http.body import parse
from fastvlm.server.http.errors import no_such_model
from fastvlm.server.model_list import Model, list_models
from fastvlm.server.request_parts import Strict
from fastvlm.server.service import Service
from fastvlm.server.settings import ServeSettings

_FOREVER = datetime(9999, 1, 1, tzinfo=timezone.utc)  # Ollama closes models that nobody uses; this server does not


class Details(BaseModel):
    """What a model is made of."""

    parent_model: str = ""
    format: str = "safetensors"
    family: str = "fastvlm"
    families: list[str] = ["fastvlm"]
    quantization_level: str = Field("", description="The dtype, or the bits, of the decoder's weights.")


class Tag(BaseModel):
    """A model of this server."""

    name: str
    model: str
    modified_at: datetime
    size: int = Field(description="Bytes of the folder's files.")
    digest: str = Field(description="Of the name and the files' names and sizes.")
    details: Details
    expires_at: datetime | None = None
    size_vram: int | None = None
    context_length: int | None = None


class TagList(BaseModel):
    """The reply of /api/tags and /api/ps."""

    models: list[Tag]


class ShowRequest(Strict):
    """POST /api/show."""

    model: str = Field("", description="A name listed by /api/tags.")
    name: str = Field("", description="The older name of model.")
    verbose: bool | None = Field(None, description="Has no effect.")


class ModelDetails(BaseModel):
    """The reply of /api/show."""

    modelfile: str = ""
    parameters: str = ""
    template: str = ""
    license: str = ""
    modified_at: datetime
    details: Details
    model_info: dict[str, Any]
    capabilities: list[str] = ["completion", "vision"]


class Version(BaseModel):
    """The reply of /api/version: fastvlm's version."""

    version: str


def tags(service: Service, _: Request) -> Response:
    """The model and its adapters."""
    return _json(TagList(models=[_tag(service, model) for model in list_models(service)]))


def running(service: Service, _: Request) -> Response:
    """The same when the model is open: it stays open."""
    open_models = list_models(service) if service.context is not None else []
    more = {"expires_at": _FOREVER, "size_vram": 0}
    models = [
        _tag(service, model).model_copy(update={**more, "context_length": model.max_model_len}) for model in open_models
    ]
    return _json(TagList(models=models))


def show(service: Service, body: bytes) -> Response:
    """What a model is. Raises ApiError for an unknown one."""
    request = parse(body, ShowRequest, service.settings)
    asked = (request.model or request.name).removesuffix(":latest")
    for model in list_models(service):
        if model.id == asked:
            tag = _tag(service, model)
            image = {} if model.image is None else {f"fastvlm.image.{key}": value for key, value in model.image}
            info = {"general.architecture": "fastvlm", "fastvlm.context_length": model.max_model_len, **image}
            return _json(ModelDetails(modified_at=tag.modified_at, details=tag.details, model_info=info))
    raise no_such_model(service.settings.served_names)


def version(_service: Service, _: Request) -> Response:
    """The version of this server."""
    return _json(Version(version=__version__))


def _json(content: BaseModel) -> Response:
    return JSONResponse(content.model_dump(mode="json", exclude_none=True))


def _tag(service: Service, model: Model) -> Tag:
    name, files = f"{model.id}:latest", _files(service.settings)
    modified_s = max((file.stat().st_mtime for file in files), default=service.started_at)
    sizes = [(file.name, file.stat().st_size) for file in files]
    return Tag(
        name=name,
        model=name,
        modified_at=datetime.fromtimestamp(modified_s, timezone.utc),
        size=sum(size for _, size in sizes),
        digest=hashlib.sha256(repr((name, sizes)).encode()).hexdigest(),
        details=Details(parent_model=model.parent or "", quantization_level=_quantization(service, model.id)),
    )


def _files(settings: ServeSettings) -> list[Path]:
    """The files of the model's folder."""
    try:
        folder = checkpoint_path(settings.model, revision=settings.revision, local_files_only=True)
    except FastVlmError:
        return []
    return sorted(file for file in folder.iterdir() if file.is_file())


def _quantization(service: Service, name: str) -> str:
    """The bits of the decoder's weights if they are rounded, else the dtype of the computation."""
    if service.context is None:
        return ""
    if service.settings.bits != 16:
        return f"int{service.settings.bits}"
    return dtype_name(service.context.models[name].all[0].engine.backend.dtype)
