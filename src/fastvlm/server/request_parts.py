"""What the schemas of requests share, in any client's API."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from fastvlm.engine.types import MAX_STOP_STRINGS
from fastvlm.server.http.errors import invalid

MAX_PARTS = 1000  # in one message, and messages in one request
_MAX_STOP_CHARACTERS = 256  # a step compares every ending of the text so far with every stop string

Label = Annotated[str, Field(max_length=512)]  # a text without effect
StopString = Annotated[str, Field(min_length=1, max_length=_MAX_STOP_CHARACTERS)]
StopStrings = Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS, fail_fast=True)]


class Strict(BaseModel):
    """Part of a request: exact types, known names only.

    Unknown parameters and unsupported values are refused: a parameter that is silently ignored would give a wrong
    answer.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def refuse_tools(tools: list[Any] | None, tool_choice: object) -> None:
    """Raise ApiError for a request with tools: FastVLM was not trained to call functions."""
    if tools or tool_choice not in (None, "none", "auto"):
        raise invalid(
            "This model was not trained to call tools. Remove tools and tool_choice; for an answer that a program "
            "reads, ask for a JSON schema with response_format.",
            param="tools" if tools else "tool_choice",
            code="unsupported_parameter",
        )
