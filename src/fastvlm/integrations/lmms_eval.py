"""A model for lmms-eval: ``lmms-eval --model fastvlm --model_args pretrained=apple/FastVLM-0.5B --tasks textvqa_val``.

It is a model of lmms-eval's kind "chat": a task gives messages, and the engine answers many at a time. Written for
lmms-eval 0.7.3 (``lmms_eval/api/model.py``, ``protocol.py``).
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

from fastvlm.config import Bits
from fastvlm.engine.types import MAX_STOP_STRINGS, SEEDS, Completion, SamplingParams
from fastvlm.errors import FastVlmError, MissingExtraError, PromptError, UsageError
from fastvlm.evaluation.run.runner import answer_all
from fastvlm.opening import open_engine

try:
    from lmms_eval.api.model import lmms
except ModuleNotFoundError as _error:
    raise MissingExtraError.of_import(_error, "lmms_eval", "lmms", "The plugin of lmms-eval") from _error

_MAX_NEW_TOKENS = 1024  # default of lmms-eval's own models


class FastVlm(lmms):  # type: ignore[misc]  # lmms-eval has no types
    """FastVLM as an lmms-eval model.

    Args:
        pretrained: "mini", a folder, or a Hub name.
        revision: branch, tag or commit of a Hub name.
        device: of the model; with several processes each takes the GPU of its LOCAL_RANK.
        dtype: as :func:`fastvlm.load` takes it, or "auto" for a fast one on the device.
        batch_size: replies generated at the same time.
        bits: of the decoder's weights on a CPU, 16, 8 or 4.
        image_fit, image_size: "pad", "crop" or "stretch"; a side in pixels. None for the checkpoint's.
        max_batch_size: passed by lmms-eval; has no effect.
    """

    is_simple = False  # chat: tasks give messages

    def __init__(
        self,
        pretrained: str = "mini",
        revision: str | None = None,
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int | str = 4,
        bits: int | str = 16,
        image_fit: str | None = None,
        image_size: int | str | None = None,
        max_batch_size: int | str | None = None,
    ) -> None:
        super().__init__()
        del max_batch_size
        self.engine = open_engine(
            pretrained,
            revision=revision,
            device=_own_device(device),
            dtype=dtype,
            bits=cast("Bits", int(bits)),
            image_size=None if image_size is None else int(image_size),
            image_fit=image_fit,
            num_slots=_number("batch_size", batch_size),
            admission_ratio=math.inf,  # start requests at once: no reply is streamed
        )
        self.device = self.engine.backend.device

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Replies, in the order of the requests: (context, doc_to_messages, generation kwargs, doc id, task, split).

        Raises:
            FastVlmError: a request that cannot be asked; lmms-eval has no way to record one.
        """
        replies = [""] * len(requests)

        def on_reply(number: int, reply: Completion | FastVlmError) -> None:
            if isinstance(reply, FastVlmError):
                raise reply
            replies[number] = reply.text
            self.cache_hook.add_partial("generate_until", requests[number].args, reply.text)

        answer_all(
            self.engine,
            range(len(requests)),
            lambda number: self._messages(requests[number].args),
            lambda number: sampling_params(requests[number].args[2]),
            on_reply,
        )
        return replies

    def _messages(self, arguments: tuple[Any, ...]) -> list[dict[str, Any]]:
        _, doc_to_messages, _, doc_id, task, split = arguments
        return engine_messages(doc_to_messages(self.task_dict[task][split][doc_id]))

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not supported: raises NotImplementedError."""
        raise NotImplementedError(f"fastvlm answers one round; {len(requests)} requests want several (multi_round).")

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not supported: raises NotImplementedError."""
        raise NotImplementedError(
            f"fastvlm answers with text; {len(requests)} requests want log-likelihoods. Take the task's variant with "
            "output_type generate_until."
        )


def engine_messages(messages: Sequence[Any]) -> list[dict[str, Any]]:
    """Convert lmms-eval's messages to the engine's.

    Raises:
        PromptError: sound or video in them.
    """
    return [{"role": turn["role"], "content": [_item(item) for item in turn["content"]]} for turn in messages]


def _item(item: Mapping[str, Any]) -> dict[str, Any]:
    if item["type"] == "text":
        return {"type": "text", "text": item["text"]}
    if item["type"] == "image":
        return {"type": "image", "image": item["url"]}
    raise PromptError(f"The task shows {item['type']}; FastVLM sees images and text only. Choose another task.")


def sampling_params(wanted: Mapping[str, Any]) -> SamplingParams:
    """Sampling parameters from a task's ``generation_kwargs``; greedy unless it sets a temperature."""
    if int(wanted.get("num_beams") or 1) > 1:
        warnings.warn(f"num_beams is {wanted['num_beams']}; fastvlm searches without beams.", UserWarning, stacklevel=2)
    temperature = float(wanted.get("temperature") or 0.0) if wanted.get("do_sample", True) else 0.0
    until = wanted.get("until") or ()
    stop = (until,) if isinstance(until, str) else tuple(until)
    return SamplingParams(
        max_new_tokens=int(wanted.get("max_new_tokens") or _MAX_NEW_TOKENS),
        temperature=temperature,
        top_p=float(wanted.get("top_p") or 1.0),
        stop=tuple(text for text in stop if text)[:MAX_STOP_STRINGS],
        seed=int(wanted.get("seed") or 0) % SEEDS,
    )


def _number(name: str, value: int | str) -> int:
    if not str(value).isdecimal() or int(value) < 1:
        raise UsageError(
            f"{name} is {value!r}; expected a whole number from 1, the replies generated at the same time."
        )
    return int(value)


def _own_device(device: str | None) -> str | None:
    """This process's GPU if lmms-eval runs several processes, else the requested device."""
    rank = os.environ.get("LOCAL_RANK")
    is_one_of_several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return f"cuda:{rank}" if device == "cuda" and is_one_of_several and rank is not None else device
