"""``--to openvino``: a folder for openvino-genai's ``VLMPipeline`` (model_type ``llava``), one dtype a folder.

`VLMPipeline` reads how many visual tokens an image has from the encoder's output.
"""

from __future__ import annotations

import importlib
import json
from functools import partial
from pathlib import Path
from typing import Any

from fastvlm.export.checks import Check, answer
from fastvlm.export.job import ExportJob, Format, Written
from fastvlm.export.openvino_backend import OpenVinoFiles
from fastvlm.export.openvino_graphs import save
from fastvlm.export.openvino_models import BITS, MODELS, write_model
from fastvlm.export.packages import versions_of
from fastvlm.export.readme import checks_table, openvino_readme
from fastvlm.export.source import ExportSource
from fastvlm.hf.config import FastVlmConfig
from fastvlm.hf.loading import load_processor

_COPIES = 3  # of the weights while they are computed in float32: the files' and OpenVINO's own
_PACKAGES = ("openvino", "openvino_tokenizers", "nncf")


def _write(job: ExportJob) -> Written:
    (variant,) = job.variants
    source = job.source
    for name in MODELS:
        write_model(source, job.work, name, variant)
        job.step()
    _write_tokenizer(job.work, source)
    _write_settings(job.work, source)
    num_bytes = sum(file.stat().st_size for file in job.work.glob("*.bin"))
    checks, not_run = job.check_all({variant: _COPIES * num_bytes}, partial(_check, job))
    readme = openvino_readme(source, variant, checks_table(checks, not_run))
    return Written({"all": variant}, checks, readme, not_run)


def _check(job: ExportJob, variant: str) -> Check:
    return job.check(variant, partial(answer, OpenVinoFiles(job.work), source=job.source))


def _write_tokenizer(work: Path, source: ExportSource) -> None:
    ov: Any = importlib.import_module("openvino")
    tokenizers: Any = importlib.import_module("openvino_tokenizers")
    processor = load_processor(source.folder, FastVlmConfig.from_dict(dict(source.config)))
    pair = tokenizers.convert_tokenizer(processor.tokenizer, with_detokenizer=True)
    for model, name in zip(pair, ("tokenizer", "detokenizer"), strict=True):
        save(ov, model, work / f"openvino_{name}.xml", is_half=False)
    processor.tokenizer.save_pretrained(work)
    (work / "chat_template.jinja").write_text(source.checkpoint.processor.chat_template, encoding="utf-8")


def _write_settings(work: Path, source: ExportSource) -> None:
    side = source.side_px
    settings: dict[str, dict[str, Any]] = {
        "config.json": {"model_type": "llava", "hidden_size": source.width, "vision_config": {"patch_size": 64}},
        "preprocessor_config.json": {
            "crop_size": {"height": side, "width": side},
            "size": {"shortest_edge": side},
            "image_mean": [0.0, 0.0, 0.0],
            "image_std": [1.0, 1.0, 1.0],
        },
        "generation_config.json": {"eos_token_id": sorted(source.checkpoint.stop_token_ids), "do_sample": False},
    }
    for name, content in settings.items():
        (work / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _need() -> dict[str, str]:
    return versions_of(_PACKAGES, "openvino", "Exporting to OpenVINO")


def _num_steps(variants: tuple[str, ...]) -> int:
    return 4 * len(variants)


FORMAT = Format(variants=tuple(BITS), need=_need, write=_write, num_steps=_num_steps, is_single=True, default=("fp16",))
