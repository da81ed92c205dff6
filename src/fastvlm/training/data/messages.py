"""Conversion of a record to chat messages and a list of images.

Layouts: LLaVA's ``conversations`` with ``image``, OpenAI's ``messages`` (content a text or a list of items), and the
mixtures in TRL's and Hugging Face's datasets: either name of the turns, ``image`` or ``images``, turns as a JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from fastvlm.errors import DataError, PromptError
from fastvlm.processing.prompt import IMAGE_ITEMS, IMAGE_KEYS, TEXT_ITEMS, Conversation, read_conversation
from fastvlm.records.field_names import is_given
from fastvlm.training.data.columns import (
    IMAGE_COLUMNS,
    METADATA_COLUMNS,
    READ_COLUMNS,
    REFUSED_COLUMNS,
    SYSTEM_COLUMN,
    TURN_COLUMNS,
    refuse_unknown,
)
from fastvlm.training.data.llava_turns import is_llava_turn, llava_message, split_at_images, without_blank_start

_LLAVA_KEYS = ("from", "value", "weight")
_OPENAI_KEYS = ("role", "content", "weight")
_TURN_METADATA = ("id", "index", "timestamp")
_ITEM_KEYS = {**dict.fromkeys(TEXT_ITEMS, ("type", "text")), **dict.fromkeys(IMAGE_ITEMS, ("type", *IMAGE_KEYS))}
_ITEM_METADATA = ("id", "index", "detail")  # `detail` is OpenAI's hint of how much an image may cost


def read_record(
    record: Mapping[str, Any], folder: Path, *, ignored: Collection[str] = ()
) -> tuple[list[dict[str, Any]], tuple[Any, ...]]:
    """Convert a record to (messages, images), one image for each image item, in order.

    Args:
        record: the value in the file.
        folder: where relative image paths begin.
        ignored: columns, and keys of turns and items, that are left out.

    Returns:
        Messages as ``FastVlmProcessor.apply_chat_template`` takes them, with ``{"type": "image"}`` for each image, and
        images as :func:`fastvlm.images.open_image` takes them, not opened.

    Raises:
        DataError: the record cannot be trained on; the text is the reason, without the origin.
    """
    record = {name: value for name, value in record.items() if name not in ignored}
    for name, reason in REFUSED_COLUMNS.items():
        if is_given(record.get(name)):
            raise DataError(f"it has {name!r}; {reason}")
    refuse_unknown(record, READ_COLUMNS, "it has", harmless={*METADATA_COLUMNS, *REFUSED_COLUMNS})
    given = _given_images(record)
    turns = _turns(record)
    messages = _with_system([_message(turn, index, ignored) for index, turn in enumerate(turns)], record)
    if given and not any(is_llava_turn(turn) for turn in turns):
        _place_images(messages, len(given))
    try:
        conversation = read_conversation(messages)
    except PromptError as error:
        raise DataError(str(error)) from error
    _check_texts(conversation)
    return conversation.messages, tuple(_located(source, folder) for source in _sources(conversation, given))


def _with_system(messages: list[dict[str, Any]], record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Prepend the column `system` as the first message."""
    text = record.get(SYSTEM_COLUMN)
    if not is_given(text):
        return messages
    if not isinstance(text, str):
        raise DataError(f"its {SYSTEM_COLUMN!r} is {_shown(text)}; expected a text")
    if any(message["role"] == "system" for message in messages):
        raise DataError(f"it has both the column {SYSTEM_COLUMN!r} and a system turn; expected one of them")
    return [{"role": "system", "content": [{"type": "text", "text": text}]}, *messages]


def _turns(record: Mapping[str, Any]) -> Sequence[Any]:
    names = [name for name in TURN_COLUMNS if record.get(name) is not None]
    if len(names) != 1:
        has = ", ".join(map(str, record)) or "nothing"
        raise DataError(f"it has {has}; expected one of 'conversations' (LLaVA) and 'messages' (OpenAI)")
    turns = record[names[0]]
    if isinstance(turns, str):
        try:
            turns = json.loads(turns)
        except json.JSONDecodeError as error:
            raise DataError(f"{names[0]!r} is a text, but not valid JSON ({error.msg})") from error
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{names[0]!r} is {_shown(turns)}; expected a list of turns")
    return turns


def _message(turn: Any, index: int, ignored: Collection[str]) -> dict[str, Any]:
    if is_llava_turn(turn):
        _check_turn(turn, index, _LLAVA_KEYS, ignored)
        message = llava_message(turn, index)
    elif isinstance(turn, Mapping) and "role" in turn:
        _check_turn(turn, index, _OPENAI_KEYS, ignored)
        message = _openai_message(turn, index, ignored)
    else:
        raise DataError(f"turn {index} is {_shown(turn)}; expected 'from' and 'value', or 'role' and 'content'")
    content = message["content"]
    if message["role"] == "assistant" and content and isinstance(content[0].get("text"), str):
        content[0] = {"type": "text", "text": without_blank_start(content[0]["text"])}
    return message


