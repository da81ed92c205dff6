"""Strict ``from_pretrained`` for every published layout, built on transformers' loading.

A ``fast_vlm`` folder is loaded by transformers directly. Other layouts are passed as a state dict of lazily read
tensors under their canonical names, so that no copy is made on disk or in memory.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers import initialization as init

from fastvlm.config_limits import check_dtype, dtype_name
from fastvlm.errors import CheckpointError, ConfigError, FastVlmError
from fastvlm.formats.differences import Differences
from fastvlm.formats.folder import CheckpointFolder, inspect_folder
from fastvlm.formats.mapped_files import MappedFiles
from fastvlm.formats.source import local_folder
from fastvlm.hf.config import FastVlmConfig

_HUB_ARGUMENTS = ("revision", "token", "cache_dir", "force_download", "local_files_only", "subfolder", "proxies")
# With any of these, transformers' own loading is asked for something that is not a plain checkpoint folder.
_PLAIN_TRANSFORMERS = ("state_dict", "gguf_file", "variant", "key_mapping")
_NOT_CONFIG = {"dtype", "torch_dtype"}


class CheckpointLoading(PreTrainedModel):  # type: ignore[misc]
    """`from_pretrained` that opens ``fast_vlm`` and Apple's ``llava_qwen2``, from folders and from the Hub."""

    config_class = FastVlmConfig
    mapped_files: MappedFiles | None = None  # that the weights may be mapped from

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """As transformers', for every published layout.

        Keys that are missing, left over or of another shape are an error. ``ignore_mismatched_sizes=True`` keeps its
        meaning, and ``output_loading_info=True`` returns the lists instead of raising.

        A folder of ``fastvlm quantize`` opens with its rounded weights as plain ones.

        Raises:
            CheckpointError: not a complete FastVLM checkpoint, not found, gated, or offline and not in the cache.
            ConfigError: a configuration that no FastVLM can have, or a dtype that is none.
        """
        name = pretrained_model_name_or_path
        if name is None or any(kwargs.get(key) is not None for key in _PLAIN_TRANSFORMERS):
            return super().from_pretrained(name, *model_args, **kwargs)
        path = local_folder(name, **{key: kwargs.pop(key) for key in _HUB_ARGUMENTS if key in kwargs})
        if (path / "adapter_config.json").is_file():
            return super().from_pretrained(path, *model_args, **kwargs)
        for key in ("dtype", "torch_dtype"):
            if kwargs.get(key) != "auto" and not isinstance(kwargs.get(key), dict):
                check_dtype("from_pretrained", kwargs.get(key))
        folder = inspect_folder(path)
        config = kwargs.pop("config", None)
        config = None if getattr(config, "is_provisional", False) else config
        config = _config_for(folder, kwargs) if config is None else config
        if isinstance(config, (str, os.PathLike)):
            config = FastVlmConfig.from_pretrained(config)
        if "quantization_config" not in folder.raw_config:
            cls._check_keys(folder, config, kwargs)
        model = cls._load(folder, config, model_args, kwargs)
        loaded = model[0] if isinstance(model, tuple) else model
        loaded.config.name_or_path = str(name)
        loaded.mapped_files = MappedFiles(folder.weights.files)
        return model

    @classmethod
    def _check_keys(cls, folder: CheckpointFolder, config: FastVlmConfig, kwargs: dict[str, Any]) -> None:
        if kwargs.get("output_loading_info"):
            return
        found = {_name_in(cls, key): shape for key, shape in folder.shapes.items()}
        found.pop(None, None)
        expected = expected_shapes(cls, config)
        differences = Differences.between(expected, {k: v for k, v in found.items() if k is not None})
        if kwargs.get("ignore_mismatched_sizes"):
            differences = Differences(differences.missing, differences.unexpected, ())
        if differences:
            raise CheckpointError(differences.report(str(folder.path)))

    @classmethod
    def _load(
        cls, folder: CheckpointFolder, config: FastVlmConfig, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        names = {key: _name_in(cls, key) for key in folder.keys}
        is_plain = not folder.added_rows and folder.weights.quantized is None
        if is_plain and all(names[key] == file_key for key, file_key in folder.keys.items()):
            return super().from_pretrained(folder.path, *args, config=config, **kwargs)
        tensors = {name: folder.lazy(key) for key, name in names.items() if name is not None}
        kwargs["dtype"] = _dtype_of(kwargs, folder)
        given = kwargs.pop("generation_config", None)
        model = super().from_pretrained(None, *args, config=config, state_dict=tensors, **kwargs)
        loaded = model[0] if isinstance(model, tuple) else model
        if loaded.can_generate():
            loaded.generation_config = given or generation_config_of(folder, config)
        return model


def _config_for(folder: CheckpointFolder, kwargs: dict[str, Any]) -> FastVlmConfig:
    """The folder's config, updated with those `kwargs` that are its keys (they are removed from `kwargs`)."""
    fields = set(FastVlmConfig.__dataclass_fields__) - _NOT_CONFIG
    overrides = {key: kwargs.pop(key) for key in list(kwargs) if key in fields}
    config, unused = FastVlmConfig.from_dict(folder.config, return_unused_kwargs=True, **overrides)
    kwargs.update(unused)
    return config  # type: ignore[no-any-return]


def _dtype_of(kwargs: dict[str, Any], folder: CheckpointFolder) -> torch.dtype:
    """The dtype to load: the requested one (removed from `kwargs`), or the folder's own."""
    older = kwargs.pop("torch_dtype", None)
    asked = kwargs.pop("dtype", older)
    if asked in (None, "auto"):
        return folder.dtype
    return getattr(torch, dtype_name(asked)) if isinstance(asked, str) else asked  # type: ignore[no-any-return]


def _name_in(owner: type[PreTrainedModel], key: str) -> str | None:
    """Canonical name `key` as `owner` has it: the model without head has no leading ``model.`` and no head."""
    if owner.can_generate():
        return key
    return key.removeprefix("model.") if key.startswith("model.") else None


def expected_shapes(owner: type[PreTrainedModel], config: FastVlmConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that a file for `owner` with `config` holds; nothing is allocated.

    Raises:
        ConfigError: no model can be built from `config`.
    """
    try:
        with torch.device("meta"), init.no_init_weights():
            model = owner(config)
    except FastVlmError:
        raise
    except Exception as error:
        raise ConfigError(
            f"No model can be built from this configuration: {str(error)[:300] or 'unknown'} ({type(error).__name__}). "
            "Compare its config.json with that of a published checkpoint."
        ) from error
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for tied in model.all_tied_weights_keys:
        shapes.pop(tied, None)
    return shapes


def generation_config_of(folder: CheckpointFolder, config: FastVlmConfig) -> GenerationConfig:
    """The generation config of `folder`.

    Apple's file is not taken: it samples without a temperature and names no end token, so replies would not end.
    """
    if folder.layout == "fast_vlm" and (folder.path / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(folder.path)
    stops = list(config.stop_token_ids)
    pad = config.text_config.pad_token_id
    return GenerationConfig(
        do_sample=False,
        bos_token_id=config.text_config.bos_token_id,
        eos_token_id=stops,
        pad_token_id=stops[-1] if pad is None and stops else pad,
    )
