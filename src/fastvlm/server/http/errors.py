"""Errors of the API: a status and a JSON body in the format of the path's API.

OpenAI's, `{"error": {message, type, param, code}}`, stands for every path but Ollama's and Anthropic's.

The message of a :class:`FastVlmError` is passed on to the client. Any other exception is a fault of the server: the
client gets a general message, the log gets the traceback.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel
from starlette.responses import JSONResponse

from fastvlm.errors import (
    ContextLengthError,
    EngineBusyError,
    FastVlmError,
    ImageError,
    ImageTokenMismatchError,
    ImageTooLargeError,
    NonFiniteError,
    PromptError,
    UsageError,
)

logger = logging.getLogger("fastvlm.server")

_BAD_REQUEST: dict[type[FastVlmError], str] = {
    ContextLengthError: "context_length_exceeded",
    ImageTooLargeError: "image_too_large",  # before its base class
    ImageError: "invalid_image",
    ImageTokenMismatchError: "invalid_prompt",
    PromptError: "invalid_prompt",
    UsageError: "invalid_value",
}
_PYTHON_ADVICE = re.compile(r",? or (?:pass )?ImageLimits\((\w+)=[^)]*\)")  # for callers in Python
_IMAGE_SETTINGS = {"max_bytes": "max_image_bytes", "max_pixels": "max_image_pixels"}  # the same for clients
_NON_FINITE = (
    "The model computed NaN or infinity, so there is no answer: its weights are damaged, or its dtype is too narrow. "
    "The server's log has the details; ask its operator."
)
_RETRY_AFTER_S = 1  # a reply of the mini takes less than this
_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}  # OpenAI's `type`
_ANTHROPIC_KINDS = {**_KINDS, 404: "not_found_error", 413: "request_too_large", 503: "overloaded_error"}


class ErrorDetails(BaseModel):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """The body of every error response."""

    error: ErrorDetails


class OllamaError(BaseModel):
    """The body of error responses of Ollama's paths."""

    error: str


class AnthropicErrorDetails(BaseModel):
    """Anthropic's error object."""

    type: str
    message: str


class AnthropicError(BaseModel):
    """The body of error responses of Anthropic's path."""

    type: Literal["error"] = "error"
    error: AnthropicErrorDetails


def error_model(path: str) -> type[BaseModel]:
    """The schema of an error of `path`."""
    if path.startswith("/api/"):
        return OllamaError
    return AnthropicError if path.startswith("/v1/messages") else ErrorReply


class ApiError(Exception):
    """An error that is sent to the client.

    Args:
        status: HTTP status code.
        message: what was got, what was expected, what to do.
        code: identifier for programs.
        param: path of the wrong field, ``messages[0].content``.
        headers: additional headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})
        if status in (429, 503):
            self.headers["Retry-After"] = str(_RETRY_AFTER_S)


def invalid(message: str, *, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """400: the request is wrong."""
    return ApiError(400, message, code=code, param=param)


def no_such_model(names: Sequence[str]) -> ApiError:
    """404: the model's name is not one of `names`."""
    message = f"The model does not exist; this server has {', '.join(map(repr, names))}."
    return ApiError(404, message, code="model_not_found", param="model")


def busy(message: str) -> ApiError:
    """429: too many requests; the client should retry."""
    return ApiError(429, message, code="server_busy")


def not_ready(message: str) -> ApiError:
    """503: the server is starting or stopping."""
    return ApiError(503, message, code="server_not_ready")


def as_api_error(error: BaseException) -> ApiError:
    """The error that a client gets for `error`; what is not its fault is logged."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, EngineBusyError):
        return busy("The queue is full. Try again later.")
    if isinstance(error, NonFiniteError):
        logger.error("a request failed: %s", error)
        return ApiError(500, _NON_FINITE, code="non_finite", headers={"x-should-retry": "false"})
    for kind, code in _BAD_REQUEST.items():
        if isinstance(error, kind):
            return invalid(_PYTHON_ADVICE.sub(_named_setting, str(error)), code=code)
    logger.error("a request failed", exc_info=error)
    message = "The server failed to answer this request; its log has the reason."
    return ApiError(500, message, code="internal_error")


def _named_setting(advice: re.Match[str]) -> str:
    setting = _IMAGE_SETTINGS.get(advice[1])
    return "" if setting is None else f" (the limit is the server's {setting})"


def error_body(error: ApiError, path: str = "") -> dict[str, Any]:
    """The JSON body of an error of `path`, as a response or an event of a stream."""
    model = error_model(path)
    if model is OllamaError:
        return OllamaError(error=error.message).model_dump()
    if model is AnthropicError:
        kind = _ANTHROPIC_KINDS.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
        return AnthropicError(error=AnthropicErrorDetails(type=kind, message=error.message)).model_dump()
    kind = "server_error" if error.status >= 500 else _KINDS.get(error.status, "invalid_request_error")
    details = ErrorDetails(message=error.message, type=kind, param=error.param, code=error.code)
    return ErrorReply(error=details).model_dump()


def error_response(error: ApiError, path: str = "") -> JSONResponse:
    """The HTTP response of an error of `path`."""
    return JSONResponse(error_body(error, path), error.status, headers=error.headers)
