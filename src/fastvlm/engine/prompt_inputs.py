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
from fastvlm.engine.pixel_cache import DIGESTS
from fastvlm.engine.scheduler import Key
from fastvlm.errors import UsageError
from fastvlm.model.joint import check_image_token_counts
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


def prepare(prompt: Any, processor: Processor, config: ModelConfig) -> PromptInputs:
    """Turn `prompt` into model inputs.

    Args:
        prompt: messages as :meth:`FastVlmProcessor.apply_chat_template` takes them, its result for one conversation
            (`input_ids` (1, T), optionally `attention_mask` and `pixel_values`), or a :class:`PromptInputs`.
        processor: used for messages only.
        config: the model configuration.

    Raises:
        PromptError, ImageError: messages that cannot be rendered, images that cannot be opened.
        ImageTokenMismatchError: placeholders and images do not match, with both counts.
        UsageError: no prompt, or several.
    """
    if isinstance(prompt, PromptInputs):
        return prompt
    start_s = time.perf_counter()
    inputs = prompt if isinstance(prompt, Mapping) and "input_ids" in prompt else _processed(prompt, processor)
    token_ids = _token_ids(inputs)
    pixel_values = inputs.get("pixel_values")
    is_placeholder = torch.tensor([token_ids]) == config.image_token_index
    num_images = 0 if pixel_values is None else len(pixel_values)
    tokens_per_image = 1 if pixel_values is None else config.num_visual_tokens(*pixel_values.shape[-2:])
    check_image_token_counts(is_placeholder, num_images=num_images, tokens_per_image=tokens_per_image)
    return PromptInputs(
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
    """The digests of the pixel cache if given, else hashes of the pixels."""
    if pixel_values is None:
        return ()
    return inputs.get(DIGESTS) or tuple(image_digest(pixels) for pixels in pixel_values)


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
