"""POST /v1/chat/completions and /v1/completions: read, prepare, generate, tell. The story of a request is `_answer`."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastvlm.engine.prompt_inputs import PreparedPrompt
from fastvlm.engine.types import Completion, SamplingParams, TokenEvent
from fastvlm.errors import PromptError
from fastvlm.processing.prompt import IMAGE_TOKEN
from fastvlm.server.api_errors import invalid, no_such_model
from fastvlm.server.event_stream import Outlet
from fastvlm.server.formats import ChatFormat, Format, TextFormat
from fastvlm.server.generation import Choice, Totals, replies
from fastvlm.server.guides import Guides
from fastvlm.server.messages import check_texts, read_messages
from fastvlm.server.metrics import Metrics
from fastvlm.server.params import choice_params, read_params, reply_limit
from fastvlm.server.reading import parse
from fastvlm.server.remote_images import RemoteImages
from fastvlm.server.replicas import Replica, Replicas
from fastvlm.server.schemas import ChatRequest, CompletionRequest, ImagePart, Message
from fastvlm.server.settings import ServeSettings
from fastvlm.server.text_limits import TextLimits
from fastvlm.server.token_names import TokenNames

__all__ = ["Kitchen", "answer_chat", "answer_completion"]

Given = TypeVar("Given")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Kitchen:
    """What answering needs, once the model is open; `models` has the engines of each name that clients may ask for."""

    settings: ServeSettings
    models: Mapping[str, Replicas]
    guides: Guides
    names: TokenNames
    remote: RemoteImages
    metrics: Metrics
    tokenizer: Any
    texts: TextLimits
    reader: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="fastvlm-read"))

    async def read(self, function: Callable[[Kitchen, Given], Found], given: Given) -> Found:
        """``function(self, given)`` in the one thread that parses and tokenizes: memory is taken for one at a time."""
        return await asyncio.get_running_loop().run_in_executor(self.reader, function, self, given)


async def answer_chat(kitchen: Kitchen, body: bytes, outlet: Outlet, start_s: float) -> None:
    """Answer one chat request; `start_s` is when it came, on :func:`time.perf_counter`'s clock."""
    asked, conversation = await kitchen.read(_read_chat, body)
    del body  # and the images below: a request that waits for a slot holds its prepared prompt only
    replicas, count = _asked_model(kitchen, asked), _checked_count(kitchen, asked, num_prompts=1)
    with replicas.claim(count, conversation) as replica:
        guides = await kitchen.guides.make(asked.response_format, count)
        prompt = await _chat_prompt(kitchen, asked, replica)
        asked.messages.clear()
        params = _params(asked, [prompt], replica, kitchen.settings)
        choices = [Choice(prompt, choice_params(params, index), guide) for index, guide in enumerate(guides)]
        told = ChatFormat(asked.model, kitchen.names, has_usage=_has_usage(asked))
        await _answer(kitchen, asked, replica, choices, told, outlet, start_s)


def _read_chat(kitchen: Kitchen, body: bytes) -> tuple[ChatRequest, str]:
    """The request, and what stands for its conversation: its first messages, images and all."""
    asked = parse(body, ChatRequest)
    check_texts(asked.messages, kitchen.texts)
    return asked, _digest(asked.messages[:2])


async def _chat_prompt(kitchen: Kitchen, asked: ChatRequest, replica: Replica) -> PreparedPrompt:
    messages = await read_messages(
        asked.messages,
        kitchen.remote.fetch,
        max_images=kitchen.settings.max_images,
        max_image_bytes=kitchen.settings.max_image_bytes,
    )
    return await replica.door.prepare(messages)


async def answer_completion(kitchen: Kitchen, body: bytes, outlet: Outlet, start_s: float) -> None:
    """Answer one completion request: the text goes in as it is, so a chat's marks may stand in it."""
    asked, conversation = await kitchen.read(_read_completion, body)
    del body
    texts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
    replicas, count = _asked_model(kitchen, asked), _checked_count(kitchen, asked, num_prompts=len(texts))
    with replicas.claim(count, conversation) as replica:
        prompts = []
        for text in texts:
            ids = await kitchen.read(_token_ids, text)
            prompts.append(await replica.door.prepare(ids))
        params = _params(asked, prompts, replica, kitchen.settings)
        each = count // len(prompts)
        choices = [Choice(prompt, choice_params(params, index)) for prompt in prompts for index in range(each)]
        told = TextFormat(asked.model, kitchen.names, has_usage=_has_usage(asked))
        await _answer(kitchen, asked, replica, choices, told, outlet, start_s)


