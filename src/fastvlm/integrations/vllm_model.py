"""FastVLM as a model of vLLM: our encoder and projector, vLLM's Qwen2.

Imported by vLLM alone, by the path that :mod:`fastvlm.integrations.vllm_plugin` registers. The interfaces are those of
vLLM 0.29 to 0.33, ``vllm/model_executor/models/interfaces.py``.
Shapes: I images of H x W pixels, N visual tokens an image, D decoder width, T tokens of all requests in one step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastvlm.backends.local import fast_dtype
from fastvlm.hf.config import FastViTHDConfig, FastVlmConfig
from fastvlm.integrations.vllm_plugin import missing_vllm
from fastvlm.integrations.vllm_processor import FastVlmDummyInputs, FastVlmInfo, FastVlmMultiModalProcessor
from fastvlm.integrations.vllm_weights import PREFIXES, canonical_weights, refuse_rounded_weights
from fastvlm.model.fastvithd import FastViTHD
from fastvlm.model.projector import FastVlmMultiModalProjector, as_feature_tokens
from fastvlm.processing.prompt import IMAGE_TOKEN

try:
    from vllm.model_executor.models.interfaces import SupportsLoRA, SupportsMultiModal, SupportsPP
    from vllm.model_executor.models.module_mapping import MultiModelKeys
    from vllm.model_executor.models.utils import (
        AutoWeightsLoader,
        WeightsMapper,
        init_vllm_registered_model,
        maybe_prefix,
    )
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.platforms import current_platform
except ModuleNotFoundError as _error:
    raise missing_vllm(_error) from _error


class VisionTower(nn.Module):
    """The encoder under the name that it has in ``fast_vlm`` checkpoints, in a dtype of its own."""

    def __init__(self, config: FastViTHDConfig) -> None:
        super().__init__()
        self.timm_model = FastViTHD(config)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Visual tokens (I, N, hidden_size) of `pixel_values` (I, 3, H, W) in [0, 1], any floating dtype."""
        dtype = next(self.parameters()).dtype
        return as_feature_tokens(self.timm_model(pixel_values.to(dtype)))


@MULTIMODAL_REGISTRY.register_processor(FastVlmMultiModalProcessor, info=FastVlmInfo, dummy_inputs=FastVlmDummyInputs)
class FastVlmForVllm(nn.Module, SupportsMultiModal, SupportsLoRA, SupportsPP):  # type: ignore[misc]
    """FastVLM with vLLM's decoder: tensor and pipeline parallel, LoRA and quantization are Qwen2's.

    Encoder and projector are whole in each process, and their weights are never quantized.
    """

    packed_modules_mapping: ClassVar[dict[str, list[str]]] = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }
    hf_to_vllm_mapper = WeightsMapper(orig_to_new_prefix=PREFIXES)
    configure_mm_token_handling: Callable[[int, list[int]], None]  # of SupportsMultiModal, as the next two
    _mark_tower_model: Callable[[Any, str], AbstractContextManager[None]]
    _mark_language_model: Callable[[Any], AbstractContextManager[None]]

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        refuse_rounded_weights(vllm_config.model_config.model)
        config: FastVlmConfig = vllm_config.model_config.hf_config
        self.config, self.dtype = config, vllm_config.model_config.dtype
        self.configure_mm_token_handling(config.text_config.vocab_size, [config.image_token_index])
        with self._mark_tower_model(vllm_config, "image"):  # without images vLLM puts an empty module in each place
            self.vision_tower = VisionTower(config.vision_config)
            self.multi_modal_projector = FastVlmMultiModalProjector(config)
        if _needs_float32(self.dtype):
            self.vision_tower.float()
        with self._mark_language_model(vllm_config):
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=config.text_config,
                prefix=maybe_prefix(prefix, "language_model"),
                architectures=["Qwen2ForCausalLM"],  # published configurations do not name it
            )
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:  # noqa: ARG003 - of the interface
        """What a chat template that knows no images gets for the image number `i`."""
        return IMAGE_TOKEN if modality.startswith("image") else None

    def get_mm_mapping(self) -> MultiModelKeys:
        """Names of the parts."""
        return MultiModelKeys.from_string_field(
            language_model="language_model", connector="multi_modal_projector", tower_model="vision_tower"
        )

    def embed_multimodal(
        self,
        pixel_values: Tensor | Sequence[Tensor] | None = None,
        image_embeds: Tensor | Sequence[Tensor] | None = None,
        **_: object,
    ) -> Sequence[Tensor]:
        """Visual tokens (N, D) of each image.

        Args:
            pixel_values: (I, 3, H, W) in [0, 1]; a list of (3, H, W) if the images differ in size.
            image_embeds: instead, (I, N, D) as `get_image_features` of our model gives them; or a list of (N, D).
        """
        if image_embeds is not None:
            return [one.to(self.dtype) for one in image_embeds]
        if pixel_values is None:
            return []
        batches = [pixel_values] if isinstance(pixel_values, Tensor) else [one[None] for one in pixel_values]
        return [tokens for batch in batches for tokens in self.multi_modal_projector(self.vision_tower(batch))]

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **_: object,
    ) -> Any:
        """Hidden states (T, D) of the decoder, or what the next stage of a pipeline needs.

        Args:
            input_ids: (T,), or `inputs_embeds` (T, D) with the visual tokens in their places.
            positions: (T,) of each token in its sequence.
            intermediate_tensors: of the stage before, in a pipeline.
        """
        embeds = None if intermediate_tensors is not None else inputs_embeds
        return self.language_model.model(input_ids, positions, intermediate_tensors, inputs_embeds=embeds)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Logits (T, V) of `hidden_states` (T, D)."""
        return self.language_model.compute_logits(hidden_states)  # type: ignore[no-any-return]

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the tensors of a checkpoint of any published layout; return the names of the parameters filled."""
        text = self.config.text_config
        canonical = canonical_weights(weights, num_rows=text.vocab_size, is_tied=text.tie_word_embeddings)
        return AutoWeightsLoader(self).load_weights(canonical, mapper=self.hf_to_vllm_mapper)  # type: ignore[no-any-return]


def _needs_float32(dtype: torch.dtype) -> bool:
    """Whether the encoder must not compute in the model's dtype.

    In float16 its activations overflow; on a CPU without bfloat16 arithmetic its convolutions take minutes.
    """
    is_slow = current_platform.is_cpu() and fast_dtype(torch.device("cpu")) is not None
    return dtype == torch.float16 or is_slow
