"""``--to openvino``: a folder for openvino-genai's ``VLMPipeline`` (model_type ``llava``), one dtype a folder.

The decoder keeps its cache inside; `VLMPipeline` reads how many visual tokens an image has from the encoder's output.
"""

from __future__ import annotations

import importlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fastvlm.export.checks import answer
from fastvlm.export.decoder import EmbeddingsDecoder, expanded_attention
from fastvlm.export.graphs import EmbeddingGraph, VisionGraph, quiet_export
from fastvlm.export.job import ExportJob, Format, Written
from fastvlm.export.openvino_backend import OpenVinoFiles
from fastvlm.export.openvino_graphs import EXAMPLE, compressed, save, stateful_decoder
from fastvlm.export.packages import versions_of
from fastvlm.export.readme import openvino_readme
from fastvlm.export.source import ExportSource
from fastvlm.hf.config import FastVlmConfig
from fastvlm.hf.loading import load_processor

_BITS = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4}
_PACKAGES = ("openvino", "openvino_tokenizers", "nncf")


def _write(job: ExportJob) -> Written:
    ov: Any = importlib.import_module("openvino")
    (variant,) = job.variants
    bits, source = _BITS[variant], job.source
    make = {"vision_embeddings": _vision, "text_embeddings": _embeddings, "language": _language}
    for name, graph in make.items():
        model = graph(ov, source)
        if bits < 16:  # 4 bits are for the decoder alone
            model = compressed(model, bits if name == "language" else 8)
        save(ov, model, job.work / f"openvino_{name}_model.xml", is_half=bits == 16)
        job.step()
    _write_tokenizer(ov, job.work, source)
    _write_settings(job.work, source)
    files = OpenVinoFiles(job.work)
    check = job.check(variant, partial(_answer, files, source))
    job.step()
    return Written({"all": variant}, (check,), openvino_readme(source, variant, check))


def _answer(files: OpenVinoFiles, source: ExportSource, sample: Any) -> Any:
    return answer(files, sample, source)


def _vision(ov: Any, source: ExportSource) -> Any:
    pixels = torch.zeros(2, 3, source.side_px, source.side_px)
    program = _program(VisionGraph(source.checkpoint), pixels, {0: torch.export.Dim("images")})
    return _named(ov.convert_model(program), "pixel_values", "last_hidden_state")


def _embeddings(ov: Any, source: ExportSource) -> Any:
    ids = torch.zeros(EXAMPLE[:2], dtype=torch.long)
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    return _named(ov.convert_model(_program(EmbeddingGraph(source.checkpoint), ids, dims)), "input", "inputs_embeds")


def _language(ov: Any, source: ExportSource) -> Any:
    batch, length, before = EXAMPLE
    inputs = {
        "inputs_embeds": torch.zeros(batch, length, source.width),
        "attention_mask": torch.ones(batch, before + length, dtype=torch.long),
        "position_ids": torch.arange(length)[None].expand(batch, -1) + before,
    }
    decoder = EmbeddingsDecoder(source.checkpoint, expanded_attention).eval()
    return stateful_decoder(ov, decoder, inputs, [[-1, -1, source.width], [-1, -1], [-1, -1]])


def _program(graph: torch.nn.Module, example: torch.Tensor, dims: dict[int, Any]) -> Any:
    with quiet_export(), torch.no_grad():
        return torch.export.export(graph.eval(), (example,), dynamic_shapes=(dims,))


def _named(graph: Any, inputs: str, outputs: str) -> Any:
    graph.inputs[0].get_tensor().set_names({inputs})
    graph.outputs[0].get_tensor().set_names({outputs})
    return graph


def _write_tokenizer(ov: Any, work: Path, source: ExportSource) -> None:
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


FORMAT = Format(
    variants=tuple(_BITS), need=_need, write=_write, num_steps=_num_steps, is_single=True, default=("fp16",)
)
