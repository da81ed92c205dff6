"""``--to gguf``: the decoder as ``decoder-*.gguf`` for libllama; visual tokens come from this package.

llama.cpp has no FastViTHD, so there is no ``mmproj``: llama-server, Ollama and LM Studio cannot see images with it.
"""

from __future__ import annotations

from fastvlm.config import Bits
from fastvlm.export.gguf import Vocabulary, write_gguf
from fastvlm.export.job import ExportJob, Format, Written
from fastvlm.export.packages import versions_of
from fastvlm.export.readme import gguf_readme
from fastvlm.formats.names import EMBEDDING

_BITS: dict[str, Bits] = {"bf16": 16, "q8": 8, "q4": 4}
_NOT_RUN = "no llama.cpp is part of this package; a test decodes with it where xllamacpp is installed"


def _write(job: ExportJob) -> Written:
    checkpoint = job.source.checkpoint
    tokenizer = job.work / "tokenizer.json"
    checkpoint.processor.tokenizer.backend_tokenizer.save(str(tokenizer))
    vocabulary = Vocabulary.of_file(tokenizer, checkpoint.tensors[EMBEDDING].shape[0])
    for variant in job.variants:
        write_gguf(checkpoint, _BITS[variant], job.work / f"decoder-{variant}.gguf", vocabulary)
        job.step()
    return Written({}, (), gguf_readme(job.source, job.variants), not_run=_NOT_RUN)


def _need() -> dict[str, str]:
    return versions_of(("gguf",), "gguf", "Writing a GGUF file")


FORMAT = Format(variants=("bf16", "q8", "q4"), need=_need, write=_write, num_steps=len, is_checked=False)
