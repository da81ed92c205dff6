"""Derives the encoder's architecture from the shapes of its tensors, because Apple's config.json only names it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fastvlm.encoder_config import PUBLISHED_MODEL_ARGS
from fastvlm.formats.names import ENCODER, is_multi_branch

Shape = tuple[int, ...]
_BLOCK = re.compile(r"stages\.(\d+)\.blocks\.(\d+)\.")


def encoder_form(shapes: Mapping[str, Shape]) -> bool | None:
    """timm's `inference_mode` for these canonical keys: True if fused, False if multi-branch, None without encoder."""
    if not any(key.startswith(ENCODER) for key in shapes):
        return None
    return not is_multi_branch(shapes)


def encoder_arguments(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """timm's `model_args` of the encoder whose canonical keys have these shapes.

    Derived from shapes: depths, widths, mixers, ratios, kernels. Everything else (`lkc_use_act`) is as published. A
    missing key leaves the published value; the report of missing keys then names it.
    """
    encoder = {key.removeprefix(ENCODER): shape for key, shape in shapes.items() if key.startswith(ENCODER)}
    depths: dict[int, int] = {}
    for name in encoder:
        if found := _BLOCK.match(name):
            stage, block = int(found[1]), int(found[2])
            depths[stage] = max(depths.get(stage, 0), block + 1)
    if sorted(depths) != list(range(len(depths))) or not depths:
        return {}
    stages = [_stage_arguments(encoder, index) for index in range(len(depths))]
    if any(stage is None for stage in stages):
        return {}
    columns = {key: [stage[key] for stage in stages if stage] for key in stages[0] or {}}
    arguments: dict[str, Any] = {"layers": [depths[i] for i in range(len(depths))], **columns}
    final = encoder.get("final_conv.reparam_conv.weight") or encoder.get("final_conv.conv_kxk.0.conv.weight")
    if final is not None:
        arguments["cls_ratio"] = final[0] / arguments["embed_dims"][-1]
    mixer = next((shape for key, shape in encoder.items() if re.search(_MIXER_KERNEL, key)), None)
    if mixer is not None:
        arguments["repmixer_kernel_size"] = mixer[-1]
    arguments["inference_mode"] = not is_multi_branch(shapes)
    arguments["stem_use_scale_branch"] = any(key.startswith("stem.0.conv_scale.") for key in encoder)
    # Only differences are returned: timm takes `pos_embs` as modules, not as kernel sizes.
    return {key: value for key, value in arguments.items() if value != PUBLISHED_MODEL_ARGS[key]}


_MIXER_KERNEL = r"token_mixer\.(reparam_conv|mixer\.conv_kxk\.0\.conv)\.weight$"


def _stage_arguments(encoder: Mapping[str, Shape], index: int) -> dict[str, Any] | None:
    """One stage's entries, or None if its keys are missing."""
    prefix = f"stages.{index}."
    hidden = encoder.get(f"{prefix}blocks.0.mlp.fc1.weight")
    if hidden is None or len(hidden) != 4:
        return None
    ratio = hidden[0] / hidden[1]
    position = encoder.get(f"{prefix}pos_emb.reparam_conv.weight") or encoder.get(f"{prefix}pos_emb.pos_enc.weight")
    return {
        "embed_dims": hidden[1],
        "mlp_ratios": int(ratio) if ratio.is_integer() else ratio,
        "token_mixers": "attention" if f"{prefix}blocks.0.token_mixer.qkv.weight" in encoder else "repmixer",
        "pos_embs": None if position is None else position[-1] if position[-1] == position[-2] else position[-2:],
        "downsamples": any(key.startswith(f"{prefix}downsample.") for key in encoder),
        "se_downsamples": any(key.startswith(f"{prefix}downsample.proj.0.se.") for key in encoder),
    }
