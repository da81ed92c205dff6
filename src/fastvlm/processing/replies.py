"""Finds the assistant's replies in token ids, for training and loss masks.

The search uses token ids: the assistant's header and ``<|im_end|>`` cannot come from a text, because the processor
refuses texts that contain them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from fastvlm.errors import ConfigError

if TYPE_CHECKING:
    from fastvlm.processing.processor import Processor

END_TOKEN = "<|im_end|>"  # what ends a turn: FastVLM's chat template


class ReplyFinder:
    """Finds the assistant's replies in token ids.

    Args:
        processor: its tokenizer made the ids.
        chat_template: the template that rendered them; None for the processor's own.

    Raises:
        ConfigError: a chat template whose replies cannot be found in ids, or do not follow the prompt's own tokens.
    """

    def __init__(self, processor: Processor, chat_template: str | None = None) -> None:
        self._chat_template = chat_template
        question = [{"role": "user", "content": "a"}]
        ids, prompt = (self._rendered(processor, question, add_generation_prompt=is_open) for is_open in (False, True))
        self.header = prompt[len(ids) :]
        end_id = processor.tokenizer.convert_tokens_to_ids(END_TOKEN)
        if end_id is None:
            raise ConfigError(f"The tokenizer has no {END_TOKEN}, which ends a reply.")
        self.end_id = end_id
        probe = self._rendered(processor, [*question, {"role": "assistant", "content": "b"}] * 2)
        reply = [*short_ids_of(processor, ["b"])[0], self.end_id]
        if prompt[: len(ids)] != ids or [probe[start:end] for start, end in self.spans(probe)] != [reply] * 2:
            raise ConfigError(
                "This processor's chat template does not begin the assistant's turn with the prompt's own tokens and "
                f"end it with {END_TOKEN}, so nothing can be supervised. Open it with chat_template='default'."
            )

    def _rendered(self, processor: Processor, messages: list[dict[str, str]], **options: Any) -> list[int]:
        text = processor.apply_chat_template(messages, chat_template=self._chat_template, **options)
        return short_ids_of(processor, [text])[0]

    def masks(self, rows: Any, return_tensors: str | None) -> Any:
        """Mask (B, T): 1 for tokens of a reply and its end, else 0; a truncated reply has only zeros."""
        from transformers.feature_extraction_utils import BatchFeature  # noqa: PLC0415  # training's, not a question's

        found = []
        for row in rows:
            marks = [0] * len(row)
            for start, end in self.spans(row.tolist() if hasattr(row, "tolist") else row):
                marks[start:end] = [1] * (end - start)
            found.append(marks)
        return BatchFeature({"masks": found}, tensor_type=return_tensors)["masks"]

    def spans(self, ids: Sequence[int]) -> Iterator[tuple[int, int]]:
        """(first, past the last) position of each reply with its end token, in order."""
        row, header = list(ids), self.header
        position = 0
        while header:
            try:
                position = row.index(header[0], position)
                if row[position : position + len(header)] != header:
                    position += 1
                    continue
                start = position + len(header)
                position = row.index(self.end_id, start) + 1
            except ValueError:
                return
            yield start, position


def short_ids_of(processor: Processor, texts: Sequence[str]) -> list[list[int]]:
    """Ids of texts, as the processor tokenizes them."""
    rows: list[list[int]] = processor.tokenizer(list(texts), padding=False)["input_ids"]
    return rows
