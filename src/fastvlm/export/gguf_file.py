"""``--to gguf``: the decoder as ``decoder-*.gguf`` for libllama; visual tokens come from this package.

llama.cpp has no FastViTHD, so there is no ``mmproj``: llama-server, Ollama and LM Studio cannot see images with it.
"""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path

from fastvlm.config import Bits
from fastvlm.export.checks import Check, answer
from fastvlm.export.gguf import Vocabulary, write_gguf
from fastvlm.export.gguf_backend import GgufFiles, is_runtime_installed
from fastvlm.export.job import ExportJob, Format, Written
from fastvlm.export.packages import versions_of
from fastvlm.export.readme import checks_table, gguf_readme
from fastvlm.formats.names import EMBEDDING

_BITS: dict[str, Bits] = {"bf16": 16, "q8": 8, "q4": 4}
_NOT_RUN = "" if is_runtime_installed() else "the package xllamacpp, which has llama.cpp's library, is not installed"


def _write(job: ExportJob) -> Written:
    checkpoint = job.source.checkpoint
    tokenizer = job.work / "tokenizer.json"
    checkpoint.processor.tokenizer.backend_tokenizer.save(str(tokenizer))
    vocabulary = Vocabulary.of_file(tokenizer, checkpoint.tensors[EMBEDDING].shape[0])
    files = {variant: job.work / f"decoder-{variant}.gguf" for variant in job.variants}
    for variant, file in files.items():
        write_gguf(checkpoint, _BITS[variant], file, vocabulary)
        job.step()
    source_bytes = job.source.num_weights * 4  # encoder and embedding, and less
    running_bytes = {variant: source_bytes + 2 * file.stat().st_size for variant, file in files.items()}
    checks, not_run = job.check_all(running_bytes, lambda variant: _check(job, variant, files[variant]))
    return Written({}, checks, gguf_readme(job.source, job.variants, checks_table(checks, not_run)), not_run)


def _check(job: ExportJob, variant: str, file: Path) -> Check:
    with closing(GgufFiles(job.source, file)) as files:
        return job.check(variant, partial(answer, files, source=job.source))


def _need() -> dict[str, str]:
    return versions_of(("gguf",), "gguf", "Writing a GGUF file")


def _num_steps(variants: tuple[str, ...]) -> int:
    return 2 * len(variants)


FORMAT = Format(variants=("bf16", "q8", "q4"), need=_need, write=_write, num_steps=_num_steps, not_checked=_NOT_RUN)
