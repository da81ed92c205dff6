"""``fastvlm quantize``: a checkpoint with linear layers of 8 or 4 bits, in a new folder, all or nothing.

``formats/quantized_file.py`` describes the folder. Weights are read and rounded one layer at a time;
the rounded ones are in memory together.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastvlm.conversion.compressed import add_quantization_config, check_groups, round_symmetric, write_compressed
from fastvlm.conversion.new_folder import carry_files, planned_tensors, write_fast_vlm_files
from fastvlm.conversion.shards import PlannedTensor, write_safetensors
from fastvlm.errors import CheckpointError, UsageError
from fastvlm.formats.checksums import write_checksums
from fastvlm.formats.compressed_tensors import CompressedOptions
from fastvlm.formats.encoder_rounding import round_encoder_weight, rounded_in_encoder
from fastvlm.formats.folder import CheckpointFolder, inspect_folder
from fastvlm.formats.names import EMBEDDING, HEAD, linear_groups
from fastvlm.formats.places import checkpoint_path, new_folder
from fastvlm.formats.quantized_file import (
    REST_OF,
    QuantizationError,
    QuantizationOptions,
    QuantizedWeights,
    RoundedLinear,
    save_quantized,
)
from fastvlm.formats.quantized_metadata import QUANTIZED_FILE, REST_FILE
from fastvlm.formats.rounding import RoundedWeight, quantize_int4, quantize_int8
from fastvlm.hf.config import FastVlmConfig
from fastvlm.hf.loading import load_processor
from fastvlm.storage.whole_folders import whole_folder

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class QuantizationReport:
    """What :func:`quantize` did.

    Attributes:
        path: the folder written.
        options, error: how weights were rounded, and how far that is from what was given.
        quantized_bytes: of the rounded linear layers.
        rest_bytes: of all other tensors.
        source_bytes: of all tensors before.
    """

    path: Path
    options: QuantizationOptions
    error: QuantizationError
    quantized_bytes: int
    rest_bytes: int
    source_bytes: int


def quantize(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    options: QuantizationOptions,
    *,
    progress: Progress | None = None,
    **hub: Any,
) -> QuantizationReport:
    """Write the checkpoint `source`, its decoder (and encoder, if asked for) rounded, to the new folder `target`.

    The folder appears under its name when all of it is written, or not at all. `source` is only read.

    Args:
        source: as for :func:`fastvlm.load`.
        target: a folder that does not exist yet.
        options: how to round; :class:`CompressedOptions` for the format of compressed-tensors.
        progress: called with (linear layers rounded, all linear layers).
        hub: as for :func:`fastvlm.convert`.

    Raises:
        UsageError: a target that exists, or where nothing can be written.
        CheckpointError: the source is not a complete checkpoint, is quantized already, or its decoder is not a plain
            Qwen2.
    """
    target = new_folder(target)
    folder = inspect_folder(checkpoint_path(source, **hub))
    if folder.weights.quantized is not None:
        bits = folder.weights.quantized.options.bits
        raise UsageError(f"{folder.path} has {bits}-bit weights already. Name the checkpoint that it was made from.")
    config = FastVlmConfig.from_dict(dict(folder.config))
    processor, planned = load_processor(folder.path, config), _planned(folder, config)
    config.dtype = folder.dtype
    is_compressed = isinstance(options, CompressedOptions)
    if is_compressed:
        check_groups(folder, options)
    with whole_folder(target) as work:  # from here on: another run to the same place ends at once, not after its work
        quantized = round_linears(
            folder.tensor,
            config.text_config.num_hidden_layers,
            options,
            has_tied_head=HEAD not in folder.keys,
            encoder=rounded_in_encoder(tensor.name for tensor in planned),
            progress=progress,
        )
        rest = [tensor for tensor in planned if tensor.name not in quantized.shapes]
        write = write_compressed if is_compressed else _write_own
        write(work, quantized, rest, folder.dtype)
        write_fast_vlm_files(work, folder, config, processor, None)
        if is_compressed:
            add_quantization_config(work, options)
        carry_files(folder.path, work)
        write_checksums(work)
    folder.weights.close()
    rest_bytes, source_bytes = (sum(tensor.num_bytes for tensor in tensors) for tensors in (rest, planned))
    error = quantized.error
    assert error is not None  # noqa: S101  # it was measured here
    return QuantizationReport(target, options, error, quantized.num_bytes, rest_bytes, source_bytes)


def _write_own(work: Path, quantized: QuantizedWeights, rest: Sequence[PlannedTensor], _: torch.dtype) -> None:
    """The two files of ``formats/quantized_file.py``."""
    save_quantized(quantized, work / QUANTIZED_FILE)
    write_safetensors(work / REST_FILE, rest, metadata={REST_OF: quantized.digest})
    (work / QUANTIZED_FILE).chmod((work / REST_FILE).stat().st_mode)  # safetensors' files are for their owner alone


def _planned(folder: CheckpointFolder, config: FastVlmConfig) -> list[PlannedTensor]:
    """All tensors; raises where these are not what the network, and a plain Qwen2 decoder, has."""
    planned = planned_tensors(folder, config, do_fuse=False)
    names = {name for names in linear_groups(config.text_config.num_hidden_layers) for name in names} - {HEAD}
    if lost := sorted(names - folder.keys.keys()):
        raise CheckpointError(
            f"{folder.path} has no {lost[0]}: its decoder is not a plain Qwen2, the only kind that can be quantized."
        )
    return planned


def round_linears(
    tensor: Callable[[str], Tensor],
    num_layers: int,
    options: QuantizationOptions,
    *,
    has_tied_head: bool = False,
    encoder: Sequence[str] = (),
    progress: Progress | None = None,
) -> QuantizedWeights:
    """Round every linear layer of a decoder, and those of the encoder if `options` says so.

    Args:
        tensor: gives the weight (out, in) of a canonical name.
        num_layers: of the decoder.
        options: how to round.
        has_tied_head: True if the embedding table is the head.
        encoder: names of the encoder's weights to round.
        progress: called with (linear layers rounded, all linear layers).
    """
    is_compressed = isinstance(options, CompressedOptions)
    names = linear_groups(num_layers)[: -1 if is_compressed else None]  # the head stays as it is
    encoder = encoder if options.encoder_bits == 8 else ()
    if options.encoder_bits == 8 and not encoder:
        raise CheckpointError("The encoder has one stage and no attention: none of its layers can be rounded.")
    linears: list[RoundedLinear] = []
    errors: list[float] = []
    dtype = torch.float32
    for linear, weights in zip(names, _weights(tensor, names, has_tied_head=has_tied_head), strict=True):
        whole, dtype = torch.cat(weights), weights[0].dtype
        bits = options.head_bits if linear == (HEAD,) else options.bits
        rounded = (round_symmetric if is_compressed else _round)(whole, bits, options.group_size)
        linears.append(RoundedLinear(linear, tuple(len(weight) for weight in weights), rounded))
        errors.append(_relative_error(whole, rounded))
        if progress is not None:
            progress(len(linears), len(names) + len(encoder))
    for name in encoder:
        rounded = round_encoder_weight(tensor(name).cpu())
        linears.append(RoundedLinear((name,), (rounded.out_features,), rounded))
        if progress is not None:
            progress(len(linears), len(names) + len(encoder))
    error = QuantizationError(mean=sum(errors) / len(errors), largest=max(errors))
    return QuantizedWeights(tuple(linears), options, error, dtype, has_tied_head and not is_compressed)


def _weights(
    tensor: Callable[[str], Tensor], linears: list[tuple[str, ...]], *, has_tied_head: bool
) -> Iterator[list[Tensor]]:
    """The weights of each linear layer, read one layer at a time."""
    for names in linears:
        yield [tensor(EMBEDDING if has_tied_head and name == HEAD else name).detach().cpu() for name in names]


def _round(weight: Tensor, bits: int, group_size: int) -> RoundedWeight:
    """Round to `bits`; to 8 where the inputs are not a multiple of `group_size`."""
    if bits == 8 or weight.shape[1] % group_size:
        return quantize_int8(weight)
    return quantize_int4(weight, group_size)


def _relative_error(weight: Tensor, rounded: RoundedWeight) -> float:
    exact = weight.float()
    return float((rounded.dequantize().float() - exact).norm() / exact.norm().clamp_min(1e-30))
