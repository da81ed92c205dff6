"""Merges a LoRA adapter in peft's format into a loaded model; unchanged weights are shared.

The adapter is checked against the model before anything is computed: its kind, its base model, the layers it changes,
ranks and shapes. peft does the merge.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastvlm.errors import CheckpointError, MissingExtraError, UsageError
from fastvlm.formats.checkpoint import Checkpoint
from fastvlm.formats.json_files import read_json
from fastvlm.formats.places import ADAPTER_CONFIG as _CONFIG
from fastvlm.formats.places import ADAPTER_WEIGHTS as _WEIGHTS
from fastvlm.formats.places import adapter_folder
from fastvlm.formats.quantized_metadata import REST_FILE
from fastvlm.formats.safetensors_header import read_header
from fastvlm.formats.weight_sets import one_weight_set
from fastvlm.hf.base_digest import DIGEST_FILE, BaseDigest
from fastvlm.hf.loading import load
from fastvlm.hf.modeling import FastVlmForConditionalGeneration
from fastvlm.hf.processor import FastVlmProcessor

_PICKLED = "adapter_model.bin"  # peft's older format
_PREFIX = "base_model.model."  # peft's name of the model inside
_TABLES = ("embed_tokens", "lm_head")
_HUB_FOLDER = "models--"  # of huggingface_hub's cache: models--owner--repository/snapshots/commit


@dataclass(frozen=True)
class _Adapter:
    """Content of an adapter's folder.

    Args:
        folder: its path.
        config: content of adapter_config.json.
        shapes: name in the file, without peft's prefix -> shape.
    """

    folder: Path
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def rank(self) -> int:
        """Of all matrices that `rank_pattern` does not name."""
        return int(self.config["r"])

    @property
    def pairs(self) -> dict[str, tuple[tuple[int, ...] | None, tuple[int, ...] | None]]:
        """Changed module -> shapes of its A (r, in, ...) and B (out, r, ...); None for one that is not there."""
        modules = {_module(name) for name in self.shapes if ".lora_A." in name or ".lora_B." in name}
        return {
            module: (self.shapes.get(f"{module}.lora_A.weight"), self.shapes.get(f"{module}.lora_B.weight"))
            for module in sorted(modules)
        }

    @property
    def plain(self) -> dict[str, tuple[int, ...]]:
        """Whole parameters that the adapter brings (`modules_to_save`, `bias`) -> shape."""
        return {name.replace(".base_layer.", "."): size for name, size in self.shapes.items() if ".lora_" not in name}


def merge_adapter(model: FastVlmForConditionalGeneration, folder: str | Path) -> FastVlmForConditionalGeneration:
    """A copy of `model` with the adapter in `folder` merged; `model` is not modified.

    Args:
        model: a :class:`fastvlm.FastVlmForConditionalGeneration` with plain weights.
        folder: of a LoRA adapter as peft writes it: adapter_config.json and adapter_model.safetensors.

    Returns:
        A model in eval mode. It shares the parameters that the adapter does not change; changed ones are weight +
            scaling *
        B A, in the dtype of the weight.

    Warns if the adapter's folder has no digest of the weights that it was made for.

    Raises:
        CheckpointError: no adapter, not a LoRA adapter, or one for another model.
        MissingExtraError: peft is not installed.
    """
    return _merge(model, _read(adapter_folder(folder)))


def open_with_adapters(
    folder: Path, adapters: Sequence[str | Path], device: torch.device | None = None, dtype: torch.dtype | None = None
) -> tuple[Checkpoint, list[Checkpoint]]:
    """The checkpoint in `folder`, and one for each of `adapters` with that adapter merged.

    peft merges on transformers' model. Unchanged tensors are shared with the base.

    Raises:
        UsageError: a checkpoint that is stored in 8 or 4 bits.
        CheckpointError, MissingExtraError: as :func:`merge_adapter`.
    """
    if (folder / REST_FILE).is_file():
        raise UsageError(
            "The checkpoint is stored in 8 or 4 bits, and an adapter can be merged into plain weights only. Take the "
            "checkpoint that it was made from; --bits rounds the merged weights."
        )
    model, processor = load(folder, device=device, dtype=dtype)
    base = model.to_checkpoint(processor)
    return base, [_adapted(base, model, processor, _read(adapter_folder(where))) for where in adapters]


def _adapted(
    base: Checkpoint, model: FastVlmForConditionalGeneration, processor: FastVlmProcessor, adapter: _Adapter
) -> Checkpoint:
    merged: Checkpoint = _merge(model, adapter).to_checkpoint(processor)
    modules = [*adapter.pairs, *(_module(name) for name in adapter.shapes if ".lora_embedding_" in name)]
    names = {*adapter.plain, *(f"{module}.{kind}" for module in modules for kind in ("weight", "bias"))}
    return base.with_tensors({name: merged.tensors[name] for name in names if name in merged.tensors})


def _merge(model: FastVlmForConditionalGeneration, adapter: _Adapter) -> FastVlmForConditionalGeneration:
    _check_base(adapter, model)
    _check_places(adapter, model)
    return _merged(adapter, sharing_copy(model, own=frozenset(adapter.plain)))


def sharing_copy(
    model: FastVlmForConditionalGeneration, own: frozenset[str] = frozenset()
) -> FastVlmForConditionalGeneration:
    """A second model on the memory of `model`'s parameters and buffers; those named in `own` are copied.

    Its parameters are objects of their own: giving one of them another tensor leaves `model` as it is.
    """
    memo: dict[int, Any] = {id(b): b.clone() if name in own else b for name, b in model.named_buffers()}
    for name, parameter in model.named_parameters():
        data = parameter.detach()
        memo[id(parameter)] = nn.Parameter(data.clone() if name in own else data, requires_grad=False)
    return copy.deepcopy(model, memo)


# ---------------------------------------------------------------------------------------------- reading


def _read(folder: Path) -> _Adapter:
    config = _config(folder / _CONFIG)
    one_weight_set(folder, _WEIGHTS, _PICKLED)  # warns of a second set, which is not read
    shapes = {name.removeprefix(_PREFIX): entry.shape for name, entry in read_header(folder / _WEIGHTS).items()}
    return _Adapter(folder, config, shapes)


def _config(file: Path) -> dict[str, Any]:
    config = read_json(file)
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise CheckpointError(f"{file} has peft_type {kind!r}; only adapters of the type 'LORA' can be merged here.")
    rank = config.get("r")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise CheckpointError(f"{file} has r {rank!r}; expected the rank of the matrices, 1 or more.")
    return config  # type: ignore[no-any-return]


def _module(name: str) -> str:
    """The module that a LoRA tensor of that name changes."""
    return name.partition(".lora_")[0]


# ---------------------------------------------------------------------------------------------- checking


def _check_base(adapter: _Adapter, model: FastVlmForConditionalGeneration) -> None:
    """Refuse an adapter that was made for other weights, or where that is not known, for a model of another name."""
    digest = BaseDigest.read(adapter.folder / DIGEST_FILE)
    is_same = None if digest is None else digest.agrees_with(model)
    made_for, here = (_plain(name) for name in (adapter.config.get("base_model_name_or_path"), _name(model)))
    if is_same is False:
        raise CheckpointError(
            f"{adapter.folder} was made for other weights than those of {here!r}: its {DIGEST_FILE} (of "
            f"{made_for!r}) does not match. Open that base; without the file only name and shapes are compared."
        )
    if is_same:
        return
    if made_for and here and made_for.rpartition("/")[2].lower() != here.rpartition("/")[2].lower():
        raise CheckpointError(
            f"{adapter.folder} was made for the model {made_for!r}, and this one is {here!r}. If they are the same, "
            f"let base_model_name_or_path in its {_CONFIG} be null."
        )
    warnings.warn(
        f"{adapter.folder} has no digest of its base's weights that can be compared (a {DIGEST_FILE}, as fastvlm train "
        f"writes it): it is taken for {here!r} by name and shapes alone.",
        stacklevel=3,
    )


def _name(model: FastVlmForConditionalGeneration) -> str | None:
    return getattr(model.config, "name_or_path", None)


def _plain(name: str | None) -> str | None:
    """A Hub name out of a path into the Hub's cache; everything else as it is."""
    parts = str(name or "").replace("\\", "/").rstrip("/").split("/")
    cached = [part.removeprefix(_HUB_FOLDER).replace("--", "/") for part in parts if part.startswith(_HUB_FOLDER)]
    return cached[-1] if cached else "/".join(parts) or None


