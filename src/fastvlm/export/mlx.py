"""``--to mlx``: Apple's layout with what mlx-vlm asks for besides, in bfloat16. mlx-vlm (0.7) opens it as it is.

Three differences from ``fastvlm convert --to llava_qwen2``: the CLIP projection that no code uses is there, the
configuration has no `image_token_index` (mlx-vlm's processor writes -200, and its model looks for the configuration's
value), and ``preprocessor_config.json`` says the size.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from fastvlm.conversion.convert import convert
from fastvlm.conversion.shards import PlannedTensor, write_safetensors
from fastvlm.export.job import ExportJob, Format, Written
from fastvlm.export.readme import mlx_readme
from fastvlm.export.source import ExportSource
from fastvlm.formats.names import APPLE_ENCODER
from fastvlm.formats.weights import WeightFiles

_PROJECTION = f"{APPLE_ENCODER}head.proj"
_CLIP_WIDTH = 768
_PROJECTION_FILE = "model-head.safetensors"  # mlx-vlm reads every safetensors file of the folder
_NOT_RUN = "mlx-vlm answered by such a folder on Linux in a test, and never on a Mac"


def _write(job: ExportJob) -> Written:
    copy = job.work / "apple"
    convert(job.source.folder, copy, "llava_qwen2", dtype="bfloat16")
    for file in list(copy.iterdir()):
        shutil.move(file, job.work / file.name)
    copy.rmdir()
    job.step()
    _add_projection(job.work, job.source)
    _edit_config(job.work / "config.json")
    content = json.dumps(_image_settings(job.source.side_px), indent=2) + "\n"
    (job.work / "preprocessor_config.json").write_text(content, encoding="utf-8")
    return Written({}, (), mlx_readme(job.source), not_run=_NOT_RUN)


def _add_projection(work: Path, source: ExportSource) -> None:
    """Zeros for the projection, unless it came along from Apple's file."""
    files = WeightFiles.of(work)
    if _PROJECTION not in files.entries:
        width = source.checkpoint.config.vision_config.hidden_size
        zeros = PlannedTensor.of(_PROJECTION, torch.zeros(width, _CLIP_WIDTH, dtype=torch.bfloat16))
        write_safetensors(work / _PROJECTION_FILE, [zeros])
        _add_to_index(work, files)
    files.close()


def _add_to_index(work: Path, files: WeightFiles) -> None:
    """An index over all files, so that readers of one file or of an index find everything."""
    index = work / "model.safetensors.index.json"
    content: dict[str, Any] = {"metadata": {}, "weight_map": {}}
    content["weight_map"] = {name: entry.file.name for name, entry in files.entries.items()}
    content["weight_map"][_PROJECTION] = _PROJECTION_FILE
    single = work / "model.safetensors"
    if single.is_file():
        single.rename(work / "model-weights.safetensors")
        names = {"model.safetensors": "model-weights.safetensors"}
        content["weight_map"] = {name: names.get(file, file) for name, file in content["weight_map"].items()}
    index.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _edit_config(file: Path) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    content.pop("image_token_index", None)
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _image_settings(side_px: int) -> dict[str, Any]:
    side = {"height": side_px, "width": side_px}
    return {"size": {"shortest_edge": side_px}, "crop_size": side, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}


def _need() -> dict[str, str]:
    return {}


FORMAT = Format(variants=("bf16",), need=_need, write=_write, num_steps=len, not_checked=_NOT_RUN)
