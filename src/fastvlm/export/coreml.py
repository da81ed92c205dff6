"""``--to coreml``: packages for programs of one's own in ``fp16/`` and ``fp32/``, and the folder of Apple's app.

Core ML runs on Apple's systems alone. After writing, the packages are read back and computed operation by operation by
PyTorch (:mod:`fastvlm.export.coreml_interpreter`), which checks the conversion, not Core ML itself.
"""

from __future__ import annotations

import dataclasses
from functools import partial

from fastvlm.export.checks import Check, Computes, answer, overflow_warnings, source_backend
from fastvlm.export.coreml_app import ENCODER_PACKAGE, app_warnings, write_app_weights, write_tokenizer_files
from fastvlm.export.coreml_backend import DECODER, EMBEDDING, VISION, AppFiles, CoreMlFiles
from fastvlm.export.coreml_graphs import save_decoder, save_embedding, save_encoder, save_vision
from fastvlm.export.coreml_readme import coreml_readme
from fastvlm.export.graphs import VisionGraph
from fastvlm.export.job import ExportJob, Format, Written
from fastvlm.export.packages import versions_of
from fastvlm.export.readme import checks_table

_APP = "app"
_BYTES_PER_WEIGHT = 8  # while packages are computed: float32, and a constant's own values
_NOT_RUN = (
    "Core ML runs on Apple's systems alone; the packages were computed operation by operation by PyTorch instead, and "
    "were never run on a Mac"
)


def _write(job: ExportJob) -> Written:
    source = job.source
    vision = VisionGraph(source.checkpoint)
    warnings: tuple[str, ...] = ()
    if "fp16" in job.variants:
        warnings += overflow_warnings(vision, job.asked, f"fp16/{VISION}")
    if _APP in job.variants:
        warnings += app_warnings(source)
    for variant in job.variants:
        (_write_app if variant == _APP else _write_packages)(job, variant, vision)
    running_bytes = dict.fromkeys(job.variants, _BYTES_PER_WEIGHT * source.num_weights)
    checks, not_run = job.check_all(running_bytes, partial(_check, job, vision))
    write_tokenizer_files(source, job.work)
    readme = coreml_readme(source, job.variants, checks_table(checks, not_run))
    reasons = "; ".join(reason for reason in (not_run, _NOT_RUN) if reason)
    return Written({"all": job.variants[0]}, checks, readme, reasons, warnings)


def _write_packages(job: ExportJob, variant: str, vision: VisionGraph) -> None:
    folder, is_half = job.work / variant, variant == "fp16"
    folder.mkdir()
    save_vision(job.source, vision, folder / VISION, is_half=is_half)
    job.step()
    save_embedding(job.source, folder / EMBEDDING, is_half=is_half)
    save_decoder(job.source, folder / DECODER, is_half=is_half)
    job.step()


def _write_app(job: ExportJob, variant: str, vision: VisionGraph) -> None:
    folder = job.work / variant
    folder.mkdir()
    save_encoder(job.source, vision, folder / ENCODER_PACKAGE)
    job.step()
    write_app_weights(job.source, folder)
    job.step()


def _check(job: ExportJob, vision: VisionGraph, variant: str) -> Check:
    """The comparison; all but fp16 must be near the source."""
    folder = job.work / variant
    files: Computes = CoreMlFiles(folder)
    if variant == _APP:
        files = AppFiles(folder / ENCODER_PACKAGE, vision, source_backend(job.source, job.asked))
    check = job.check("fp32" if variant == _APP else variant, partial(answer, files, source=job.source))
    return dataclasses.replace(check, variant=variant)


def _need() -> dict[str, str]:
    return versions_of(("coremltools",), "coreml", "Exporting to Core ML")


def _num_steps(variants: tuple[str, ...]) -> int:
    return 3 * len(variants)


FORMAT = Format(variants=("fp16", "fp32", _APP), need=_need, write=_write, num_steps=_num_steps, default=("fp16", _APP))
