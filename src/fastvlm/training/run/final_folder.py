"""The final model folder: ``fast_vlm`` format with a fused encoder, written atomically."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fastvlm.conversion.new_folder import carry_files, write_fast_vlm_files
from fastvlm.conversion.shards import (
    PlannedTensor,
    num_bytes_of,
    split_into_shards,
    write_index,
    write_safetensors,
)
from fastvlm.encoder_config import num_visual_tokens
from fastvlm.formats.checksums import write_checksums
from fastvlm.formats.folder import CheckpointFolder, inspect_folder
from fastvlm.formats.names import ENCODER
from fastvlm.hf.base_digest import DIGEST_FILE, BaseDigest
from fastvlm.hf.config import FastVlmConfig
from fastvlm.hf.modeling import FastVlmForConditionalGeneration
from fastvlm.hf.pretrained import expected_shapes
from fastvlm.hf.processor import FastVlmProcessor
from fastvlm.model.fastvithd import FastViTHD
from fastvlm.storage.whole_folders import whole_folder

LARGEST_SHARD = "2GB"


def write_model(
    target: Path,
    weights: Mapping[str, Tensor],
    source: Path,
    processor: FastVlmProcessor,
    *,
    card: str,
    is_multi_branch: bool,
) -> None:
    """Write trained weights as a checkpoint.

    Args:
        target: the new folder; an existing one is replaced once the new one is complete.
        weights: state dict of a FastVLM under its canonical names, any floating dtype; written in the source's dtype.
        source: the checkpoint that training began from, for its sizes, generation config and license.
        processor: with the image size of the training.
        card: text of README.md.
        is_multi_branch: the encoder is in training form and is fused here.
    """
    folder = inspect_folder(source)
    config = _config_of(folder, processor, is_multi_branch=is_multi_branch)
    tensors = _fused(dict(weights), config) if is_multi_branch else weights
    written = {name: tensors[name] for name in expected_shapes(FastVlmForConditionalGeneration, config)}
    config.dtype = folder.dtype
    planned = [
        PlannedTensor.of(name, tensor, folder.dtype if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in written.items()
    ]
    processor.padding_side = "left"  # batched generation continues at the end of the prompts
    shards = split_into_shards(planned, num_bytes_of(LARGEST_SHARD))
    with whole_folder(target, replaces=True) as work:
        for name, shard in shards.items():
            write_safetensors(work / name, shard)
        write_index(work, shards)
        write_fast_vlm_files(work, folder, config, processor, None)
        carry_files(folder.path, work)
        write_checksums(work)
        (work / "README.md").write_text(card, encoding="utf-8")
    folder.weights.close()


def write_adapter(
    target: Path, model: FastVlmForConditionalGeneration, card: str, base_digest: BaseDigest | None
) -> None:
    """Write peft's adapter, fully trained parts, and the digest of the base's weights."""
    with whole_folder(target, replaces=True) as work:
        model.save_pretrained(work)
        if base_digest is not None:
            (work / DIGEST_FILE).write_text(base_digest.as_text(), encoding="utf-8")
        write_checksums(work)
        (work / "README.md").write_text(card, encoding="utf-8")


def _config_of(folder: CheckpointFolder, processor: FastVlmProcessor, *, is_multi_branch: bool) -> FastVlmConfig:
    """The source's config with the number of visual tokens and the encoder's form of the trained model."""
    config: FastVlmConfig = FastVlmConfig.from_dict(dict(folder.config))
    height, width = processor.image_processor.image_size
    config.image_seq_length = num_visual_tokens(height, width, processor.patch_size)
    vision = config.vision_config
    vision.model_args = {**(vision.model_args or {}), "inference_mode": not is_multi_branch}
    return config


def _fused(tensors: dict[str, Tensor], config: FastVlmConfig) -> dict[str, Tensor]:
    """The weights with the encoder's branches fused."""
    encoder = FastViTHD(config.vision_config)
    own = {name.removeprefix(ENCODER): t for name, t in tensors.items() if name.startswith(ENCODER)}
    encoder.load_state_dict(own)
    fused = encoder.eval().reparameterize().state_dict()
    others = {name: t for name, t in tensors.items() if not name.startswith(ENCODER)}
    return others | {ENCODER + name: t for name, t in fused.items()}