def _check_places(adapter: _Adapter, model: FastVlmForConditionalGeneration) -> None:
    """Every matrix and every whole tensor of the adapter has its place in the model."""
    if not adapter.pairs and not adapter.plain:
        raise CheckpointError(f"{adapter.folder / _WEIGHTS} is empty; expected matrices named *.lora_A and *.lora_B.")
    modules = dict(model.named_modules())
    tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    for name, (first, second) in adapter.pairs.items():
        weight = getattr(modules.get(name), "weight", None)
        if not isinstance(weight, torch.Tensor):
            raise _misfit(adapter, f"changes {name!r}, which this model does not have")
        _check_pair(adapter, name, tuple(weight.shape), first, second)
    for name, shape in adapter.plain.items():
        there = tuple(tensors[name].shape) if name in tensors else None
        if there != shape:
            where = "does not have" if there is None else f"has as {list(there)}"
            raise _misfit(adapter, f"brings {name!r} of shape {list(shape)}, which this model {where}")
    changed = [
        *adapter.pairs,
        *adapter.plain,
        *(_module(name) for name in adapter.shapes if ".lora_embedding_" in name),
    ]
    if model.config.tie_word_embeddings and any(table in name for name in changed for table in _TABLES):
        raise CheckpointError(
            f"{adapter.folder} changes the embedding table or the head, which are one in this model. Train the adapter "
            "without embed_tokens and lm_head."
        )


