"""Renders messages as the prompt text that the model was trained on, and expands `<image>` to placeholders.

A conversation is a list of ``{"role": ..., "content": ...}``; content is a string or a list of items (``{"type":
"text", "text": ...}``, ``{"type": "image", ...}``, and OpenAI's ``image_url``, ``input_text``, ``input_image``). Each
turn becomes ``<|im_start|>ROLE\\nCONTENT<|im_end|>\\n``; a conversation without a system turn gets the default one.

Items are rendered in order with a newline between neighbors, except between two images. An image before its question
gives ``<image>\\nQUESTION``, as in Apple's ``qwen_2`` conversation and in transformers. Images at the end of a message
after texts move to its front, because the model was trained on images first and often gives an empty answer after an
image at the end. Images between texts stay where they are.

Sources: apple/ml-fastvlm at 592b4ad, ``llava/conversation.py`` (``conv_qwen_2``) and ``predict.py``; transformers'
template, its FastVLM documentation page and conversion script.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from jinja2 import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fastvlm.errors import ImageTokenMismatchError, PromptError
from fastvlm.images.data_uri import is_data_uri
from fastvlm.processing.templates import render_template

IMAGE_TOKEN = "<image>"
TURN_END = "<|im_end|>\n"
SPECIAL_TOKENS = (IMAGE_TOKEN, "<|im_start|>", "<|im_end|>", "<|endoftext|>")
DEFAULT_SYSTEM_PROMPT = "You are a helpful assistant."
ROLES = ("system", "user", "assistant")
TEXT_ITEMS = ("text", "input_text")
IMAGE_ITEMS = ("image", "image_url", "input_image")
IMAGE_KEYS = ("image", "url", "path", "base64", "image_url")

_FIRST_TURN = (
    "{%- if loop.first and message['role'] != 'system' -%}"
    "{{- '<|im_start|>system\\n" + DEFAULT_SYSTEM_PROMPT + "<|im_end|>\\n' -}}"
    "{%- endif -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
)
_GENERATION_PROMPT = "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"

# As the model was trained.
TRAINED_TEMPLATE = (
    "{%- for message in messages -%}"
    + _FIRST_TURN
    + "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
    "{%- for item in message['content'] -%}"
    "{%- if not loop.first and not (item['type'] == 'image' and loop.previtem['type'] == 'image') -%}"
    "{{- '\\n' -}}"
    "{%- endif -%}"
    "{%- if item['type'] == 'image' -%}{{- '<image>' -}}{%- else -%}{{- item['text'] -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- endfor -%}" + _GENERATION_PROMPT
)

# As transformers' fast_vlm checkpoints render: images first, then a newline before every text, so that turns without
# an image begin with an extra newline.
TRANSFORMERS_TEMPLATE = (
    "{%- for message in messages -%}"
    + _FIRST_TURN
    + "{%- for item in message['content'] if item['type'] == 'image' -%}{{- '<image>' -}}{%- endfor -%}"
    "{%- for item in message['content'] if item['type'] == 'text' -%}{{- '\\n' + item['text'] -}}{%- endfor -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- endfor -%}" + _GENERATION_PROMPT
)

# What `apply_chat_template(..., chat_template=NAME)` knows by name.
CHAT_TEMPLATES: Mapping[str, str] = {"default": TRAINED_TEMPLATE, "transformers": TRANSFORMERS_TEMPLATE}


@dataclass(frozen=True)
class Conversation:
    """Messages, checked: `messages` as templates take them, `images` the sources they carry, in order.

    A placeholder without data (``{"type": "image"}``) counts in `num_images`, but has no entry in `images`.
    """

    messages: list[dict[str, Any]]
    images: list[Any] = field(default_factory=list)
    num_images: int = 0


def is_batch(conversation: Any) -> bool:
    """True for a list of conversations, False for one, which is a list of messages."""
    first = conversation[0] if isinstance(conversation, Sequence) and conversation else {}
    return isinstance(first, Sequence) and not isinstance(first, str)


def read_conversation(messages: Any, *, special_tokens: Iterable[str] = SPECIAL_TOKENS) -> Conversation:
    """The messages of one conversation, checked and in one form; the given objects are not changed.

    Raises:
        PromptError: no list of messages, an unknown role or item type, a system turn that is not first, an image
            outside a user turn, an item without its content, or a text that contains one of `special_tokens`.
    """
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise PromptError(
            f"Got {_shown(messages)} where messages were expected. Pass a list of messages, such as "
            '[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "..."}]}].'
        )
    refused = tuple(special_tokens)
    checked: list[dict[str, Any]] = []
    images: list[Any] = []
    for index, message in enumerate(messages):
        role, content = _read_message(message, index)
        items: list[dict[str, Any]] = []
        for item in content:
            kind, value = _read_item(item, index)
            if kind == "text":
                earlier = items[-1]["text"] if items and items[-1]["type"] == "text" else ""
                _refuse_special_tokens(value, refused, index, before=earlier)
                items.append({"type": "text", "text": value})
                continue
            if role != "user":
                raise PromptError(f"Message {index} is the {role}'s and holds an image; only user messages can.")
            items.append({"type": "image"})
            if value is not None:
                images.append(value)
        checked.append({"role": role, "content": items})
    num_images = sum(item["type"] == "image" for message in checked for item in message["content"])
    return Conversation(checked, images, num_images)


def _read_message(message: Any, index: int) -> tuple[str, Sequence[Any]]:
    """(role, items) of one message; a string becomes one text item."""
    if not isinstance(message, Mapping) or "role" not in message:
        raise PromptError(f'Message {index} is {_shown(message)}; expected {{"role": ..., "content": ...}}.')
    role, content = message["role"], message.get("content")
    if role not in ROLES:
        raise PromptError(f"Message {index} has the role {role!r}; known are {', '.join(ROLES)}.")
    if role == "system" and index:
        raise PromptError(f"Message {index} is a system message; only the first message can be one.")
    if isinstance(content, str):
        return role, [{"type": "text", "text": content}]
    if isinstance(content, Mapping) or not isinstance(content, Sequence) or not content:
        raise PromptError(f"Message {index} has the content {_shown(content)}; expected a string or a list of items.")
    return role, content


def _read_item(item: Any, index: int) -> tuple[str, Any]:
    """("text", text) or ("image", source), the source None where the item is only a place."""
    kind = item.get("type") if isinstance(item, Mapping) else None
    if kind in TEXT_ITEMS:
        text = item.get("text")
        if not isinstance(text, str):
            raise PromptError(f"A text item of message {index} has the text {_shown(text)}; expected a string.")
        return "text", text
    if kind in IMAGE_ITEMS:
        return "image", _image_source(item, index)
    known = ", ".join((*TEXT_ITEMS, *IMAGE_ITEMS))
    raise PromptError(f"Message {index} has an item of type {kind!r} ({_shown(item)}); known are {known}.")


def _image_source(item: Mapping[str, Any], index: int) -> Any:
    """What :func:`fastvlm.images.open_image` opens, or None."""
    given = [key for key in IMAGE_KEYS if item.get(key) is not None]
    if not given:
        if item["type"] != "image":
            raise PromptError(f"An {item['type']} item of message {index} has no 'image_url'.")
        return None
    if len(given) > 1:
        raise PromptError(f"An image item of message {index} has {' and '.join(given)}; give one of them.")
    value = item[given[0]]
    if given[0] == "image_url" and isinstance(value, Mapping):
        value = value.get("url")
        if not isinstance(value, str):
            raise PromptError(f"An image_url item of message {index} has the url {_shown(value)}; expected a string.")
    if given[0] == "base64" and isinstance(value, str) and not is_data_uri(value):
        return f"data:;base64,{value}"
    return value


def _refuse_special_tokens(text: str, special_tokens: Sequence[str], index: int, *, before: str) -> None:
    """Refuse a text that contains a special token, which could end its turn or claim an image's place.

    Also refuses a text that forms one together with the text item `before` it, which a template may join, or one that
    appears after the tokenizer's normalization (NFC).
    """
    longest = max(map(len, special_tokens), default=0)
    joined = before[-longest:] + text
    composed = joined if joined.isascii() else unicodedata.normalize("NFC", joined)
    for token in special_tokens:
        if token in joined or token in composed:
            advice = (
                'Give the image as an item {"type": "image", ...} instead.'
                if token == IMAGE_TOKEN
                else "Remove it, or write it otherwise."
            )
            raise PromptError(
                f"A text of message {index} contains {token!r}, which the model reads as a mark. {advice}"
            )


def _shown(value: Any) -> str:
    """A value in an error text: its type and at most 60 characters."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def render(
    conversation: Conversation,
    *,
    chat_template: str = TRAINED_TEMPLATE,
    add_generation_prompt: bool = False,
    continue_final_message: bool = False,
    **variables: Any,
) -> str:
    """The prompt text, one ``<image>`` an image.

    Args:
        conversation: checked messages.
        chat_template: a Jinja template, or a name of :data:`CHAT_TEMPLATES`.
        add_generation_prompt: end with the header of the assistant's turn.
        continue_final_message: leave the last turn open, so that the reply continues it.
        variables: handed to the template.

    Raises:
        PromptError: both flags; an answer asked for after the assistant's own turn; a template that would move a
            image before its text, that fails, or that exceeds the limits of :func:`render_template`.
    """
    template = CHAT_TEMPLATES.get(chat_template, chat_template)
    last_role = conversation.messages[-1]["role"]
    if add_generation_prompt and continue_final_message:
        raise PromptError("Got add_generation_prompt and continue_final_message; only one of them can be.")
    if add_generation_prompt and last_role == "assistant":
        raise PromptError(
            "The last message is the assistant's, and add_generation_prompt asks for another one. End with a user "
            "message, or pass continue_final_message=True."
        )
    if template in CHAT_TEMPLATES.values():
        conversation = _images_first(conversation)
    if template == TRANSFORMERS_TEMPLATE:
        _refuse_reordering(conversation)
    text = _rendered(template, conversation, add_generation_prompt=add_generation_prompt, **variables)
    if not continue_final_message:
        return text
    if not text.endswith(TURN_END):
        raise PromptError(f"This chat template does not end its turns with {TURN_END!r}; nothing can be continued.")
    return text.removesuffix(TURN_END)


