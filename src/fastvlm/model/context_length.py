"""Checks that prompt and reply fit into the decoder's context."""

from __future__ import annotations

from fastvlm.errors import ContextLengthError


def refuse_overlong(context: int, prompt_tokens: int, new_tokens: int) -> None:
    """Raise ContextLengthError if a prompt of `prompt_tokens` and a reply of `new_tokens` exceed `context` tokens."""
    total = prompt_tokens + new_tokens
    if total > context:
        raise ContextLengthError(
            f"The prompt has {prompt_tokens} tokens and {new_tokens} new ones are asked for, {total} in all; this "
            f"model's context is {context} tokens. Shorten the text, pass fewer or smaller images, or lower "
            "max_new_tokens."
        )
