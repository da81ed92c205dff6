"""Merges image features into the text embeddings (the only place that does), and checks what enters the decoder."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvlm.errors import ContextLengthError, ImageTokenMismatchError


def join_image_and_text(inputs_embeds: Tensor, image_embeds: Tensor, is_placeholder: Tensor) -> Tensor:
    """Embeddings (B, T, D) whose placeholder rows are replaced by the images' projected features, in order.

    Args:
        inputs_embeds: token embeddings (B, T, D).
        image_embeds: projected features (I, N, D) of all images of the batch, in the order of their placeholders (row
            by row); moved to the dtype and device of `inputs_embeds`.
        is_placeholder: bool (B, T), True where the text has an ``<image>`` token.

    Raises:
        ImageTokenMismatchError: the placeholders of a sample are not a multiple of an image's tokens, or the batch has
            more or fewer placeholders than features. Not raised inside ``torch.compile``, which cannot read values
            back.
    """
    image_embeds = image_embeds.to(inputs_embeds.device, inputs_embeds.dtype)
    if not torch.compiler.is_compiling() and not is_placeholder.is_meta:
        check_image_token_counts(
            is_placeholder, num_images=image_embeds.shape[0], tokens_per_image=image_embeds.shape[1]
        )
    mask = is_placeholder.unsqueeze(-1).to(inputs_embeds.device)
    return inputs_embeds.masked_scatter(mask, image_embeds)


def check_image_token_counts(is_placeholder: Tensor, *, num_images: int, tokens_per_image: int) -> None:
    """Raise ImageTokenMismatchError unless every sample holds whole images and the batch holds all of them."""
    counts = is_placeholder.sum(-1).tolist()
    for sample, count in enumerate(counts):
        if count % tokens_per_image:
            raise ImageTokenMismatchError(
                f"Sample {sample} of the batch has {count} <image> tokens, which is not a multiple of the "
                f"{tokens_per_image} visual tokens of one image. Was the prompt cut, or made for another size?"
            )
    if sum(counts) != num_images * tokens_per_image:
        per_sample = ", ".join(str(count) for count in counts)
        raise ImageTokenMismatchError(
            f"Image features and image tokens do not match, tokens: {sum(counts)}, features: "
            f"{num_images * tokens_per_image}. The samples have {per_sample} <image> tokens; {num_images} image(s) "
            f"give {tokens_per_image} visual tokens each. Pass one image for each place in the prompts, in their order."
        )


def refuse_overlong(context: int, prompt_tokens: int, new_tokens: int) -> None:
    """Raise ContextLengthError if a prompt of `prompt_tokens` and a reply of `new_tokens` exceed `context` tokens."""
    total = prompt_tokens + new_tokens
    if total > context:
        raise ContextLengthError(
            f"The prompt has {prompt_tokens} tokens and {new_tokens} new ones are asked for, {total} in all; this "
            f"model's context is {context} tokens. Shorten the text, pass fewer or smaller images, or lower "
            "max_new_tokens."
        )
