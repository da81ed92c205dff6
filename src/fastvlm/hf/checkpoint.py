"""Converts a live transformers model to a :class:`fastvlm.formats.checkpoint.Checkpoint` for an engine.

The checkpoint shares the model's tensors, so nothing is copied, and the model can still be used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import PretrainedConfig

from fastvlm.config import DecoderConfig, ModelConfig
from fastvlm.errors import ConfigError, UsageError
from fastvlm.formats.checkpoint import Checkpoint, RotaryPositions
from fastvlm.formats.names import DECODER, EMBEDDING, ENCODER, HEAD, PROJECTOR, linear_groups
from fastvlm.hf.config import FastVlmConfig, decoder_head_dim
from fastvlm.processing.processor import Processor

if TYPE_CHECKING:
    from fastvlm.hf.modeling import FastVlmForConditionalGeneration

_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


def checkpoint_of(model: FastVlmForConditionalGeneration, processor: Processor) -> Checkpoint:
    """See :meth:`fastvlm.FastVlmForConditionalGeneration.to_checkpoint`."""
    if model.training:
        raise UsageError("The model is in training mode, in which it answers otherwise. Call model.eval() first.")
    config = plain_config(model.config)
    tensors, layers = _decoder_parts(model, config)
    state: dict[str, Tensor] = model.state_dict()
    tensors |= {name: tensor for name, tensor in state.items() if name.startswith((ENCODER, PROJECTOR))}
    if packed := [name for name in tensors if ".lora_" in name or ".base_layer." in name]:
        raise UsageError(f"An adapter is attached to the encoder or the projector ({packed[0]}). Merge it first.")
    rotary: Any = model.model.language_model.rotary_emb
    ends = getattr(model.generation_config, "eos_token_id", None)
    ends = ends if isinstance(ends, (list, tuple)) else [] if ends is None else [ends]
    return Checkpoint(
        config=config,
        tensors=tensors,
        processor=processor,
        stop_token_ids=frozenset((*config.stop_token_ids, *ends)),
        dtype=tensors[EMBEDDING].dtype,
        rotary=RotaryPositions(rotary.inv_freq, float(rotary.attention_scaling)),
        layers=layers,
        files=model.mapped_files,
    )


def _decoder_parts(
    model: FastVlmForConditionalGeneration, config: ModelConfig
) -> tuple[dict[str, Tensor], dict[str, Callable[[Tensor], Tensor]]]:
    """Tensors of decoder and head by canonical name, and linear layers with their own code."""
    tensors: dict[str, Tensor] = {}
    layers: dict[str, Callable[[Tensor], Tensor]] = {}
    linears = {name for names in linear_groups(config.text_config.num_hidden_layers) for name in names}
    for name in linears:
        module = model.get_submodule(name.removesuffix(".weight"))
        # `_hf_hook`: accelerate moves this layer's weights about.
        if type(module) is nn.Linear and not hasattr(module, "_hf_hook"):
            tensors[name] = module.weight.detach()
            if module.bias is not None:
                tensors[name.removesuffix("weight") + "bias"] = module.bias.detach()
        else:
            layers[name] = module
    embedding: Tensor = model.get_parameter(EMBEDDING)
    if HEAD in tensors and model.lm_head.weight is embedding:
        del tensors[HEAD]
    decoder: nn.Module = model.model.language_model
    state: dict[str, Tensor] = decoder.state_dict(prefix=DECODER)
    tensors |= {name: tensor for name, tensor in state.items() if name.endswith("norm.weight")}
    tensors[EMBEDDING] = embedding.detach()
    return tensors, layers


def plain_config(config: FastVlmConfig) -> ModelConfig:
    """`config` as the engine's plain configuration.

    Raises:
        ConfigError: a decoder other than plain Qwen2.
    """
    text = config.text_config
    _refuse_other_decoders(text)
    decoder = DecoderConfig(
        vocab_size=text.vocab_size,
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        num_hidden_layers=text.num_hidden_layers,
        num_attention_heads=text.num_attention_heads,
        num_key_value_heads=text.num_key_value_heads,
        max_position_embeddings=text.max_position_embeddings,
        head_dim=decoder_head_dim(text),
        rms_norm_eps=text.rms_norm_eps,
        rope_theta=float((text.rope_parameters or {}).get("rope_theta", 0.0)),
        eos_token_id=text.eos_token_id,
        pad_token_id=text.pad_token_id,
    )
    return ModelConfig(
        text_config=decoder,
        vision_config=config.vision_config,
        image_token_index=config.image_token_index,
        image_seq_length=config.image_seq_length,
        projector_hidden_act=config.projector_hidden_act,
        multimodal_projector_bias=config.multimodal_projector_bias,
        tie_word_embeddings=config.tie_word_embeddings,
    )


def _refuse_other_decoders(config: PretrainedConfig) -> None:
    rope_type = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if config.model_type != "qwen2" or config.hidden_act != "silu":
        found = f"is {config.model_type!r} with {getattr(config, 'hidden_act', None)!r}"
    elif "sliding_attention" in config.layer_types:
        found = "has sliding windows"
    elif rope_type in _LENGTH_DEPENDENT_ROPE:
        found = f"has {rope_type!r} positions"
    else:
        return
    raise ConfigError(f"The decoder {found}; the engine runs plain Qwen2. Use model.generate for this model.")
