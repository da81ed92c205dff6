"""Key names: ``fast_vlm`` (also transformers') <-> Apple's ``llava_qwen2``, and older spellings.

The layouts differ in names only: no tensor is transposed, reshaped or folded. ``fast_vlm`` names are canonical. Each
function takes all keys of a checkpoint, because Apple numbers the encoder's parts in one flat list whose meaning
depends on which parts are present. A key without a rule keeps its name, so that the report of unexpected keys shows it.

Sources: apple/ml-fastvlm at 592b4ad, ``llava/model/multimodal_encoder/mobileclip/{mci,mobileone}.py`` and
``llava/model/llava_arch.py``; timm 1.0.31 ``fastvit.py``; transformers 5.23 ``models/fast_vlm``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

Layout = Literal["fast_vlm", "llava_qwen2"]  # transformers' and Apple's
LAYOUTS: tuple[Layout, ...] = ("fast_vlm", "llava_qwen2")
ENCODER = "model.vision_tower.timm_model."
APPLE_ENCODER = "model.vision_tower.vision_tower.model."
DECODER = "model.language_model."
PROJECTOR = "model.multi_modal_projector."
EMBEDDING = "model.language_model.embed_tokens.weight"
FINAL_NORM = "model.language_model.norm.weight"
HEAD = "lm_head.weight"

# (Apple, fast_vlm): whole parts, by prefix.
_PARTS = (
    ("model.mm_projector.0.", "model.multi_modal_projector.linear_1."),  # index 1 is the GELU
    ("model.mm_projector.2.", "model.multi_modal_projector.linear_2."),
    ("model.embed_tokens.", "model.language_model.embed_tokens."),
    ("model.layers.", "model.language_model.layers."),
    ("model.norm.", "model.language_model.norm."),
)
# (Apple, fast_vlm): inside the encoder, whole segments of a dotted name. The first that fits wins; the last lines are
# those of the training form. The 7x7 of a downsampling is the only fused convolution with a name of its own.
_ENCODER_SEGMENTS = (
    ("patch_embed", "stem"),
    ("conv_exp", "final_conv"),
    ("convffn", "mlp"),
    ("se.reduce", "se.fc1"),
    ("se.expand", "se.fc2"),
    ("proj.0.lkb_reparam", "downsample.proj.0.reparam_conv"),
    ("proj.0.lkb_origin", "downsample.proj.0.large_conv"),
    ("rbr_conv", "conv_kxk"),
    ("rbr_scale", "conv_scale"),
    ("rbr_skip", "identity"),
    ("pe", "pos_enc"),
)
_SCALES = ("layer_scale", "layer_scale_1", "layer_scale_2")  # Apple: a parameter; fast_vlm: a module with `gamma`
_DROPPED = re.compile(re.escape(APPLE_ENCODER) + r"head\.")  # CLIP projection: the VLM never uses its result
_NETWORK = re.compile(r"network\.(\d+)\.([^.]+)")
_STAGE = re.compile(r"stages\.(\d+)\.(downsample|pos_emb|blocks)\.")
# Segments that only the training form has, in fast_vlm names.
_BRANCHES = re.compile(r"\.(conv_kxk|conv_scale|identity|large_conv|small_conv|pos_enc|mixer)\.")


# Linear layers of a decoder layer that read the same input are computed as one; their outputs lie side by side.
_LAYER_LINEARS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "output": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}


def layer_linears(layer: int) -> dict[str, tuple[str, ...]]:
    """ "qkv", "output", "gate_up" and "down" -> canonical names of the weights (out, in) of decoder layer `layer`."""
    return {
        linear: tuple(f"{DECODER}layers.{layer}.{part}.weight" for part in parts)
        for linear, parts in _LAYER_LINEARS.items()
    }


def linear_groups(num_layers: int) -> list[tuple[str, ...]]:
    """The names of :func:`layer_linears` for all layers in order, then the head's."""
    return [names for layer in range(num_layers) for names in layer_linears(layer).values()] + [(HEAD,)]


def is_apple(keys: Iterable[str]) -> bool:
    """True if any of `keys` is one that only Apple's layout has."""
    return any(key.startswith(("model.mm_projector.", "model.embed_tokens.", APPLE_ENCODER)) for key in keys)


def is_multi_branch(keys: Iterable[str]) -> bool:
    """True if the encoder among these canonical `keys` is in the training form (several branches a block)."""
    return any(key.startswith(ENCODER) and _BRANCHES.search(key) for key in keys)


def _swap(name: str, old: str, new: str) -> str:
    """`name` with the dotted segments `old` replaced by `new`, whole segments only."""
    return f".{name}.".replace(f".{old}.", f".{new}.").strip(".")