def _read_completion(kitchen: Kitchen, body: bytes) -> tuple[CompletionRequest, str]:
    """The request, and what stands for its texts."""
    asked = parse(body, CompletionRequest)
    if asked.best_of not in (None, asked.n or 1):
        raise invalid(f"best_of is {asked.best_of}; expected what n is, {asked.n or 1}.", param="best_of")
    texts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
    for text in texts:
        kitchen.texts.check_length([text], "prompt")
        if IMAGE_TOKEN in text:
            raise invalid(f"A prompt has {IMAGE_TOKEN!r} in it; images go to /v1/chat/completions.", param="prompt")
    return asked, _digest(texts)


def _asked_model(kitchen: Kitchen, asked: ChatRequest | CompletionRequest) -> Replicas:
    """The engines of the model that is asked for, if it is there."""
    if asked.model not in kitchen.models:
        raise no_such_model(kitchen.settings.served_names)
    return kitchen.models[asked.model]


def _checked_count(kitchen: Kitchen, asked: ChatRequest | CompletionRequest, num_prompts: int) -> int:
    """How many replies are asked for in all."""
    limit = kitchen.settings.max_choices
    if asked.stream_options is not None and not asked.stream:
        raise invalid("stream_options needs stream to be true.", param="stream_options")
    count = (asked.n or 1) * num_prompts
    if count > limit:
        raise invalid(f"{count} replies are asked for; the limit is {limit}.", param="n")
    return count


def _has_usage(asked: ChatRequest | CompletionRequest) -> bool:
    return asked.stream_options is not None and asked.stream_options.include_usage


def _digest(beginning: Sequence[Message] | Sequence[str]) -> str:
    """The same for the same messages or texts."""
    found = hashlib.blake2b(digest_size=16)
    for one in beginning:
        content = one if isinstance(one, str) else one.content
        for part in content if isinstance(content, list) else [content or ""]:
            text = part if isinstance(part, str) else part.url if isinstance(part, ImagePart) else part.text
            found.update(f"{type(part).__name__} {len(text)} ".encode() + text.encode("utf-8", "replace"))
        found.update(b"" if isinstance(one, str) else one.role.encode())
    return found.hexdigest()


def _token_ids(kitchen: Kitchen, text: str) -> dict[str, Any]:
    ids = kitchen.tokenizer(text)["input_ids"]
    if not ids:
        raise PromptError("The prompt is empty; expected a text.")
    return {"input_ids": [ids]}


def _params(
    asked: ChatRequest | CompletionRequest, prompts: Sequence[PreparedPrompt], replica: Replica, settings: ServeSettings
) -> SamplingParams:
    """The settings of all choices; the longest prompt leaves the least room."""
    longest = max(len(prompt.token_ids) for prompt in prompts)
    return read_params(asked, reply_limit(asked, longest, replica.engine.context, settings))


async def _answer(
    kitchen: Kitchen,
    asked: ChatRequest | CompletionRequest,
    replica: Replica,
    choices: Sequence[Choice],
    told: Format,
    outlet: Outlet,
    start_s: float,
) -> None:
    """The choices, as they come or whole."""
    totals, completions = Totals(), dict[int, Completion]()
    is_silent = True
    opened: set[int] = set()
    async with replies(replica, choices, totals) as events:
        async for index, event in events:
            if event.text and is_silent:
                is_silent = False
                kitchen.metrics.ttft.observe(time.perf_counter() - start_s)
            if event.completion is not None:
                completions[index] = event.completion
            if asked.stream:
                await _tell(outlet, told, index, event, opened)
    kitchen.metrics.add(totals)
    if not asked.stream:
        ordered = [completions[index] for index in range(len(choices))]
        await outlet.json(await asyncio.to_thread(told.whole, ordered, totals))
        return
    if _has_usage(asked):
        await outlet.event(told.closing(totals))
    await outlet.done()


async def _tell(outlet: Outlet, told: Format, index: int, event: TokenEvent, opened: set[int]) -> None:
    """One event of one choice; its opening first."""
    if index not in opened:
        opened.add(index)
        opening = told.opening(index)
        if opening is not None:
            await outlet.event(opening)
    piece = told.piece(index, event)
    if piece is not None:
        await outlet.event(piece)
