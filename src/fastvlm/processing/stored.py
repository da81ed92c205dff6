"""Reads a checkpoint's processor settings and chat template, with defaults for missing ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken

from fastvlm.errors import CheckpointError, ConfigError, PromptError
from fastvlm.processing.prompt import CHAT_TEMPLATES, IMAGE_TOKEN, TRANSFORMERS_TEMPLATE, read_conversation, render
from fastvlm.processing.templates import TemplateLimitError, render_template
from fastvlm.processing.tokenizer import TokenizerLike

# An image-first question, an answer and a text-only question: where the known templates differ.
_PROBE = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
]
_TEXT_PROBE = (("user", "a"), ("assistant", "b"), ("user", "c"))


def add_image_token(tokenizer: TokenizerLike, *, image_token: str = IMAGE_TOKEN, expected_id: int | None = None) -> int:
    """Add `image_token` to the tokenizer if it is missing, and return its id.

    Raises:
        ConfigError: the id is not `expected_id`, the one in the model's config.
    """
    # The whole vocabulary is large, and the token is hardly ever elsewhere than among the added ones.
    if image_token not in tokenizer.get_added_vocab() and image_token not in tokenizer.get_vocab():
        tokenizer.add_tokens([AddedToken(image_token, normalized=False, special=True)], special_tokens=True)
    image_token_id = tokenizer.convert_tokens_to_ids(image_token)
    if image_token_id is None:
        raise ConfigError(f"The tokenizer takes no token {image_token!r}.")
    if expected_id is not None and image_token_id != expected_id:
        raise ConfigError(
            f"The tokenizer has {image_token!r} as id {image_token_id}, but the model's config says image_token_index "
            f"{expected_id}. Tokenizer and model do not belong together."
        )
    return image_token_id


def stored_settings(
    processor_dict: Mapping[str, Any],
    *,
    chat_template: str | None = None,
    padding_side: str | None = None,
    source: object = "the processor",
) -> dict[str, Any]:
    """A processor's arguments from its file's dictionary; `chat_template` and `padding_side` override it.

    `source` (folder or Hub name) appears in errors.
    """
    return {
        "image_token": processor_dict.get("image_token", IMAGE_TOKEN),
        "num_additional_image_tokens": processor_dict.get("num_additional_image_tokens", 0),
        "vision_feature_select_strategy": processor_dict.get("vision_feature_select_strategy"),
        "chat_template": chat_template or stored_template(processor_dict, source=source),
        "padding_side": padding_side or processor_dict.get("padding_side", "left"),
    }


def stored_template(processor_dict: Mapping[str, Any], *, source: object = "the processor") -> str | None:
    """A folder's own chat template, or None if the built-in one replaces it.

    The built-in one is used if the folder has none, has the decoder's text-only one (without ``<image>``), or
    transformers' for FastVLM, whose newlines differ from the training data.

    Raises:
        CheckpointError: the template is broken, or exceeds its limits of time, memory or output.
    """
    stored = processor_dict.get("chat_template")
    stored = stored.get("default") if isinstance(stored, Mapping) else stored
    if stored is None:
        return None
    if not isinstance(stored, str):
        raise CheckpointError(f"The chat template of {source} is {type(stored).__name__}; expected a text.")
    if stored in CHAT_TEMPLATES.values():
        return None if stored == TRANSFORMERS_TEMPLATE else stored
    probe = read_conversation(_PROBE)
    try:
        rendered = render(probe, chat_template=stored)
    except PromptError as error:
        if not isinstance(error, TemplateLimitError) and _is_text_only(stored):
            return None
        raise CheckpointError(
            f"The chat template of {source} (chat_template.jinja, or chat_template in processor_config.json) cannot be "
            f"used. {error} Repair the file, or pass chat_template='default' for the template that the model was "
            "trained with."
        ) from error
    if IMAGE_TOKEN not in rendered or rendered == render(probe, chat_template=TRANSFORMERS_TEMPLATE):
        return None
    return stored


def _is_text_only(template: str) -> bool:
    """Whether `template` renders messages whose contents are strings; many decoders' cannot render lists of items."""
    messages = [{"role": role, "content": content} for role, content in _TEXT_PROBE]
    try:
        render_template(template, messages, {"add_generation_prompt": False})
    except PromptError:
        return False
    return True
