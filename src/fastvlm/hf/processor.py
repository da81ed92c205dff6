"""Processor for transformers: base class, tokenizers, batches and files.

:meth:`FastVlmProcessor.save_pretrained` writes the files of transformers' ``LlavaProcessor`` with a
``CLIPImageProcessor``, so plain transformers opens them; FastVLM's own keys are added.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2Config
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import MultiModalData, ProcessorMixin, TextKwargs

from fastvlm.errors import PromptError
from fastvlm.formats.apple_config import apple_image_settings
from fastvlm.formats.json_files import check_text_files
from fastvlm.hf.hub_settings import configured_image_token_id, hub_settings, model_config, refuse_missing_folder
from fastvlm.hf.image_processor import FastVlmImageProcessor
from fastvlm.processing.image_processor import ImageProcessor
from fastvlm.processing.processor import Processor
from fastvlm.processing.stored import stored_settings
from fastvlm.processing.tokenizer import TokenizerLike


class FastVlmProcessor(Processor, ProcessorMixin):  # type: ignore[misc]  # transformers is untyped here
    """Image processor and tokenizer in one, with the model's chat template.

    See :class:`fastvlm.processing.processor.Processor` for its arguments and calls.
    """

    image_processor: FastVlmImageProcessor
    tokenizer: PreTrainedTokenizerBase
    text_settings = frozenset(TextKwargs.__annotations__)
    _new_image_processor = FastVlmImageProcessor

    def _hold(self, image_processor: ImageProcessor, tokenizer: TokenizerLike, chat_template: str) -> None:
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    def _batch(self, data: dict[str, Any]) -> BatchFeature:
        return BatchFeature(data)

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> MultiModalData:
        """Visual tokens of images of the given sizes; vLLM asks for them."""
        if image_sizes is None:
            return MultiModalData()
        tokens_per_image = self.image_processor.num_visual_tokens(kwargs.get("image_size"))
        return MultiModalData(
            num_image_tokens=[tokens_per_image] * len(image_sizes), num_image_patches=[1] * len(image_sizes)
        )

    # ------------------------------------------------------------------------------------------ files

    def to_dict(self) -> dict[str, Any]:
        """``processor_config.json``: a LlavaProcessor's, with `padding_side` added."""
        return {
            "processor_class": "LlavaProcessor",
            "image_token": self.image_token,
            "num_additional_image_tokens": 0,
            "padding_side": self.padding_side,
            "patch_size": self.patch_size,
            "vision_feature_select_strategy": "full",
        }

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **_kwargs: Any) -> list[str]:
        """Write tokenizer, ``preprocessor_config.json``, ``processor_config.json`` and ``chat_template.jinja``."""
        if push_to_hub:
            raise PromptError("save_pretrained writes files only; call processor.push_to_hub(repo_id) to upload them.")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer._set_processor_class("LlavaProcessor")
        self.tokenizer.init_kwargs["padding_side"] = (
            self.padding_side
        )  # what its file says; plain transformers reads it
        written = [str(path) for path in self.tokenizer.save_pretrained(folder)]
        written += self.image_processor.save_pretrained(folder)
        template = folder / "chat_template.jinja"
        template.write_text(self.chat_template, encoding="utf-8")
        config = folder / "processor_config.json"
        self.to_json_file(config)
        return [*written, str(template), str(config)]

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *,
        image_size: Any = None,
        image_fit: str | None = None,
        padding_side: str | None = None,
        chat_template: str | None = None,
        image_token_id: int | None = None,
        **hub_kwargs: Any,
    ) -> FastVlmProcessor:
        """The processor of a folder or Hub repository in the ``fast_vlm`` format, or in Apple's.

        Args:
            pretrained_model_name_or_path: folder, or Hub id.
            image_size, image_fit, padding_side, chat_template: instead of what the files say. Files without our own
                keys give ``"pad"``, ``"left"`` and the template that the model was trained with.
            image_token_id: id of ``<image>`` to be checked; None takes it from ``config.json`` where there is one.
            hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`, `subfolder`. Remote
                code is never run.

        Raises:
            CheckpointError: a path to a folder that does not exist, a file beyond the bounds of a checkpoint's, a
                chat template that is broken.
            ConfigError: files of another model.
            OSError: no tokenizer or image processor there (transformers' own error).
        """
        refuse_missing_folder(pretrained_model_name_or_path)
        hub = hub_settings(hub_kwargs)
        if (folder := Path(pretrained_model_name_or_path, hub.get("subfolder", ""))).is_dir():
            check_text_files(folder)
        processor_dict, _ = cls.get_processor_dict(pretrained_model_name_or_path, **hub)
        settings = {"image_size": image_size, "image_fit": image_fit, "patch_size": processor_dict.get("patch_size")}
        given = {key: value for key, value in settings.items() if value is not None}
        config = model_config(pretrained_model_name_or_path, hub)
        if apple := apple_image_settings(config):
            image_processor = FastVlmImageProcessor(**{**apple, **given})
            hub["config"] = Qwen2Config()  # or AutoTokenizer reads config.json, whose model type it does not know
        else:
            image_processor = FastVlmImageProcessor.from_pretrained(pretrained_model_name_or_path, **given, **hub)
        tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, trust_remote_code=False, **hub)
        hub.pop("config", None)
        if image_token_id is None:
            image_token_id = configured_image_token_id(config)
        stored = stored_settings(
            processor_dict,
            chat_template=chat_template,
            padding_side=padding_side,
            source=pretrained_model_name_or_path,
        )
        return cls(image_processor, tokenizer, image_token_id=image_token_id, **stored)
