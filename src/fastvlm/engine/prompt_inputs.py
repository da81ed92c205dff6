"""Prepared prompts: token ids, pixels and the keys for the caches.

T tokens, I images, N visual tokens an image.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastvlm.config import ModelConfig
from fastvlm.engine.encoder_cache import image_digest
from fastvlm.engine.pixel_cache import PixelCache, ReadyImages
from fastvlm.engine.scheduler import Key
from fastvlm.errors import ContextLengthError, UsageError
from fastvlm.model.joint import check_image_token_counts, refuse_overlong
from fastvlm.processing.processor import Processor


@dataclass(frozen=True, eq=False)
class PromptInputs:
    """The model inputs of one request.

    Args:
        token_ids: T ids with N placeholders for each image.
        pixel_values: (I, 3, H, W) in [0, 1], in the order of their placeholders; None without images.
        digests: the content hash of each image.
        placeholder_positions: positions of the I * N placeholders.
        preprocess_ms: preprocessing time in milliseconds.
    """

    token_ids: tuple[int, ...]
    pixel_values: Tensor | None = None
    digests: tuple[str, ...] = ()
    placeholder_positions: tuple[int, ...] = field(default=(), repr=False)
    preprocess_ms: float = 0.0

    @property
    def tokens_per_image(self) -> int:
        """Visual tokens per image, N; 0 without images."""
        return len(self.placeholder_positions) // len(self.digests) if self.digests else 0

    @property
    def keys(self) -> list[Key]:
        """The token ids, with an image's digest at each of its placeholders."""
        keys: list[Key] = list(self.token_ids)
        for index, position in enumerate(self.placeholder_positions):
            keys[position] = self.digests[index // self.tokens_per_image]
        return keys

    def cut(self, start: int) -> tuple[int, int]:
        """Latest position up to `start` that does not split an image, and the index of the next image."""
        before = bisect_left(self.placeholder_positions, start)
        first, inside = divmod(before, self.tokens_per_image) if self.digests else (0, 0)
        return (self.placeholder_positions[before - inside] if inside else start), first


@dataclass(frozen=True)
class ChatPrompt:
    """Messages, and how the chat template ends them.

    Args:
        messages: as :meth:`FastVlmProcessor.apply_chat_template` takes them.
        add_generation_prompt: end with the header of the assistant's turn.
        continue_final_message: leave the last turn open, so that the reply continues it.
    """

    messages: Sequence[Any]
    add_generation_prompt: bool = True
    continue_final_message: bool = False


def prepare(
    prompt: Any, processor: Processor, config: ModelConfig, cache: PixelCache, ready: ReadyImages | None = None
) -> PromptInputs:
    """Turn `prompt` into model inputs.

    Args:
        prompt: messages, a :class:`ChatPrompt`, what :meth:`FastVlmProcessor.apply_chat_template` returns for one
            conversation (`input_ids` (1, T), optionally `attention_mask` and `pixel_values`), or a
            :class:`PromptInputs`.
        processor: used for messages only.
        config: the model configuration.
        cache: holds preprocessed images.
        ready: images that are decoded already, by their encoded bytes.

    Raises:
        PromptError, ImageError: messages that cannot be rendered, images that cannot be opened.
        ImageTokenMismatchError: placeholders and images do not match, with both counts.
        UsageError: no prompt, or several.
    """
    if isinstance(prompt, PromptInputs):
        return prompt
    start_s = time.perf_counter()
    digests: tuple[str, ...] = ()
    if isinstance(prompt, Mapping) and "input_ids" in prompt:
        token_ids, pixel_values = _token_ids(prompt), prompt.get("pixel_values")
        if pixel_values is not None:
            digests = tuple(image_digest(pixels) for pixels in pixel_values)
    else:
        chat = prompt if isinstance(prompt, ChatPrompt) else ChatPrompt(prompt)
        text, sources = processor.prompt(**vars(chat))
        token_ids = tuple(processor.token_ids(text, len(sources)))
        images = [cache.pixels(source, processor.image_processor, ready or {}) for source in sources]
        pixel_values, digests = _stacked([pixels for pixels, _ in images]), tuple(digest for _, digest in images)
    is_placeholder = torch.tensor([token_ids]) == config.image_token_index
    tokens_per_image = 1 if pixel_values is None else config.num_visual_tokens(*pixel_values.shape[-2:])
    check_image_token_counts(is_placeholder, num_images=len(digests), tokens_per_image=tokens_per_image)
    return PromptInputs(
        token_ids=token_ids,
        pixel_values=pixel_values,
        digests=digests,
        placeholder_positions=tuple(is_placeholder[0].nonzero()[:, 0].tolist()),
        preprocess_ms=1000 * (time.perf_counter() - start_s),
    )


def _stacked(images: Sequence[Tensor]) -> Tensor | None:
    """Images (3, H, W) as one tensor (I, 3, H, W); None for none. A single one, the usual case, is not copied."""
    if len(images) == 1:
        return images[0][None]
    return torch.stack(list(images)) if images else None


def _token_ids(inputs: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids of the only prompt in `inputs`, without padding."""
    ids = torch.as_tensor(inputs["input_ids"])
    ids = ids[None] if ids.dim() == 1 else ids
    if ids.dim() != 2 or len(ids) != 1 or ids.shape[1] == 0:
        raise UsageError(
            f"input_ids has the shape {tuple(ids.shape)}; a request is one prompt, (1, tokens). Submit a batch one by "
            "one: the engine runs its requests together."
        )
    mask = inputs.get("attention_mask")
    kept = ids[0] if mask is None else ids[0][torch.as_tensor(mask).reshape(-1).bool()]
    return tuple(kept.tolist())


def check_length(config: ModelConfig, context: int, prompt_tokens: int, new_tokens: int) -> None:
    """Raise ContextLengthError if prompt and reply do not fit the model, or a slot of `context` tokens."""
    refuse_overlong(config.text_config.max_position_embeddings, prompt_tokens, new_tokens)
    if prompt_tokens + new_tokens > context:
        raise ContextLengthError(
            f"The prompt has {prompt_tokens} tokens and {new_tokens} new ones are asked for, "
            f"{prompt_tokens + new_tokens} in all; a slot of this engine holds {context}. Make the engine with a "
            "larger context, shorten the prompt, or lower max_new_tokens."
        )