def _rendered(template: str, conversation: Conversation, **variables: Any) -> str:
    """Render checked messages with `template`; user-supplied templates run within limits."""
    if template in CHAT_TEMPLATES.values():
        return _own_template(template).render(messages=conversation.messages, **variables)
    return render_template(template, conversation.messages, variables)


@cache
def _own_template(template: str) -> Template:
    """The template compiled with transformers' settings (5.23, ``utils/chat_template_utils.py``)."""
    return ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template)


def _images_first(conversation: Conversation) -> Conversation:
    """Messages whose images follow their texts, with the images moved first, as in Apple's and transformers' code."""
    messages = []
    for message in conversation.messages:
        items = message["content"]
        moved = sorted(items, key=lambda item: item["type"] != "image")  # stable: texts and images keep their order
        is_moved = items == sorted(items, key=lambda item: item["type"] == "image")
        messages.append({**message, "content": moved} if is_moved else message)
    return replace(conversation, messages=messages)


def _refuse_reordering(conversation: Conversation) -> None:
    for index, message in enumerate(conversation.messages):
        kinds = [item["type"] for item in message["content"]]
        if kinds != sorted(kinds):  # "image" < "text"
            raise PromptError(
                f"Message {index} has an image between texts; transformers' template would move the image to the "
                "front. Put images first, or use the default template, which keeps the order."
            )


def expand_image_tokens(text: str, tokens_per_image: Sequence[int], *, image_token: str = IMAGE_TOKEN) -> str:
    """`text` with its k-th `image_token` repeated ``tokens_per_image[k]`` times: one placeholder a visual token.

    Raises:
        ImageTokenMismatchError: more or fewer places in the text than entries.
    """
    parts = text.split(image_token)
    if len(parts) - 1 != len(tokens_per_image):
        raise ImageTokenMismatchError(
            f"The text has {len(parts) - 1} {image_token} and {len(tokens_per_image)} image(s) are given. Each "
            f"image needs one {image_token}, each {image_token} one image."
        )
    expanded = [parts[0]]
    for num_tokens, part in zip(tokens_per_image, parts[1:], strict=True):
        expanded += [image_token * num_tokens, part]
    return "".join(expanded)
