"""Conversations of requests, in any client's API: their texts and images are checked, and the images loaded."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fastvlm.errors import ImageError, ImageTooLargeError, UsageError
from fastvlm.images.data_uri import read_data_uri
from fastvlm.server.context import ServerContext
from fastvlm.server.http.errors import ApiError, invalid
from fastvlm.server.media import MediaReader

Messages = list[dict[str, Any]]  # as `AsyncEngine.prepare` takes them; before `load_images`, an image is a `Part`


@dataclass(frozen=True)
class Part:
    """A text, or the URL of an image, in a message; `place` is the path of its field in the request.

    `pages` chooses some of a PDF.
    """

    type: Literal["text", "image"]
    content: str
    place: str
    pages: str | None = None


def conversation(context: ServerContext, turns: Sequence[tuple[str, Sequence[Part]]]) -> Messages:
    """Checked messages from (role, parts). System and developer messages are joined, in order, into the first one.

    Raises:
        ApiError: texts that are too long or have special tokens, too many images, an image that is not a user's.
    """
    parts = [part for _, parts in turns for part in parts]
    texts = [part for part in parts if part.type == "text"]
    context.text_limits.check_length((part.content for part in texts), "messages")
    for part in texts:
        context.text_limits.check_special_tokens(part.content, part.place)
    num_images, limit = len(parts) - len(texts), context.settings.max_images
    if num_images > limit:
        raise invalid(f"The request has {num_images} images; the limit is {limit} (max_images).", param="messages")
    messages: Messages = [{"role": "system", "content": []}]
    for given, own in turns:
        role = "system" if given == "developer" else given  # the model was trained with one system message
        for part in own:
            if part.type == "image" and role != "user":
                message = f"{part.place} is an image of the role {role!r}; only user messages can have one."
                raise invalid(message, param=part.place)
        content = [{"type": part.type, part.type: part if part.type == "image" else part.content} for part in own]
        if role == "system":
            messages[0]["content"] += content
        else:
            messages.append({"role": role, "content": content})
    return messages if messages[0]["content"] else messages[1:]


def conversation_key(prompts: Sequence[Messages] | Sequence[str]) -> int:
    """Equal for requests with the same texts, or that begin with the same system message and first turn."""
    return hash(tuple(prompt if isinstance(prompt, str) else _beginning(prompt) for prompt in prompts))


def _beginning(messages: Messages) -> tuple[Any, ...]:
    beginning = messages[: 2 if messages[0]["role"] == "system" else 1]
    return tuple(tuple(item.values()) for message in beginning for item in message["content"])


async def load_images(context: ServerContext, messages: Messages, reader: MediaReader) -> None:
    """Replace the parts of images by encoded images: data URIs are decoded, URLs of allowed hosts fetched.

    PDFs and videos become several images. No file is opened: other schemes are refused.

    Raises:
        ApiError: an invalid data URI, a URL that is not allowed, an image with too many bytes; a file that is not
            accepted, or with too many pages.
    """
    num_others = sum(item["type"] == "image" for message in messages for item in message["content"]) - 1
    for message in messages:
        items: Messages = []
        for item in message["content"]:
            if item["type"] != "image":
                items.append(item)
                continue
            loaded = await _load(context, item["image"], reader, context.settings.max_images - num_others)
            num_others += sum(one["type"] == "image" for one in loaded) - 1
            items += loaded
        message["content"] = items


async def _load(context: ServerContext, part: Part, reader: MediaReader, most: int) -> Messages:
    """The items for one part; `most` images may come of it."""
    url, place, scheme = part.content, part.place, part.content[:6].lower().partition(":")[0]
    try:
        if scheme in ("http", "https"):
            return await reader.items(await context.remote_images.fetch(url), part.pages, place, most)
        if scheme != "data":
            raise ImageError(
                f"{place} is neither a data URI nor an http(s) URL; paths and other schemes are refused. Expected "
                "data:image/png;base64,<payload>."
            )
        data = await asyncio.to_thread(read_data_uri, url, place, context.settings.max_image_bytes)
        if not data:
            raise ImageError(f"{place} is empty; expected an encoded image.")
        return await reader.items(data, part.pages, place, most)
    except ApiError as error:
        error.param = error.param or place
        raise
    except (ImageError, UsageError) as error:
        code = "image_too_large" if isinstance(error, ImageTooLargeError) else "invalid_image_url"
        raise invalid(str(error), param=place, code=code) from error
