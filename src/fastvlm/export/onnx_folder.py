"""``--to onnx``: a folder for transformers.js, and for onnxruntime anywhere.

transformers.js (4.3) reads model_type ``llava_qwen2``, three sessions in ``onnx/``, the chat template in
``tokenizer_config.json``, and settings of its own under ``transformers.js_config``.
"""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from fastvlm.backends.onnx import DECODER, EMBED, SESSIONS, SUFFIXES, VISION, OnnxBackend
from fastvlm.errors import CheckpointError
from fastvlm.export.checks import Check, answer, overflow_warnings
from fastvlm.export.graphs import VisionGraph
from fastvlm.export.job import ExportJob, Format, Written
from fastvlm.export.onnx_graphs import need_onnx, onnx_graph, save_onnx
from fastvlm.export.onnx_variants import rounded_to_4_bits, rounded_to_8_bits
from fastvlm.export.page_files import write_page
from fastvlm.export.readme import checks_table, onnx_readme
from fastvlm.export.source import ExportSource
from fastvlm.processing.prompt import IMAGE_TOKEN

# Of each variant: whether it is made of the float16 graph, and how its weights are rounded.
_MADE_OF = {"fp32": (False, 16), "q8": (False, 8), "q4": (False, 4), "fp16": (True, 16), "q4f16": (True, 4)}
# Device -> session -> variants in the order of preference. wasm has no float16 arithmetic; 4 bits do little for the
# encoder's convolutions.
_PREFERRED: dict[str, dict[str, tuple[str, ...]]] = {
    "cpu": {VISION: ("q8", "fp32"), EMBED: ("q8", "fp32"), DECODER: ("q8", "q4", "fp32")},
    "wasm": {VISION: ("q8", "fp32"), EMBED: ("q8", "q4"), DECODER: ("q8", "q4")},
    "webgpu": {VISION: ("fp16", "fp32"), EMBED: ("fp16", "q4f16", "fp32"), DECODER: ("q4f16", "q4", "fp16")},
}
_LANCZOS = 1  # PIL's number; transformers.js reduces large images with aliasing by all others


def _write(job: ExportJob) -> Written:
    folder = job.work / "onnx"
    folder.mkdir()
    warnings = _warnings(job)
    pieces: dict[str, int] = {}
    for name in SESSIONS:
        for is_half in (False, True):
            pieces |= _write_session(job, folder, name, is_half=is_half)
    devices = {device: _defaults(wanted, job.variants) for device, wanted in _PREFERRED.items()}
    _write_files(job.work, job.source, devices, pieces)
    if job.has_page:
        write_page(job.work, job.page_library)
    running_bytes = {variant: _running_bytes(folder, variant) for variant in job.variants}
    checks, not_run = job.check_all(running_bytes, partial(_check, job))
    readme = onnx_readme(job.source, job.variants, checks_table(checks, not_run), has_page=job.has_page)
    return Written(devices["cpu"], checks, readme, not_run, warnings)


def _write_session(job: ExportJob, folder: Path, name: str, *, is_half: bool) -> dict[str, int]:
    """Write the variants of session `name` that are made of the float16 or the float32 graph; data files of each."""
    bits_of = {
        variant: bits for variant, (half, bits) in _MADE_OF.items() if half == is_half and variant in job.variants
    }
    if not bits_of:
        return {}
    exported = onnx_graph(name, job.source, is_half=is_half)
    pieces = {}
    for variant, bits in bits_of.items():
        file = f"{name}{SUFFIXES[variant]}.onnx"
        pieces[file] = save_onnx(_rounded(name, exported, bits), folder, file)
        job.step()
    return pieces


def _rounded(name: str, exported: Any, bits: int) -> Any:
    """A copy of the graph of session `name` with weights in `bits`."""
    if bits == 8:
        return rounded_to_8_bits(name, exported)
    return rounded_to_4_bits(exported) if bits == 4 else exported.clone()


def _running_bytes(folder: Path, variant: str) -> int:
    """Memory that ONNX Runtime takes for a variant on a CPU, about: weights, a copy of rounded ones, activations.

    It computes float16 in float32.
    """
    files = [file for name in SESSIONS for file in folder.glob(f"{name}{SUFFIXES[variant]}.onnx*")]
    return sum(file.stat().st_size for file in files) * (4 if _MADE_OF[variant][0] else 2)


def _check(job: ExportJob, variant: str) -> Check:
    config = job.source.checkpoint.config.text_config
    variants = dict.fromkeys(SESSIONS, variant)
    # Rounded weights are a fraction, and are computed by other kernels if they are not packed.
    backend = OnnxBackend(job.work, config, variants, num_slots=1, packs_weights=_MADE_OF[variant][1] < 16)
    return job.check(variant, partial(answer, backend, source=job.source))