def network_parts(names: Iterable[str]) -> dict[str, str]:
    """``network.{i}`` -> ``stages.{s}`` + part, for Apple's encoder names (without prefix).

    Apple lists what a stage is made of one after the other: [downsample], [positional encoding], blocks. Published:
    0, 2, 4, 7, 10 are blocks, 1, 3, 5, 8 downsamplings, 6, 9 positional encodings.
    """
    kinds: dict[int, str] = {}
    for name in names:
        if found := _NETWORK.match(name):
            child = found[2]
            kinds[int(found[1])] = "downsample" if child == "proj" else "blocks" if child.isdigit() else "pos_emb"
    order = ("downsample", "pos_emb", "blocks")
    parts, stage, last = {}, 0, -1
    for index, kind in sorted(kinds.items()):
        if order.index(kind) <= last:
            stage += 1
        last = order.index(kind)
        parts[f"network.{index}"] = f"stages.{stage}" + ("" if kind == "downsample" else f".{kind}")
    return parts


def _encoder_from_apple(name: str, parts: dict[str, str]) -> str:
    for apple, ours in _ENCODER_SEGMENTS:
        name = _swap(name, apple, ours)
    if found := _NETWORK.match(name):
        index = name[: found.start(2) - 1]
        rest = name[found.start(2) :]
        if parts[index].count(".") == 1 and not rest.startswith("downsample."):
            rest = f"downsample.{rest}"
        name = f"{parts[index]}.{rest}"
    return f"{name}.gamma" if name.rsplit(".", 1)[-1] in _SCALES else name


def names_from_apple(keys: Iterable[str]) -> dict[str, str | None]:
    """Each key of an Apple checkpoint -> its canonical name; None for what the VLM does not use (``head.proj``)."""
    keys = list(keys)
    parts = network_parts(key.removeprefix(APPLE_ENCODER) for key in keys if key.startswith(APPLE_ENCODER))
    names: dict[str, str | None] = {}
    for key in keys:
        if _DROPPED.match(key):
            names[key] = None
        elif key.startswith(APPLE_ENCODER):
            names[key] = ENCODER + _encoder_from_apple(key.removeprefix(APPLE_ENCODER), parts)
        else:
            names[key] = _replace_prefix(key, _PARTS)
    return names


def _replace_prefix(key: str, table: Iterable[tuple[str, str]]) -> str:
    for old, new in table:
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


def _encoder_to_apple(name: str, indices: dict[str, int]) -> str:
    if found := _STAGE.match(name):
        rest = name[found.end() :]
        is_downsample = found[2] == "downsample"
        name = f"network.{indices[found[0]]}.{rest}"
        if is_downsample:  # so that the rules of the 7x7 fit
            name = name.replace(".proj.0.", ".downsample.proj.0.", 1)
    name = name.removesuffix(".gamma") if name.endswith(tuple(f".{scale}.gamma" for scale in _SCALES)) else name
    for apple, ours in _ENCODER_SEGMENTS:
        name = _swap(name, ours, apple)
    return _swap(name, "downsample.proj", "proj")


def names_to_apple(keys: Iterable[str]) -> dict[str, str]:
    """Each canonical key -> its name in Apple's layout."""
    keys = list(keys)
    stages: set[tuple[int, int, str]] = set()
    order = ("downsample", "pos_emb", "blocks")
    for key in keys:
        if found := _STAGE.match(key.removeprefix(ENCODER)):
            stages.add((int(found[1]), order.index(found[2]), found[0]))
    indices = {part: index for index, (_, _, part) in enumerate(sorted(stages))}
    table = [(ours, apple) for apple, ours in _PARTS]
    return {
        key: APPLE_ENCODER + _encoder_to_apple(key.removeprefix(ENCODER), indices)
        if key.startswith(ENCODER)
        else _replace_prefix(key, table)
        for key in keys
    }


# Older names of the canonical layout: LLaVA conversions made with transformers < 4.52, and the model without head,
# whose keys lack the leading "model.".
_OLDER = (
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "model.language_model."),
    ("language_model.", "model.language_model."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    ("vision_tower.", "model.vision_tower."),
)


def names_from_fast_vlm(keys: Iterable[str]) -> dict[str, str]:
    """Each key of a ``fast_vlm`` checkpoint -> its canonical name; older spellings are understood."""
    names = {key: _replace_prefix(key, _OLDER) for key in keys}
    tower = ENCODER.removesuffix("timm_model.")
    return {
        key: name.replace(tower, ENCODER, 1) if name.startswith(tower) and not name.startswith(ENCODER) else name
        for key, name in names.items()
    }
