"""The modules that hold a checkpoint's weights, without transformers' classes: what an engine on a CPU takes them from.

Names and tensors are those of :class:`fastvlm.FastVlmForConditionalGeneration`, so the state dict is the same. Nothing
here computes but the encoder, the projector and the positions: the engine has a decoder of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastvlm.config import LightConfig, LightDecoderConfig
from fastvlm.formats.mapped_files import MappedFiles
from fastvlm.model.context_length import refuse_overlong
from fastvlm.model.fastvithd import FastViTHD
from fastvlm.model.projector import FastVlmMultiModalProjector

__all__ = ["LightFastVlm", "LightGenerationConfig"]


class LightGenerationConfig:
    """How a checkpoint wants to generate, as far as an engine asks: `eos_token_id`, one, several or None."""

    def __init__(self, eos_token_id: int | list[int] | None = None) -> None:
        self.eos_token_id = eos_token_id


class LightFastVlm(nn.Module):
    """A FastVLM for :func:`fastvlm.backends.fast.fast_engine` on a CPU, and nothing else; in eval mode.

    Args:
        config: its sizes.
        tensors: every tensor of its state dict but a tied head, by canonical name; taken as they are.
        generation_config: end tokens beside the decoder's own.

    Attributes:
        stored_products, mapped_files: as :class:`fastvlm.hf.pretrained.DialectLoading` has them.
    """

    stored_products: Any = None
    mapped_files: MappedFiles | None = None

    def __init__(
        self, config: LightConfig, tensors: dict[str, Tensor], generation_config: LightGenerationConfig
    ) -> None:
        super().__init__()
        self.config, self.generation_config = config, generation_config
        text = config.text_config
        with torch.device("meta"):
            self.model = nn.Module()
            self.model.vision_tower = nn.Module()
            self.model.vision_tower.timm_model = FastViTHD(config.vision_config)
            self.model.multi_modal_projector = FastVlmMultiModalProjector(config)
            self.model.language_model = _Decoder(text)
            self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.get_input_embeddings().weight
            tensors = {**tensors, "lm_head.weight": tensors[_EMBEDDING]}
        self.load_state_dict(tensors, assign=True)
        if config.tie_word_embeddings:  # two parameters over one memory by now
            self.lm_head.weight = self.get_input_embeddings().weight
        self.model.language_model.rotary_emb = _Positions(text)
        self.requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.get_input_embeddings().weight.device

    def get_input_embeddings(self) -> nn.Embedding:
        """The decoder's token embeddings."""
        embedding: nn.Embedding = self.model.language_model.embed_tokens  # type: ignore[assignment, union-attr]
        return embedding

    def check_context(self, prompt_tokens: int, new_tokens: int) -> None:
        """Raise ContextLengthError if a prompt of `prompt_tokens` and a reply of `new_tokens` exceed the context."""
        refuse_overlong(self.config.text_config.max_position_embeddings, prompt_tokens, new_tokens)


_EMBEDDING = "model.language_model.embed_tokens.weight"


class _Decoder(nn.Module):
    def __init__(self, config: LightDecoderConfig) -> None:
        super().__init__()
        # With a table given, none is drawn; drawing on the meta device would import torch's compiler.
        table = torch.empty(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, _weight=table)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = _Norm(config.hidden_size)


class _Layer(nn.Module):
    def __init__(self, config: LightDecoderConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        head = width // config.num_attention_heads
        q_width, kv_width = config.num_attention_heads * head, config.num_key_value_heads * head
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": nn.Linear(width, q_width),
                "k_proj": nn.Linear(width, kv_width),
                "v_proj": nn.Linear(width, kv_width),
                "o_proj": nn.Linear(q_width, width, bias=False),
            }
        )
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(width, inner, bias=False),
                "up_proj": nn.Linear(width, inner, bias=False),
                "down_proj": nn.Linear(inner, width, bias=False),
            }
        )
        self.input_layernorm = _Norm(width)
        self.post_attention_layernorm = _Norm(width)


class _Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))


class _Positions(nn.Module):
    """Cosines and sines of Qwen2's default positions, in the arithmetic of transformers' ``Qwen2RotaryEmbedding``."""

    inv_freq: Tensor

    def __init__(self, config: LightDecoderConfig) -> None:
        super().__init__()
        width = config.hidden_size // config.num_attention_heads
        steps = torch.arange(0, width, 2, dtype=torch.float) / width
        self.register_buffer("inv_freq", 1.0 / (config.rope_theta**steps), persistent=False)

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """(1, T, E) each, in the dtype of `x`, for `position_ids` (1, T)."""
        angles = position_ids[..., None].float() * self.inv_freq
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)