def _warnings(job: ExportJob) -> tuple[str, ...]:
    """A warning if the encoder's numbers come near the end of float16."""
    if not any(_MADE_OF[variant][0] for variant in job.variants):
        return ()
    return overflow_warnings(VisionGraph(job.source.checkpoint), job.asked, f"fp16 and q4f16 of {VISION}")


def _defaults(wanted: dict[str, tuple[str, ...]], written: tuple[str, ...]) -> dict[str, str]:
    """Session -> the first of the wanted variants that was written, else any."""
    return {
        name: next((variant for variant in variants if variant in written), written[0])
        for name, variants in wanted.items()
    }


def _write_files(work: Path, source: ExportSource, devices: dict[str, dict[str, str]], pieces: dict[str, int]) -> None:
    checkpoint = source.checkpoint
    _write_json(work / "config.json", _config(source, devices, pieces))
    ends = sorted(checkpoint.stop_token_ids)
    pad = checkpoint.config.text_config.pad_token_id
    generation = {"eos_token_id": ends, "pad_token_id": ends[0] if pad is None else pad, "do_sample": False}
    _write_json(work / "generation_config.json", generation)
    _write_json(work / "preprocessor_config.json", _image_settings(source.side_px))
    processor = {
        "processor_class": "LlavaProcessor",
        "image_token": IMAGE_TOKEN,
        "patch_size": source.side_px,  # one placeholder an image: the template has repeated it already
        "num_additional_image_tokens": 0,
    }
    _write_json(work / "processor_config.json", processor)
    write_tokenizer(work, source)


def _config(source: ExportSource, devices: dict[str, dict[str, str]], pieces: dict[str, int]) -> dict[str, Any]:
    text = source.checkpoint.config.text_config
    external = {file: number for file, number in pieces.items() if number}
    settings: dict[str, Any] = {
        "dtype": devices["cpu"],
        "device_config": {device: {"dtype": dtypes} for device, dtypes in devices.items() if device != "cpu"},
    }
    if external:
        settings["use_external_data_format"] = external
    return {
        "architectures": ["LlavaQwen2ForCausalLM"],
        "model_type": "llava_qwen2",
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_hidden_layers": text.num_hidden_layers,
        "num_attention_heads": text.num_attention_heads,
        "num_key_value_heads": text.num_key_value_heads,
        "max_position_embeddings": text.max_position_embeddings,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_theta": text.rope_theta,
        "vocab_size": text.vocab_size,
        "image_token_index": source.checkpoint.config.image_token_index,
        "eos_token_id": sorted(source.checkpoint.stop_token_ids),
        "transformers.js_config": settings,
    }


def _image_settings(side_px: int) -> dict[str, Any]:
    """Centered black padding to a square, pixels in [0, 1]."""
    return {
        "image_processor_type": "VLMImageProcessor",
        "processor_class": "LlavaProcessor",
        "image_size": side_px,
        "background_color": [0, 0, 0],
        "do_resize": True,
        "resample": _LANCZOS,
        "do_pad": True,
        "pad_size": {"width": side_px, "height": side_px},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": False,
        "do_convert_rgb": True,
    }


def write_tokenizer(work: Path, source: ExportSource) -> None:
    """``tokenizer.json`` with the placeholder, and its settings with a template that repeats it N times an image."""
    processor = source.checkpoint.processor
    processor.tokenizer.backend_tokenizer.save(str(work / "tokenizer.json"))
    settings = json.loads((source.folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["tokenizer_class"], settings["padding_side"] = "Qwen2Tokenizer", "left"
    settings["chat_template"] = expanded_template(processor.chat_template, source.tokens_per_image)
    _write_json(work / "tokenizer_config.json", settings)
    for name in ("vocab.json", "merges.txt"):
        if (source.folder / name).is_file():
            shutil.copyfile(source.folder / name, work / name)


def expanded_template(template: str, tokens_per_image: int) -> str:
    """`template` with each ``<image>`` repeated, because transformers.js does so for the first image alone.

    Raises:
        CheckpointError: a template that does not write ``<image>`` as a literal.
    """
    once, often = f"'{IMAGE_TOKEN}'", f"'{IMAGE_TOKEN * tokens_per_image}'"
    if once not in template:
        raise CheckpointError(
            f"The chat template does not write {once}, so its images cannot be given {tokens_per_image} places each. "
            "Take the template that the model was trained with: remove chat_template.jinja from a copy of the folder."
        )
    text = "{{- message['content'] -}}"
    replaced = f"{{{{- message['content'] | replace({once}, {often}) -}}}}"
    return template.replace(once, often).replace(text, replaced)


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _num_steps(variants: tuple[str, ...]) -> int:
    return (len(SESSIONS) + 1) * len(variants)


FORMAT = Format(variants=("fp32", "fp16", "q8", "q4", "q4f16"), need=need_onnx, write=_write, num_steps=_num_steps)
