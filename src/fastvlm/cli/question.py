"""A question with what holds for each of its answers."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastvlm.cli.choices import Sampling

if TYPE_CHECKING:
    from fastvlm.api import FastVLM, Images
    from fastvlm.engine.types import TokenEvent


@dataclass(frozen=True)
class Question:
    """What is asked, and how.

    Args:
        text: the question.
        system: system prompt, None for the model's own.
        sampling: how tokens are picked.
        schema: JSON schema that the answer follows, None for a free answer.
    """

    text: str
    system: str | None
    sampling: Sampling
    schema: dict[str, Any] | None

    def events(self, model: FastVLM, images: Images) -> Generator[TokenEvent]:
        """The answer about `images`, token by token; errors as of :meth:`fastvlm.FastVLM.events`."""
        from fastvlm.api import system_message, user_message

        messages = [*system_message(self.system), user_message(images, self.text)]
        return model.events(messages, response_format=self.schema, **self.sampling.settings())
