"""A new checkpoint folder: what every way of writing one shares."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import torch

from fastvlm.conversion.apple_extras import AppleExtras
from fastvlm.conversion.shards import PlannedTensor
from fastvlm.errors import CheckpointError
from fastvlm.formats.differences import Differences
from fastvlm.formats.folder import CheckpointFolder
from fastvlm.formats.names import ENCODER
from fastvlm.hf.config import FastVlmConfig
from fastvlm.hf.modeling import FastVlmForConditionalGeneration
from fastvlm.hf.pretrained import expected_shapes, generation_config_of
from fastvlm.hf.processor import FastVlmProcessor
from fastvlm.model.fastvithd import FastViTHD

_CARRIED_FILES = ("LICENSE*", "CREDITS*", "NOTICE*")  # what a license asks to keep with the weights


def planned_tensors(folder: CheckpointFolder, config: FastVlmConfig, *, do_fuse: bool) -> list[PlannedTensor]:
    """The tensors in the network's order; fusing needs the encoder in memory, everything else is read when written.

    Raises:
        CheckpointError: the folder's tensors are not those of the network.
    """
    expected = expected_shapes(FastVlmForConditionalGeneration, config)
    if differences := Differences.between(expected, folder.shapes):
        raise CheckpointError(differences.report(str(folder.path)))
    planned = [
        PlannedTensor(key, shape, folder.weights.entries[folder.keys[key]].dtype, partial(folder.tensor, key))
        if key in folder.keys
        else PlannedTensor.of(key, torch.zeros(shape, dtype=torch.int64))  # a BatchNorm's step counter: old files
        for key, shape in expected.items()
    ]
    if not do_fuse or config.vision_config.is_inference_form:
        return planned
    dtype = next(p.dtype for p in planned if p.name.startswith(ENCODER) and p.dtype.is_floating_point)
    encoder = FastViTHD(config.vision_config)
    state = {p.name.removeprefix(ENCODER): p.read() for p in planned if p.name.startswith(ENCODER)}
    encoder.load_state_dict(state)
    fused = encoder.eval().reparameterize().state_dict()  # float32 here; changes the config's form too
    others = [p for p in planned if not p.name.startswith(ENCODER)]
    return others + [
        PlannedTensor.of(ENCODER + name, t, dtype if t.is_floating_point() else None) for name, t in fused.items()
    ]


def write_fast_vlm_files(
    work: Path,
    folder: CheckpointFolder,
    config: FastVlmConfig,
    processor: FastVlmProcessor,
    extras: AppleExtras | None,
) -> None:
    """Everything but the weights, in the ``fast_vlm`` layout, into the folder `work`."""
    config.architectures = ["FastVlmForConditionalGeneration"]
    config.save_pretrained(work)
    generation_config_of(folder, config).save_pretrained(work)
    processor.save_pretrained(work)
    if extras is not None:
        extras.write(work)


def carry_files(source: Path, work: Path) -> None:
    """Copy what a license asks to keep with the weights."""
    for pattern in _CARRIED_FILES:
        for file in source.glob(pattern):
            shutil.copyfile(file, work / file.name)
