"""Messages of OpenAI's API -> the engine's messages, with images as bytes.

An image is a data URI, or a URL that :mod:`fastvlm.server.http.remote_images` fetches. No file is opened: other schemes
are refused before anything reads them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from fastvlm.errors import ImageError, ImageTooLargeError
from fastvlm.images.data_uri import is_data_uri, read_data_uri
from fastvlm.server.http.errors import ApiError, invalid
from fastvlm.server.openai.schemas import ImagePart, Message
from fastvlm.server.openai.text_limits import TextLimits

FetchImage = Callable[[str], Awaitable[bytes]]  # URL -> encoded image; raises ApiError


async def read_messages(
    messages: Sequence[Message], fetch: FetchImage, *, max_images: int, max_image_bytes: int
) -> list[dict[str, Any]]:
    """Messages as :meth:`fastvlm.AsyncEngine.prepare` takes them, images as bytes.

    Raises:
        ApiError: too many images, an image outside of a user message, an invalid data URI, a URL that is not allowed,
            an image with too many bytes.
    """
    images = list(_images(messages))
    if len(images) > max_images:
        raise invalid(f"The request has {len(images)} images; the limit is {max_images}.", param="messages")
    contents: dict[int, bytes] = {}
    for place, role, part in images:
        if role != "user":
            raise invalid(f"{place} is an image of the role {role!r}; only user messages can have one.", param=place)
        try:
            contents[id(part)] = await _image(part.url, place, fetch, max_image_bytes)
        except ApiError as error:
            error.param = error.param or place
            raise
    return _turns(messages, contents)


def check_texts(messages: Sequence[Message], limits: TextLimits) -> None:
    """Check everything about messages that needs no image.

    Raises:
        ApiError: see :class:`TextLimits`; a message without content that is not the assistant's; an assistant's
            message at the end.
    """
    for index, message in enumerate(messages):
        if message.content is None and message.role != "assistant":
            place = f"messages[{index}].content"
            raise invalid(f"{place} is missing or null.", param=place, code="missing_required_parameter")
    last = f"messages[{len(messages) - 1}]"
    if messages[-1].role == "assistant":
        raise invalid(f"{last} has the role 'assistant'. End with a user message.", param=last)
    limits.check_length((text for _, text in _texts(messages)), "messages")
    for place, text in _texts(messages):
        limits.check_special_tokens(text, place)


def _texts(messages: Sequence[Message]) -> Iterator[tuple[str, str]]:
    """(path of the field, text) of each text."""
    for index, message in enumerate(messages):
        place = f"messages[{index}].content"
        if isinstance(message.content, str):
            yield place, message.content
        elif message.content is not None:
            for number, part in enumerate(message.content):
                if not isinstance(part, ImagePart):
                    yield f"{place}[{number}].text", part.text


def _images(messages: Sequence[Message]) -> Iterator[tuple[str, str, ImagePart]]:
    for index, message in enumerate(messages):
        if isinstance(message.content, list):
            for number, part in enumerate(message.content):
                if isinstance(part, ImagePart):
                    key = "image_url" if isinstance(part.image_url, str) else "image_url.url"
                    yield f"messages[{index}].content[{number}].{key}", message.role, part


async def _image(url: str, place: str, fetch: FetchImage, max_bytes: int) -> bytes:
    if is_data_uri(url):
        return await asyncio.to_thread(_data_uri, url, place, max_bytes)
    scheme = url.partition(":")[0].lower()
    if scheme in ("http", "https"):
        return await fetch(url)
    raise invalid(
        f"{place} is neither a data URI nor an http(s) URL; paths and other schemes are refused. Expected "
        "data:image/png;base64,<payload>.",
        param=place,
        code="invalid_image_url",
    )


def _data_uri(uri: str, place: str, max_bytes: int) -> bytes:
    """The bytes of a data URI, as :func:`fastvlm.images.data_uri.read_data_uri` reads it; at least one."""
    try:
        data = read_data_uri(uri, place, max_bytes)
    except ImageTooLargeError as error:
        raise invalid(str(error), param=place, code="image_too_large") from error
    except ImageError as error:
        raise invalid(str(error), param=place, code="invalid_image_url") from error
    if not data:
        raise invalid(f"{place} is empty; expected an encoded image.", param=place, code="invalid_image_url")
    return data


def _turns(messages: Sequence[Message], contents: dict[int, bytes]) -> list[dict[str, Any]]:
    """The conversation in the form of the training data: system messages are joined, in order, into the first turn."""
    turns = [_turn(message, contents) for message in messages]
    system = [item for turn in turns if turn["role"] == "system" for item in turn["content"]]
    others = [turn for turn in turns if turn["role"] != "system"]
    return [{"role": "system", "content": system}, *others] if system else others


def _turn(message: Message, contents: dict[int, bytes]) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    if not isinstance(message.content, list):
        return {"role": role, "content": [{"type": "text", "text": message.content or ""}]}
    items: list[dict[str, Any]] = [
        {"type": "image", "image": contents[id(part)]}
        if isinstance(part, ImagePart)
        else {"type": "text", "text": part.text}
        for part in message.content
    ]
    return {"role": role, "content": items}
