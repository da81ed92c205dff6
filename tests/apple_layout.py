"""Apple's layout written down by hand, key by key, beside what each key is called in ``fast_vlm``.

This is a second, independent statement of what ``fastvlm.formats.names`` does by rules: it lists, it does not rename.
Source: apple/ml-fastvlm at 592b4ad, ``mobileclip/mci.py`` (`patch_embed`, `network`, `conv_exp`), ``llava_arch.py``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import qwen2_format
import tiny
import torch
from safetensors.torch import save_file
from torch import Tensor

from fastvlm import FastVlmConfig, FastVlmForConditionalGeneration

APPLE = "model.vision_tower.vision_tower.model."
OURS = "model.vision_tower.timm_model."
HEAD_PROJ = APPLE + "head.proj"
# Where Apple's flat list `network` has what, for the published five stages.
BLOCKS_AT = (0, 2, 4, 7, 10)
DOWNSAMPLE_AT = {1: 1, 2: 3, 3: 5, 4: 8}
POSITIONS_AT = {3: 6, 4: 9}
ATTENTION_STAGES = (3, 4)
PUBLISHED_DEPTHS = (2, 12, 24, 4, 2)

Pair = tuple[str, str]


def _both(apple: str, ours: str, *leaves: str) -> Iterator[Pair]:
    for leaf in leaves:
        yield f"{APPLE}{apple}.{leaf}", f"{OURS}{ours}.{leaf}"


def _norm(apple: str, ours: str) -> Iterator[Pair]:
    return _both(apple, ours, "weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def _conv_norm(apple: str, ours: str) -> Iterator[Pair]:
    yield from _both(apple, ours, "conv.weight")
    yield from _norm(f"{apple}.bn", f"{ours}.bn")


def _ffn(apple: str, ours: str) -> Iterator[Pair]:
    yield from _conv_norm(f"{apple}.convffn.conv", f"{ours}.mlp.conv")
    for layer in ("fc1", "fc2"):
        yield from _both(f"{apple}.convffn.{layer}", f"{ours}.mlp.{layer}", "weight", "bias")


def _scale(apple: str, ours: str) -> Iterator[Pair]:
    yield f"{APPLE}{apple}", f"{OURS}{ours}.gamma"


def _block(apple: str, ours: str, *, has_attention: bool, is_fused: bool) -> Iterator[Pair]:
    yield from _ffn(apple, ours)
    if has_attention:
        yield from _both(f"{apple}.norm", f"{ours}.norm", "weight", "bias")
        yield from _both(f"{apple}.token_mixer", f"{ours}.token_mixer", "qkv.weight", "proj.weight", "proj.bias")
        yield from _scale(f"{apple}.layer_scale_1", f"{ours}.layer_scale_1")
        yield from _scale(f"{apple}.layer_scale_2", f"{ours}.layer_scale_2")
        return
    yield from _scale(f"{apple}.layer_scale", f"{ours}.layer_scale")
    mixer = (f"{apple}.token_mixer", f"{ours}.token_mixer")
    if is_fused:
        yield from _both(f"{mixer[0]}.reparam_conv", f"{mixer[1]}.reparam_conv", "weight", "bias")
        return
    yield from _scale(f"{mixer[0]}.layer_scale", f"{mixer[1]}.layer_scale")
    yield from _norm(f"{mixer[0]}.norm.rbr_skip", f"{mixer[1]}.norm.identity")
    yield from _norm(f"{mixer[0]}.mixer.rbr_skip", f"{mixer[1]}.mixer.identity")
    yield from _conv_norm(f"{mixer[0]}.mixer.rbr_conv.0", f"{mixer[1]}.mixer.conv_kxk.0")
    yield from _conv_norm(f"{mixer[0]}.mixer.rbr_scale", f"{mixer[1]}.mixer.conv_scale")


def _stem(*, is_fused: bool) -> Iterator[Pair]:
    for i in range(3):
        if is_fused:
            yield from _both(f"patch_embed.{i}.reparam_conv", f"stem.{i}.reparam_conv", "weight", "bias")
        else:
            yield from _conv_norm(f"patch_embed.{i}.rbr_conv.0", f"stem.{i}.conv_kxk.0")
    if not is_fused:
        yield from _norm("patch_embed.2.rbr_skip", "stem.2.identity")


def _downsample(index: int, stage: int, *, is_fused: bool) -> Iterator[Pair]:
    apple, ours = f"network.{index}.proj", f"stages.{stage}.downsample.proj"
    if is_fused:
        yield from _both(f"{apple}.0.lkb_reparam", f"{ours}.0.reparam_conv", "weight", "bias")
        yield from _both(f"{apple}.1.reparam_conv", f"{ours}.1.reparam_conv", "weight", "bias")
        return
    yield from _conv_norm(f"{apple}.0.lkb_origin", f"{ours}.0.large_conv")
    yield from _conv_norm(f"{apple}.0.small_conv", f"{ours}.0.small_conv")
    yield from _conv_norm(f"{apple}.1.rbr_conv.0", f"{ours}.1.conv_kxk.0")
    yield from _norm(f"{apple}.1.rbr_skip", f"{ours}.1.identity")


def _final(*, is_fused: bool) -> Iterator[Pair]:
    yield from _both("conv_exp.se.reduce", "final_conv.se.fc1", "weight", "bias")
    yield from _both("conv_exp.se.expand", "final_conv.se.fc2", "weight", "bias")
    if is_fused:
        yield from _both("conv_exp.reparam_conv", "final_conv.reparam_conv", "weight", "bias")
        return
    yield from _conv_norm("conv_exp.rbr_conv.0", "final_conv.conv_kxk.0")
    yield from _conv_norm("conv_exp.rbr_scale", "final_conv.conv_scale")


def encoder_pairs(depths: tuple[int, ...] = PUBLISHED_DEPTHS, *, is_fused: bool = True) -> list[Pair]:
    """(Apple's key, fast_vlm key) of every tensor of the encoder."""
    pairs = [*_stem(is_fused=is_fused), *_final(is_fused=is_fused)]
    for stage, depth in enumerate(depths):
        for block in range(depth):
            pairs += _block(
                f"network.{BLOCKS_AT[stage]}.{block}",
                f"stages.{stage}.blocks.{block}",
                has_attention=stage in ATTENTION_STAGES,
                is_fused=is_fused,
            )
    for stage, index in DOWNSAMPLE_AT.items():
        pairs += _downsample(index, stage, is_fused=is_fused)
    for stage, index in POSITIONS_AT.items():
        leaf = ("reparam_conv", "reparam_conv") if is_fused else ("pe", "pos_enc")
        pairs += _both(f"network.{index}.{leaf[0]}", f"stages.{stage}.pos_emb.{leaf[1]}", "weight", "bias")
    return pairs


def text_pairs(num_layers: int) -> list[Pair]:
    """(Apple's key, fast_vlm key) of projector, decoder and head."""
    pairs = [("lm_head.weight", "lm_head.weight")]
    for index, name in ((0, "linear_1"), (2, "linear_2")):
        new = f"model.multi_modal_projector.{name}"
        pairs += [(f"model.mm_projector.{index}.{leaf}", f"{new}.{leaf}") for leaf in ("weight", "bias")]
    names = ["embed_tokens.weight", "norm.weight"]
    for layer in range(num_layers):
        attention = [f"self_attn.{p}_proj.{leaf}" for p in "qkv" for leaf in ("weight", "bias")]
        rest = ["self_attn.o_proj.weight", "input_layernorm.weight", "post_attention_layernorm.weight"]
        mlp = [f"mlp.{p}_proj.weight" for p in ("gate", "up", "down")]
        names += [f"layers.{layer}.{name}" for name in (*attention, *rest, *mlp)]
    return pairs + [(f"model.{name}", f"model.language_model.{name}") for name in names]


def all_pairs(depths: tuple[int, ...], num_layers: int, *, is_fused: bool = True) -> list[Pair]:
    """(Apple's key, fast_vlm key) of a whole checkpoint, but for `head.proj`."""
    return encoder_pairs(depths, is_fused=is_fused) + text_pairs(num_layers)


def apple_config(model, **overrides) -> dict:
    """Apple's flat config.json for `model`, as the published files have it."""
    text = model.config.text_config
    return {
        "architectures": ["LlavaQwen2ForCausalLM"],
        "auto_map": {
            "AutoConfig": "llava_qwen.LlavaConfig",
            "AutoModelForCausalLM": "llava_qwen.LlavaQwen2ForCausalLM",
        },
        "model_type": "llava_qwen2",
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_hidden_layers": text.num_hidden_layers,
        "num_attention_heads": text.num_attention_heads,
        "num_key_value_heads": text.num_key_value_heads,
        "max_position_embeddings": text.max_position_embeddings,
        "max_window_layers": text.num_hidden_layers,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_theta": text.rope_parameters["rope_theta"],
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "attention_dropout": 0.0,
        "sliding_window": 131072,
        "use_sliding_window": False,
        "use_cache": True,
        "vocab_size": text.vocab_size,
        "tie_word_embeddings": text.tie_word_embeddings,
        "bos_token_id": 151643,
        "eos_token_id": model.config.text_config.eos_token_id,
        "pad_token_id": model.config.text_config.pad_token_id,
        "torch_dtype": "float32",
        "transformers_version": "4.39.3",
        "image_aspect_ratio": "pad",
        "image_grid_pinpoints": None,
        "mm_hidden_size": model.config.vision_config.hidden_size,
        "mm_projector_type": "mlp2x_gelu",
        "mm_projector_lr": None,
        "mm_patch_merge_type": "flat",
        "mm_vision_tower": f"mobileclip_l_{tiny.SIZE_PX}",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "use_mm_proj": True,
        "unfreeze_mm_vision_tower": True,
        "tune_mm_mlp_adapter": False,
        "freeze_mm_mlp_adapter": False,
        "tokenizer_model_max_length": 8192,
        "tokenizer_padding_side": "right",
        "image_token_index": model.config.image_token_index,  # as Apple's exporter writes it
        **overrides,
    }


def apple_tensors(model, *, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The tensors of `model` under Apple's names, with a stored head and `head.proj`."""
    config = model.config
    state = model.state_dict()
    pairs = all_pairs(
        tuple(config.vision_config.model_args["layers"]),
        config.text_config.num_hidden_layers,
        is_fused=config.vision_config.is_inference_form,
    )
    tensors = {apple: state[ours].clone() for apple, ours in pairs}
    tensors[HEAD_PROJ] = torch.randn(config.vision_config.hidden_size, 24)
    return {k: v.to(dtype) if dtype and v.is_floating_point() else v for k, v in tensors.items()}


def write_apple_folder(folder: Path, model, *, edit: Callable[[dict], None] = lambda _: None, **overrides) -> Path:
    """An Apple folder of `model`: one file, config, generation config, tokenizer without ``<image>``."""
    folder.mkdir()
    tensors = apple_tensors(model, dtype=overrides.pop("dtype", None))
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_apple_files(folder, model, **overrides)
    return folder


def write_apple_files(folder: Path, model, **overrides) -> None:
    """All of an Apple folder but the weights; an override of None leaves the key out."""
    content = {k: v for k, v in apple_config(model, **overrides).items() if k not in overrides or v is not None}
    (folder / "config.json").write_text(json.dumps(content, indent=2))
    sampling = {"do_sample": True, "temperature": None, "top_p": None, "transformers_version": "4.39.3"}
    (folder / "generation_config.json").write_text(json.dumps(sampling))
    (folder / "llava_qwen.py").write_text("raise SystemExit('code of a checkpoint was run')\n")
    qwen2_format.small_tokenizer(with_image=False).save_pretrained(folder)


def tokenized_model(*, text: dict | None = None, vision: dict | None = None):
    """A tiny model whose vocabulary is that of `qwen2_format.small_tokenizer`."""
    tokenizer = qwen2_format.small_tokenizer()
    ids = {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.pad_token_id,
    }
    config = FastVlmConfig(
        text_config=tiny.text_config(**{**ids, **(text or {})}),
        vision_config=tiny.vision_config(**(vision or {})),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
    )
    torch.manual_seed(0)
    return tiny.loud(FastVlmForConditionalGeneration(config)).eval()


def qwen2_sized_model(text: dict):
    """A tiny model with a vocabulary of Qwen2's size (or less: the placeholder may have no row)."""
    rows = text["vocab_size"]
    config = FastVlmConfig(
        text_config=tiny.text_config(**text, tie_word_embeddings=False),
        vision_config=tiny.vision_config(),
        image_token_index=min(rows - 1, 151_646),
    )
    torch.manual_seed(0)
    return FastVlmForConditionalGeneration(config).eval()


def digest(folder: Path) -> dict[str, str]:
    """Path in the folder -> hash of its content, for every file."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def inputs_for(model) -> dict[str, Tensor]:
    """A prompt with one image for `model`."""
    image_id = model.config.image_token_index
    ids = [image_id if token == tiny.IMAGE_ID else token for token in tiny.prompt("ttittt")]
    return {"input_ids": torch.tensor([ids]), "pixel_values": tiny.images(1)}
