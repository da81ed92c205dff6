"""Processor: images and text to `input_ids`, `attention_mask` (B, T) and `pixel_values` (I, 3, H, W).

Does not need transformers: :class:`fastvlm.FastVlmProcessor` adds its base class, tokenizers, batches and files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, ClassVar

from fastvlm.errors import ConfigError, ImageTokenMismatchError, PromptError
from fastvlm.processing.image_processor import ImageProcessor
from fastvlm.processing.prompt import (
    CHAT_TEMPLATES,
    IMAGE_TOKEN,
    SPECIAL_TOKENS,
    TRAINED_TEMPLATE,
    expand_image_tokens,
    is_batch,
    read_conversation,
    render,
)
from fastvlm.processing.replies import ReplyFinder
from fastvlm.processing.stored import add_image_token
from fastvlm.processing.tokenizer import TokenizerLike

PADDING_SIDES = ("left", "right")
STOP_TOKENS = ("<|im_end|>", "<|endoftext|>")
_IMAGE_KWARGS = frozenset({"image_size", "image_fit"})


class Processor:
    """Image processor and tokenizer in one, with the model's chat template.

    Args:
        image_processor: a :class:`FastVlmImageProcessor`, or what it is made of; None for one as published.
        tokenizer: a Qwen2-format tokenizer; gets ``<image>`` if it has none, and `padding_side`.
        patch_size: pixels a side of one visual token; the image processor's, and checked when given.
        vision_feature_select_strategy: always ``"full"`` (for transformers' ``LlavaProcessor``).
        chat_template: a Jinja template or a name of :data:`fastvlm.processing.prompt.CHAT_TEMPLATES`; None for the
            one the model was trained with.
        image_token: the placeholder.
        num_additional_image_tokens: always 0.
        padding_side: ``"left"``, so that batched replies begin where the prompts end; ``"right"`` for training.
        image_token_id: the id that the model's config has, to be checked.
    """

    text_settings: ClassVar[frozenset[str]] = frozenset()  # what the tokenizer takes in a call, beside the text
    _new_image_processor: ClassVar[type[ImageProcessor]] = ImageProcessor
    image_processor: ImageProcessor
    tokenizer: TokenizerLike
    chat_template: str

    def __init__(
        self,
        image_processor: ImageProcessor | None = None,
        tokenizer: TokenizerLike | None = None,
        patch_size: int | None = None,
        vision_feature_select_strategy: str | None = "full",
        chat_template: str | None = None,
        image_token: str = IMAGE_TOKEN,
        num_additional_image_tokens: int = 0,
        padding_side: str = "left",
        image_token_id: int | None = None,
    ) -> None:
        if tokenizer is None:
            raise ConfigError("A processor needs a tokenizer: pass tokenizer=..., or call from_pretrained.")
        image_processor = self._new_image_processor() if image_processor is None else image_processor
        if patch_size not in (None, image_processor.patch_size):
            raise ConfigError(f"patch_size is {patch_size}, but the image processor's is {image_processor.patch_size}.")
        if num_additional_image_tokens or vision_feature_select_strategy not in (None, "full"):
            raise ConfigError(
                f"Got num_additional_image_tokens={num_additional_image_tokens} and vision_feature_select_strategy="
                f"{vision_feature_select_strategy!r}; FastVLM has 0 and 'full'. Is this another model's processor?"
            )
        template = TRAINED_TEMPLATE if chat_template is None else CHAT_TEMPLATES.get(chat_template, chat_template)
        self._hold(image_processor, tokenizer, template)
        self.vision_feature_select_strategy = "full"
        self.num_additional_image_tokens = 0
        self.image_token = image_token
        self.image_token_id = add_image_token(tokenizer, image_token=image_token, expected_id=image_token_id)
        self.padding_side = padding_side

    def _hold(self, image_processor: ImageProcessor, tokenizer: TokenizerLike, chat_template: str) -> None:
        self.image_processor, self.tokenizer, self.chat_template = image_processor, tokenizer, chat_template

    def with_images(self, image_processor: ImageProcessor) -> Processor:
        """This processor with another image processor: the same tokenizer and template."""
        made = copy(self)
        made.image_processor = image_processor
        return made

    @property
    def patch_size(self) -> int:
        """Pixels a side of one visual token."""
        return int(self.image_processor.patch_size)

    @property
    def padding_side(self) -> str:
        """Padding side of batches; the tokenizer's own setting."""
        return str(self.tokenizer.padding_side)

    @padding_side.setter
    def padding_side(self, side: str) -> None:
        if side not in PADDING_SIDES:
            raise ConfigError(f"padding_side is {side!r}; known are {', '.join(PADDING_SIDES)}.")
        self.tokenizer.padding_side = side

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Token ids that end every reply: ``<|im_end|>``, ``<|endoftext|>`` and the tokenizer's own eos."""
        vocabulary = self.tokenizer.get_vocab()
        ids = [vocabulary[token] for token in STOP_TOKENS if token in vocabulary]
        ids += [self.tokenizer.eos_token_id] if self.tokenizer.eos_token_id is not None else []
        return tuple(dict.fromkeys(ids))

    # ------------------------------------------------------------------------------------------ images and text

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        return_tensors: str | None = None,
        text_kwargs: Mapping[str, Any] | None = None,
        images_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Model inputs from images, prompts, or both.

        Args:
            images: one source, a list of them (shared out to the prompts in order), or a list of lists, one a prompt.
            text: a prompt or a list of them, with one ``<image>`` an image.
            return_tensors: ``"pt"``, ``"np"`` or None (lists of ids, `pixel_values` as a torch tensor).
            text_kwargs, images_kwargs, kwargs: settings of the tokenizer (`padding`, `truncation`, `max_length`,
                `padding_side`, ...) and of the image processor (`image_size`, `image_fit`).

        Returns:
            `input_ids`, `attention_mask` (B, T) if there is text; `pixel_values` float32 (I, 3, H, W) if there are
            images, in the order of their placeholders.

        Raises:
            PromptError: neither text nor images, or a text that is not a string.
            ImageTokenMismatchError: in some prompt, places and images differ in number, or truncation cut an image.
            ImageError: an image that cannot be opened.
        """
        for_text, for_images = self._split_settings(kwargs, text_kwargs, images_kwargs)
        num_images = 0 if images is None else _flat_len(images)
        if not num_images and text is None:
            raise PromptError("Got neither text nor images; pass at least one of them.")
        data: dict[str, Any] = {}
        if text is not None:
            prompts = _prompts(text)
            counts = self._images_per_prompt(images, prompts)
            tokens_per_image = self.image_processor.num_visual_tokens(for_images.get("image_size"))
            expanded = [
                expand_image_tokens(prompt, [tokens_per_image] * count, image_token=self.image_token)
                for prompt, count in zip(prompts, counts, strict=True)
            ]
            data.update(self.tokenizer(expanded, return_tensors=return_tensors, **for_text))
            self._check_placeholders(data["input_ids"], [count * tokens_per_image for count in counts])
        if num_images:
            data.update(self.image_processor(images, return_tensors=return_tensors or "pt", **for_images))
        return self._batch(data)

    def _batch(self, data: dict[str, Any]) -> Any:
        """The return value of a call for `data`."""
        return data

    def decode(self, token_ids: Any, **settings: Any) -> str:
        """The text of one row of ids; `settings` are the tokenizer's, such as `skip_special_tokens`."""
        return self.tokenizer.decode(token_ids, **settings)

    def _images_per_prompt(self, images: Any, prompts: Sequence[str]) -> list[int]:
        """Number of images of each prompt, checked against the placeholders in its text."""
        places = [prompt.count(self.image_token) for prompt in prompts]
        if isinstance(images, (list, tuple)) and images and all(isinstance(part, (list, tuple)) for part in images):
            given = [_flat_len(part) for part in images]
        elif images is not None and len(prompts) > 1 and _flat_len(images) == sum(places):
            given = places  # a flat list is shared out in order
        else:
            given = [0 if images is None else _flat_len(images)] if len(prompts) == 1 else []
        if given == places or (images is None and not any(places)):
            return places
        raise ImageTokenMismatchError(_mismatch(places, given, images, self.image_token))

    def _check_placeholders(self, input_ids: Any, expected: Sequence[int]) -> None:
        """Raise if truncation has cut off placeholders."""
        for index, (row, count) in enumerate(zip(input_ids, expected, strict=True)):
            ids = row.tolist() if hasattr(row, "tolist") else list(row)
            found = ids.count(self.image_token_id)
            if found != count:
                raise ImageTokenMismatchError(
                    f"Prompt {index} has {found} {self.image_token} tokens after truncation, but its images need "
                    f"{count}. Raise max_length, shorten the text, or use a smaller image_size."
                )

    # ------------------------------------------------------------------------------------------ messages

    def apply_chat_template(
        self,
        conversation: Any,
        chat_template: str | None = None,
        tools: Any = None,
        documents: Any = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = False,
        return_tensors: str | None = None,
        return_dict: bool = False,
        return_assistant_tokens_mask: bool = False,
        processor_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Messages (one conversation, or a list of them) as text, as ids, or as everything the model takes.

        Args:
            conversation: messages; see :mod:`fastvlm.processing.prompt` for the items they may hold.
            chat_template: a Jinja template or a name: ``"default"`` (as trained) or ``"transformers"``.
            tools, documents: FastVLM knows neither; given to a template of your own only.
            add_generation_prompt: end with the header of the assistant's turn.
            continue_final_message: leave the last turn open.
            tokenize: return ids (or, with `return_dict`, a BatchFeature) instead of text.
            return_tensors, processor_kwargs, kwargs: as in :meth:`__call__`.
            return_dict: with `tokenize`, return `input_ids`, `attention_mask` and `pixel_values`.
            return_assistant_tokens_mask: with `return_dict`, `assistant_masks` (B, T): 1 on replies and their ends.

        Raises:
            PromptError: messages that cannot be rendered; tools for a template that ignores them.
            ImageTokenMismatchError: an image item without data when tokens and pixels are asked for.
        """
        named = self.chat_template if chat_template is None else chat_template
        template = CHAT_TEMPLATES.get(named, named)
        if (tools or documents) and template in CHAT_TEMPLATES.values():
            raise PromptError(
                "Got tools or documents; FastVLM was trained with neither, and its template ignores them."
            )
        if return_assistant_tokens_mask and not (tokenize and return_dict):
            raise PromptError("return_assistant_tokens_mask needs tokenize=True and return_dict=True.")
        options = {
            "chat_template": template,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            **{key: value for key, value in (("tools", tools), ("documents", documents)) if value},
        }
        has_several = is_batch(conversation)
        batch = conversation if has_several else [conversation]
        prompts, images = map(list, zip(*(self.prompt(messages, **options) for messages in batch), strict=True))
        if not tokenize:
            self._split_settings(kwargs, None, None)  # refuses unknown names
            return prompts if has_several else prompts[0]
        inputs = self(
            images=images if any(images) else None,
            text=prompts,
            return_tensors=return_tensors,
            **{**(processor_kwargs or {}), **kwargs},
        )
        if return_assistant_tokens_mask:
            inputs["assistant_masks"] = ReplyFinder(self, chat_template).masks(inputs["input_ids"], return_tensors)
        return inputs if return_dict else inputs["input_ids"]

    def prompt(
        self, messages: Any, *, chat_template: str | None = None, add_generation_prompt: bool = True, **options: Any
    ) -> tuple[str, list[Any]]:
        """One conversation as the prompt text, one ``<image>`` an image, and its image sources in order.

        Args:
            messages: as for :meth:`apply_chat_template`, not a batch.
            chat_template: a Jinja template or a name; None for the processor's own.
            add_generation_prompt, options: see :func:`fastvlm.processing.prompt.render`.

        Raises:
            PromptError: messages that cannot be rendered.
        """
        conversation = read_conversation(messages, special_tokens=self._marks())
        text = render(
            conversation,
            chat_template=self.chat_template if chat_template is None else chat_template,
            add_generation_prompt=add_generation_prompt,
            **options,
        )
        return text, conversation.images

    def token_ids(self, prompt: str, num_images: int) -> list[int]:
        """Ids of a prompt text, with N placeholders for each image at the image processor's own size.

        Raises:
            ImageTokenMismatchError: the text has not `num_images` places for images.
        """
        tokens_per_image = [self.image_processor.num_visual_tokens()] * num_images
        expanded = expand_image_tokens(prompt, tokens_per_image, image_token=self.image_token)
        return list(self.tokenizer([expanded])["input_ids"][0])

    def _marks(self) -> tuple[str, ...]:
        """Special tokens of the tokenizer, including added ones; no message may contain them."""
        added = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        marks = (*SPECIAL_TOKENS, self.image_token, *self.tokenizer.all_special_tokens, *added)
        return tuple(dict.fromkeys(mark for mark in marks if mark))

    def _split_settings(
        self, kwargs: Mapping[str, Any], text_kwargs: Mapping[str, Any] | None, images_kwargs: Mapping[str, Any] | None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """(tokenizer settings, image processor settings); unknown names are refused."""
        for_text, for_images = dict(text_kwargs or {}), dict(images_kwargs or {})
        for key, value in kwargs.items():
            if key in _IMAGE_KWARGS:
                for_images[key] = value
            elif key in self.text_settings:
                for_text[key] = value
            else:
                raise TypeError(
                    f"FastVlmProcessor got the unknown setting {key!r}. Known are image_fit, image_size, and the "
                    "tokenizer's (padding, padding_side, truncation, max_length, ...)."
                )
        return for_text, for_images


def _prompts(text: Any) -> list[str]:
    prompts = [text] if isinstance(text, str) else list(text) if isinstance(text, (list, tuple)) else []
    if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise PromptError(f"text is of type {type(text).__name__}; expected a string or a non-empty list of strings.")
    return prompts


def _flat_len(images: Any) -> int:
    """Number of images in an image or a nested list."""
    return sum(_flat_len(part) for part in images) if isinstance(images, (list, tuple)) else 1


def _mismatch(places: list[int], given: list[int], images: Any, image_token: str) -> str:
    """The error message for differing numbers of placeholders and images, with both numbers for each prompt."""
    total = 0 if images is None else _flat_len(images)
    if given and len(given) != len(places):
        return f"Got images for {len(given)} prompt(s) and {len(places)} prompt(s). Pass one list of images a prompt."
    if given:
        pairs = [(index, p, g) for index, (p, g) in enumerate(zip(places, given, strict=True)) if p != g]
        per_prompt = "; ".join(f"prompt {i} has {p} {image_token} and {g} image(s)" for i, p, g in pairs)
    else:
        per_prompt = (
            f"the prompts have {', '.join(str(p) for p in places)} {image_token}, {sum(places)} in all, and {total} "
            "image(s) are given"
        )
    return f"Places and images differ: {per_prompt}. Each image needs one {image_token}, each {image_token} an image."