def _check_turn(turn: Mapping[str, Any], index: int, known: Sequence[str], ignored: Collection[str]) -> None:
    """Raise DataError if a turn has tool calls, a weight, or unknown keys."""
    if turn.get("tool_calls") or turn.get("function_call"):
        raise DataError(f"turn {index} calls a tool; FastVLM's template knows no tools")
    if "weight" not in ignored and turn.get("weight") is not None and turn["weight"] != 1:
        raise DataError(f"turn {index} has the weight {turn['weight']!r}; every reply counts once here")
    refuse_unknown(turn, known, f"turn {index} has", harmless=_TURN_METADATA, ignored=ignored)


def _openai_message(turn: Mapping[str, Any], index: int, ignored: Collection[str]) -> dict[str, Any]:
    role, content = turn["role"], turn.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list) or not all(isinstance(item, Mapping) for item in content):
        raise DataError(f"turn {index} has the content {_shown(content)}; expected a text or a list of items")
    items: list[dict[str, Any]] = []
    for item in content:
        # Arrow gives every item all columns, so null means that the key is absent.
        kept = {key: value for key, value in item.items() if value is not None and key not in ignored}
        if kept.get("type") in _ITEM_KEYS:  # `read_conversation` refuses other types
            refuse_unknown(kept, _ITEM_KEYS[kept["type"]], f"an item of turn {index} has", harmless=_ITEM_METADATA)
        is_user_text = role == "user" and kept.get("type") == "text" and isinstance(kept.get("text"), str)
        items += split_at_images(kept["text"]) if is_user_text else [kept]
    return {"role": role, "content": items}


def _place_images(messages: list[dict[str, Any]], count: int) -> None:
    """Insert images without a placeholder before the first user's text, as TRL does."""
    has_place = any(item.get("type") != "text" for message in messages for item in message["content"])
    first = next((message for message in messages if message["role"] == "user"), None)
    if not has_place and first is not None:
        first["content"][:0] = [{"type": "image"}] * count


def _check_texts(conversation: Conversation) -> None:
    """Raise DataError for a text that cannot be tokenized, an empty reply, or no reply."""
    for index, message in enumerate(conversation.messages):
        text = "".join(item.get("text", "") for item in message["content"])
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON can contain it
            raise DataError(f"turn {index} holds half a surrogate pair (character {error.start})") from error
        if message["role"] == "assistant" and not text.strip():
            raise DataError(f"turn {index}, the assistant's, is empty")
    if all(message["role"] != "assistant" for message in conversation.messages):
        raise DataError("it has no assistant's turn; there is nothing to learn from it")


def _given_images(record: Mapping[str, Any]) -> list[Any]:
    """The images of the record's image column; null, an empty text and an empty list mean none."""
    names = [name for name in IMAGE_COLUMNS if is_given(record.get(name))]
    if len(names) > 1:
        raise DataError(f"it has both {names[0]!r} and {names[1]!r}; expected one of them (--ignore {names[1]})")
    if not names:
        return []
    value = record[names[0]]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _sources(conversation: Conversation, given: list[Any]) -> list[Any]:
    """Images in order of their placeholders, from the messages or from the record's image column."""
    inline, places = conversation.images, conversation.num_images
    if inline and given:
        raise DataError(f"it has {len(inline)} image(s) inside its messages and {len(given)} in its image column")
    if len(inline or given) != places:
        raise DataError(f"it has {places} place(s) for images (<image>, or items) and {len(inline or given)} image(s)")
    return inline or given


def _located(source: Any, folder: Path) -> Any:
    """Convert an image value to what `open_image` takes, with relative paths below `folder`."""
    if isinstance(source, Mapping):
        source = _of_struct(source)
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        raise DataError(
            f"its image {source[:80]!r} is a URL; training reads no network. Download it, and name the file"
        )
    if isinstance(source, str) and not source.startswith("data:"):
        path = unquote(urlparse(source).path) if source.startswith("file://") else source
        return folder / path  # an absolute path stays as it is
    if isinstance(source, Path):
        return folder / source
    if isinstance(source, (str, bytes, bytearray)) or hasattr(source, "read") or hasattr(source, "mode"):
        return source
    raise DataError(f"an image is {_shown(source)}; expected a path, a data URI, or an object with bytes or path")


def _of_struct(source: Mapping[str, Any]) -> Any:
    """The bytes, data URI or path in ``{"bytes": ..., "path": ...}``; in JSON the bytes are base64."""
    data = source.get("bytes")
    if data is None:
        data = source.get("path") or source.get("url")
    elif isinstance(data, str):
        data = f"data:;base64,{data}"
    if not data:
        raise DataError(f"an image is {_shown(dict(source))}; expected 'bytes' or 'path'")
    return data


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
