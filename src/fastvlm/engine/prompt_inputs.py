"""A question made ready: token ids and images, with what the caches know them by.

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
from fastvlm.engine.pixel_cache import DIGESTS
from fastvlm.engine.scheduler import Key
from fastvlm.errors import UsageError
from fastvlm.model.joint import check_image_token_counts
from fastvlm.processing.processor import Processor

__all__ = ["PreparedPrompt", "prepare"]


@dataclass(frozen=True, eq=False)
class PreparedPrompt:
    """What the model takes for one reply.

    Args:
        token_ids: T ids with N placeholders for each image.
        pixel_values: (I, 3, H, W) in [0, 1], in the order of their placeholders; None without images.
        digests: what stands for each image's content.
        placeholder_positions: where the I * N placeholders are.
        preprocess_ms: what it took to get here.
    """

    token_ids: tuple[int, ...]
    pixel_values: Tensor | None = None
    digests: tuple[str, ...] = ()
    placeholder_positions: tuple[int, ...] = field(default=(), repr=False)
    preprocess_ms: float = 0.0

    @property
    def tokens_each(self) -> int:
        """Visual tokens an image, N; 0 without images."""
        return len(self.placeholder_positions) // len(self.digests) if self.digests else 0

    @property
    def keys(self) -> list[Key]:
        """The token ids, with an image's digest for each of its placeholders."""
        keys: list[Key] = list(self.token_ids)
        for index, position in enumerate(self.placeholder_positions):
            keys[position] = self.digests[index // self.tokens_each]
        return keys

    def cut(self, start: int) -> tuple[int, int]:
        """Where to begin so that the tokens from `start` on have whole images: (position, index of first image)."""
        before = bisect_left(self.placeholder_positions, start)
        first, inside = divmod(before, self.tokens_each) if self.digests else (0, 0)
        return (self.placeholder_positions[before - inside] if inside else start), first


def prepare(prompt: Any, processor: Processor, config: ModelConfig) -> PreparedPrompt:
    """`prompt` made ready.

    Args:
        prompt: messages as :meth:`FastVlmProcessor.apply_chat_template` takes them; or what that returns for one
            conversation (`input_ids` (1, T), perhaps `attention_mask` and `pixel_values`); or a prepared one.
        processor: only messages need it.
        config: the model's.

    Raises:
        PromptError, ImageError: messages that cannot be rendered, images that cannot be opened.
        ImageTokenMismatchError: placeholders and images do not match, with both counts.
        UsageError: no prompt, or several.
    """
    if isinstance(prompt, PreparedPrompt):
        return prompt
    start_s = time.perf_counter()
    inputs = prompt if isinstance(prompt, Mapping) and "input_ids" in prompt else _processed(prompt, processor)
    token_ids = _token_ids(inputs)
    pixel_values = inputs.get("pixel_values")
    is_placeholder = torch.tensor([token_ids]) == config.image_token_index
    num_images = 0 if pixel_values is None else len(pixel_values)
    tokens_each = 1 if pixel_values is None else config.num_visual_tokens(*pixel_values.shape[-2:])
    check_image_token_counts(is_placeholder, num_images=num_images, tokens_each=tokens_each)
    return PreparedPrompt(
        token_ids=token_ids,
        pixel_values=pixel_values,
        digests=_digests(inputs, pixel_values),
        placeholder_positions=tuple(is_placeholder[0].nonzero()[:, 0].tolist()),
        preprocess_ms=1000 * (time.perf_counter() - start_s),
    )


def _processed(messages: Sequence[Any], processor: Processor) -> Mapping[str, Any]:
    inputs: Mapping[str, Any] = processor.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    return inputs


def _digests(inputs: Mapping[str, Any], pixel_values: Tensor | None) -> tuple[str, ...]:
    """What stands for each image: what the image memo says, or else a hash of its pixels."""
    if pixel_values is None:
        return ()
    return inputs.get(DIGESTS) or tuple(image_digest(pixels) for pixels in pixel_values)


def _token_ids(inputs: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids of the one prompt in `inputs`, without padding."""
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
