"""Writes the folder that is shipped from a model that `fastvlm train` wrote, and checks its size.

python -m fastvlm_recipes.mini.ship --model FOLDER --out src/fastvlm/weights/mini
"""

from __future__ import annotations

import argparse
import math
import shutil
from pathlib import Path

import torch
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from fastvlm import FastVlmConfig, FastVlmForConditionalGeneration, FastVlmImageProcessor, FastVlmProcessor

LARGEST_SHARD = "15MB"
MOST_BYTES, MOST_BYTES_A_FILE = 30_000_000, 16 * 2**20


def side_px(config: FastVlmConfig) -> int:
    """Side of the square images that a checkpoint was trained with."""
    return math.isqrt(config.image_seq_length) * int(config.vision_config.stride_px)


def write_folder(model: FastVlmForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Weights in bfloat16, configs, tokenizer and processor; documents in `out` stay."""
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
    shutil.copy(Path("LICENSE"), out / "LICENSE")


def check_sizes(out: Path) -> int:
    """Bytes of the folder. Raises ValueError if it, or one of its files, is too large for a repository."""
    sizes = {path.name: path.stat().st_size for path in out.iterdir() if path.is_file()}
    too_large = [name for name, size in sizes.items() if size >= MOST_BYTES_A_FILE]
    if too_large or sum(sizes.values()) >= MOST_BYTES:
        raise ValueError(f"too large: {too_large or 'the folder'}; {sizes}")
    return sum(sizes.values())


def main() -> None:
    """Write the folder and check its size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder that fastvlm train wrote")
    parser.add_argument("--out", type=Path, default=Path("src/fastvlm/weights/mini"))
    args = parser.parse_args()
    write_folder(
        FastVlmForConditionalGeneration.from_pretrained(args.model), AutoTokenizer.from_pretrained(args.model), args.out
    )
    print(f"{check_sizes(args.out) / 1e6:.1f} MB -> {args.out}")


if __name__ == "__main__":
    main()
