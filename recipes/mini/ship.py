"""Writes the folder that is shipped, from the state of training, and checks it.

    python -m recipes.mini.ship --model FOLDER       # what `fastvlm train` wrote, which is fused already
    python -m recipes.mini.ship --run FOLDER --tokenizer FOLDER --out src/fastvlm/weights/mini

The encoder is fused for shipping; its feature maps of drawn pictures are compared before and after.
"""

from __future__ import annotations

import argparse
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recipes.mini.loop import load_state, to_pixels
from recipes.mini.mix import JOINT_MIX, draw
from recipes.mini.train import encoder_of, has_fused_encoder, new_model
from transformers import AutoTokenizer, GenerationConfig

from fastvlm.hf.config import FastVlmConfig
from fastvlm.hf.image_processor import FastVlmImageProcessor
from fastvlm.hf.modeling import FastVlmForConditionalGeneration
from fastvlm.hf.processor import FastVlmProcessor

LARGEST_SHARD = "15MB"
MOST_BYTES, MOST_BYTES_A_FILE = 30_000_000, 16 * 2**20
DOCUMENTS = ("LICENSE", "CREDITS.md", "README.md")


def trained_model(run: Path, tokenizer: Any) -> FastVlmForConditionalGeneration:
    """The model of the newest joint state, in eval mode and float32."""
    state = load_state(run / "joint.pt")
    if state is None:
        raise FileNotFoundError(f"no joint.pt in {run}")
    model = new_model(tokenizer, is_fused=has_fused_encoder(state["model"]))
    model.load_state_dict(state["model"])
    model.eval()
    return model


@torch.inference_mode()
def fused(model: FastVlmForConditionalGeneration, pictures: int = 32) -> tuple[float, float]:
    """Fuses the encoder in place; (largest difference, largest value) of the feature maps before and after, float32."""
    encoder = encoder_of(model)
    scenes = (draw("joint", index, JOINT_MIX, "test")[0] for index in range(pictures))
    pixels = to_pixels(torch.from_numpy(np.stack([np.asarray(scene.image) for scene in scenes])))
    before = encoder(pixels)
    after = encoder.reparameterize()(pixels)
    config = model.config.vision_config
    config.model_args = {**(config.model_args or {}), "inference_mode": True}
    return float((before - after).abs().max()), float(before.abs().max())


def side_px(config: FastVlmConfig) -> int:
    """Of the square pictures that a checkpoint was trained with."""
    return math.isqrt(config.image_seq_length) * int(config.vision_config.stride_px)


def write_folder(model: FastVlmForConditionalGeneration, tokenizer: Any, out: Path) -> None:
    """Weights in bfloat16, configs, tokenizer and processor; documents that already lie in `out` stay."""
    out.mkdir(parents=True, exist_ok=True)
    for old in (*out.glob("model*.safetensors"), *out.glob("model.safetensors.index.json")):
        old.unlink()
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.pad_token_id,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id],
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    model.to(torch.bfloat16, memory_format=torch.contiguous_format)
    for part in (model.config, model.config.text_config, model.config.vision_config):
        part.dtype = torch.bfloat16
    model.save_pretrained(out, max_shard_size=LARGEST_SHARD)
    processor = FastVlmProcessor(
        FastVlmImageProcessor(image_size=side_px(model.config)),
        tokenizer,
        image_token_id=model.config.image_token_index,
    )
    processor.save_pretrained(out)
    shutil.copy(Path(__file__).parents[2] / "LICENSE", out / "LICENSE")


def check_sizes(out: Path) -> int:
    """Bytes of the folder; an error if it, or one of its files, is larger than a repository should carry."""
    sizes = {path.name: path.stat().st_size for path in out.iterdir() if path.is_file()}
    too_large = [name for name, size in sizes.items() if size >= MOST_BYTES_A_FILE]
    if too_large or sum(sizes.values()) >= MOST_BYTES:
        raise ValueError(f"too large: {too_large or 'the folder'}; {sizes}")
    return sum(sizes.values())


def main() -> None:
    """Fuse, compare, write, check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="of recipes.mini.train; needs --tokenizer")
    source.add_argument("--model", type=Path, help="folder that fastvlm train wrote")
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--out", type=Path, default=Path("src/fastvlm/weights/mini"))
    args = parser.parse_args()
    if args.run is not None and args.tokenizer is None:
        parser.error("--run needs --tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer or args.model)
    if args.model is not None:
        model = FastVlmForConditionalGeneration.from_pretrained(args.model)
    else:
        model = trained_model(args.run, tokenizer)
        difference, largest = fused(model)
        print(f"multi-branch against fused: largest difference {difference:.2e} of values up to {largest:.2f}")
    write_folder(model, tokenizer, args.out)
    print(f"{check_sizes(args.out) / 1e6:.1f} MB -> {args.out}")


if __name__ == "__main__":
    main()
