"""``--to executorch``: one ``.pte`` a dtype for ExecuTorch's multimodal runner, computed by XNNPACK on CPUs of phones.

Each file has the three methods and the constants that the runner reads (executorch 1.5); ``tokenizer.json`` goes along,
because the runner has a tokenizer of its own.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastvlm.errors import UsageError
from fastvlm.export.checks import NUM_TOKENS, Check, answer
from fastvlm.export.executorch_backend import METHODS, ExecuTorchFile
from fastvlm.export.executorch_graphs import CachedDecoder, RoundedEmbedding
from fastvlm.export.executorch_programs import exported, rounded, save_program
from fastvlm.export.executorch_readme import executorch_readme
from fastvlm.export.graphs import EmbeddingGraph, VisionGraph
from fastvlm.export.job import ExportJob, Format, Written
from fastvlm.export.packages import versions_of
from fastvlm.export.readme import checks_table
from fastvlm.export.source import ExportSource

_BITS = {"fp32": 32, "q8": 8, "q4": 4}  # of the weights of linear layers
_CONTEXT = 2048  # tokens, unless chosen or more than the decoder has positions for


def _write(job: ExportJob) -> Written:
    context = _context(job)
    files = {variant: job.work / f"model-{variant}.pte" for variant in job.variants}
    counts = {}
    for variant, file in files.items():
        programs = _programs(job.source, _BITS[variant], context)
        counts[variant] = save_program(programs, _constants(job.source, context), file)
        del programs  # its weights
        job.step()
    job.source.checkpoint.processor.tokenizer.backend_tokenizer.save(str(job.work / "tokenizer.json"))
    running_bytes = {variant: 2 * file.stat().st_size for variant, file in files.items()}  # XNNPACK packs weights
    checks, not_run = job.check_all(running_bytes, lambda variant: _check(job, variant, files[variant]))
    readme = executorch_readme(job.source, context, counts, checks_table(checks, not_run))
    return Written({"all": next(iter(job.variants))}, checks, readme, not_run)


def _check(job: ExportJob, variant: str, file: Path) -> Check:
    return job.check(variant, partial(answer, ExecuTorchFile(file), source=job.source))


def _context(job: ExportJob) -> int:
    """Tokens of the cache; raises UsageError if a check does not fit, or the decoder has fewer positions."""
    most = job.source.checkpoint.config.text_config.max_position_embeddings
    least = max((len(sample.token_ids) for sample in job.asked), default=job.source.tokens_per_image) + NUM_TOKENS
    context = min(_CONTEXT, most) if job.context is None else job.context
    if not least <= context <= most:
        raise UsageError(
            f"The context is {context} tokens; between {least} and {most} are possible: an image, a question and a "
            "short reply must fit, and the decoder has no more positions. Give another --context."
        )
    return context


def _programs(source: ExportSource, bits: int, context: int) -> dict[str, Any]:
    vision: nn.Module = VisionGraph(source.checkpoint)
    embedding: nn.Module = EmbeddingGraph(source.checkpoint)
    decoder: nn.Module = CachedDecoder(source.checkpoint, context)
    if bits < 32:
        # Of the encoder the linear layers alone, in 8 bits: its convolutions would need calibration.
        vision, embedding, decoder = rounded(vision, 8), RoundedEmbedding(source.checkpoint), rounded(decoder, bits)
    tokens, side = torch.export.Dim("tokens", min=1, max=context), source.side_px
    length = 3  # of the examples: 0 and 1 would be taken for constants
    ids, positions = torch.zeros(1, length, dtype=torch.long), torch.arange(length)
    embeds = torch.zeros(1, length, source.width)
    graphs = (
        exported(vision, (torch.zeros(1, 3, side, side),), ({},)),
        exported(embedding, (ids,), ({1: tokens},)),
        exported(decoder, (embeds, positions), ({1: tokens}, {0: tokens})),
    )
    return dict(zip(METHODS, graphs, strict=True))


def _constants(source: ExportSource, context: int) -> dict[str, Any]:
    """What the runner asks a file for; without ``get_max_seq_len`` it does not open."""
    return {
        "get_max_seq_len": context,
        "get_max_context_len": context,
        "get_vocab_size": source.checkpoint.config.text_config.vocab_size,
        "get_eos_ids": sorted(source.checkpoint.stop_token_ids),
        "enable_dynamic_shape": True,
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": False,
    }


def _need() -> dict[str, str]:
    return versions_of(("executorch", "torchao"), "executorch", "Exporting to ExecuTorch")


def _num_steps(variants: tuple[str, ...]) -> int:
    return 2 * len(variants)


FORMAT = Format(
    variants=tuple(_BITS), need=_need, write=_write, num_steps=_num_steps, default=("q8",), has_context=True
)