def _check_pair(
    adapter: _Adapter,
    name: str,
    weight: tuple[int, ...],
    first: tuple[int, ...] | None,
    second: tuple[int, ...] | None,
) -> None:
    if first is None or second is None:
        raise CheckpointError(
            f"{adapter.folder / _WEIGHTS} has only one of the two matrices of {name!r}. Fetch the file again."
        )
    rank = first[0]
    if second[1] != rank or (not adapter.config.get("rank_pattern") and rank != adapter.rank):
        raise CheckpointError(
            f"{adapter.folder}: the matrices of {name!r} have the ranks {rank} and {second[1]}, and {_CONFIG} says "
            f"{adapter.rank}. File and configuration are of different adapters."
        )
    if (second[0], first[1]) != weight[:2]:
        raise _misfit(
            adapter, f"has matrices for a weight of {[second[0], first[1]]} in {name!r}, which here is {list(weight)}"
        )


def _misfit(adapter: _Adapter, what: str) -> CheckpointError:
    made_for = adapter.config.get("base_model_name_or_path")
    return CheckpointError(f"{adapter.folder} {what}. It was made for another model ({made_for!r}).")


# ---------------------------------------------------------------------------------------------- merging


def _merged(adapter: _Adapter, model: FastVlmForConditionalGeneration) -> FastVlmForConditionalGeneration:
    """`model` with the adapter merged; a changed weight is a new tensor."""
    try:
        from peft import PeftModel  # noqa: PLC0415 - optional
        from peft.tuners.lora import LoraLayer  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("peft", "train", "A LoRA adapter") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of matrices that are missing, which is an error here
            wrapped = PeftModel.from_pretrained(model, str(adapter.folder), torch_device=str(model.device))
        targets = {
            name.removeprefix(_PREFIX) for name, module in wrapped.named_modules() if isinstance(module, LoraLayer)
        }
        missing = sorted(targets - {_module(name) for name in adapter.shapes if ".lora_" in name})
        if missing:
            raise CheckpointError(
                f"{adapter.folder / _WEIGHTS} has no matrices for {missing[0]!r}, which its {_CONFIG} says it changes "
                f"({len(missing)} such places). Fetch the file again."
            )
        # `safe_merge` makes new tensors, so that shared memory is left as it is, and refuses what is not finite.
        merged: FastVlmForConditionalGeneration = wrapped.merge_and_unload(safe_merge=True).eval()
        return merged
    except CheckpointError:
        raise
    except (RuntimeError, ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise CheckpointError(f"{adapter.folder} cannot be merged: {error}") from error
