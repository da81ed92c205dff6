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
from fastvlm.server.http.body import parse
from fastvlm.server.http.errors import invalid, no_such_model
from fastvlm.server.http.remote_images import RemoteImages
from fastvlm.server.http.response_writer import ResponseWriter
from fastvlm.server.metrics import Metrics
from fastvlm.server.openai.formatters import ChatFormatter, CompletionFormatter, ReplyFormatter
from fastvlm.server.openai.generation import Choice, Totals, replies
from fastvlm.server.openai.logprobs import LogprobFormatter
from fastvlm.server.openai.messages import check_texts, read_messages
from fastvlm.server.openai.sampling import choice_params, read_params, reply_limit
from fastvlm.server.openai.schemas import ChatRequest, CompletionRequest, ImagePart, Message
from fastvlm.server.openai.structured_output import GrammarCompiler
from fastvlm.server.openai.text_limits import TextLimits
from fastvlm.server.replicas import Replica, Replicas
from fastvlm.server.settings import ServeSettings

__all__ = ["ServerContext", "answer_chat", "answer_completion"]

Given = TypeVar("Given")
Found = TypeVar("Found")


@dataclass(frozen=True)
class ServerContext:
    """What answering needs, once the model is open; `models` has the engines of each name that clients may ask for."""

    settings: ServeSettings
    models: Mapping[str, Replicas]
    guides: GrammarCompiler
    names: LogprobFormatter
    remote: RemoteImages
    metrics: Metrics
    tokenizer: Any
    texts: TextLimits
    reader: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="fastvlm-read"))

    async def read(self, function: Callable[[ServerContext, Given], Found], given: Given) -> Found:
        """``function(self, given)`` in the one thread that parses and tokenizes: memory is taken for one at a time."""
        return await asyncio.get_running_loop().run_in_executor(self.reader, function, self, given)


async def answer_chat(context: ServerContext, body: bytes, writer: ResponseWriter, start_s: float) -> None:
    """Answer one chat request; `start_s` is when it came, on :func:`time.perf_counter`'s clock."""
    asked, conversation = await context.read(_read_chat, body)
    del body  # and the images below: a request that waits for a slot holds its prepared prompt only
    replicas, count = _asked_model(context, asked), _checked_count(context, asked, num_prompts=1)
    with replicas.claim(count, conversation) as replica:
        guides = await context.guides.make(asked.response_format, count)
        prompt = await _chat_prompt(context, asked, replica)
        asked.messages.clear()
        params = _params(asked, [prompt], replica, context.settings)
        choices = [Choice(prompt, choice_params(params, index), guide) for index, guide in enumerate(guides)]
        formatter = ChatFormatter(asked.model, context.names, has_usage=_has_usage(asked))
        await _answer(context, asked, replica, choices, formatter, writer, start_s)


def _read_chat(context: ServerContext, body: bytes) -> tuple[ChatRequest, str]:
    """The request, and what stands for its conversation: its first messages, images and all."""
    asked = parse(body, ChatRequest)
    check_texts(asked.messages, context.texts)
    return asked, _digest(asked.messages[:2])


async def _chat_prompt(context: ServerContext, asked: ChatRequest, replica: Replica) -> PreparedPrompt:
    messages = await read_messages(
        asked.messages,
        context.remote.fetch,
        max_images=context.settings.max_images,
        max_image_bytes=context.settings.max_image_bytes,
    )
    return await replica.async_engine.prepare(messages)


async def answer_completion(context: ServerContext, body: bytes, writer: ResponseWriter, start_s: float) -> None:
    """Answer one completion request: the text goes in as it is, so a chat's marks may stand in it."""
    asked, conversation = await context.read(_read_completion, body)
    del body
    texts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
    replicas, count = _asked_model(context, asked), _checked_count(context, asked, num_prompts=len(texts))
    with replicas.claim(count, conversation) as replica:
        prompts = []
        for text in texts:
            ids = await context.read(_token_ids, text)
            prompts.append(await replica.async_engine.prepare(ids))
        params = _params(asked, prompts, replica, context.settings)
        each = count // len(prompts)
        choices = [Choice(prompt, choice_params(params, index)) for prompt in prompts for index in range(each)]
        formatter = CompletionFormatter(asked.model, context.names, has_usage=_has_usage(asked))
        await _answer(context, asked, replica, choices, formatter, writer, start_s)


def _read_completion(context: ServerContext, body: bytes) -> tuple[CompletionRequest, str]:
    """The request, and what stands for its texts."""
    asked = parse(body, CompletionRequest)
    if asked.best_of not in (None, asked.n or 1):
        raise invalid(f"best_of is {asked.best_of}; expected what n is, {asked.n or 1}.", param="best_of")
    texts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
    for text in texts:
        context.texts.check_length([text], "prompt")
        if IMAGE_TOKEN in text:
            raise invalid(f"A prompt has {IMAGE_TOKEN!r} in it; images go to /v1/chat/completions.", param="prompt")
    return asked, _digest(texts)


def _asked_model(context: ServerContext, asked: ChatRequest | CompletionRequest) -> Replicas:
    """The engines of the model that is asked for, if it is there."""
    if asked.model not in context.models:
        raise no_such_model(context.settings.served_names)
    return context.models[asked.model]


def _checked_count(context: ServerContext, asked: ChatRequest | CompletionRequest, num_prompts: int) -> int:
    """How many replies are asked for in all."""
    limit = context.settings.max_choices
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


def _token_ids(context: ServerContext, text: str) -> dict[str, Any]:
    ids = context.tokenizer(text)["input_ids"]
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
    context: ServerContext,
    asked: ChatRequest | CompletionRequest,
    replica: Replica,
    choices: Sequence[Choice],
    formatter: ReplyFormatter,
    writer: ResponseWriter,
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
                context.metrics.ttft.observe(time.perf_counter() - start_s)
            if event.completion is not None:
                completions[index] = event.completion
            if asked.stream:
                await _tell(writer, formatter, index, event, opened)
    context.metrics.add(totals)
    if not asked.stream:
        ordered = [completions[index] for index in range(len(choices))]
        await writer.json(await asyncio.to_thread(formatter.whole, ordered, totals))
        return
    if _has_usage(asked):
        await writer.event(formatter.closing(totals))
    await writer.done()


async def _tell(
    writer: ResponseWriter, formatter: ReplyFormatter, index: int, event: TokenEvent, opened: set[int]
) -> None:
    """One event of one choice; its opening first."""
    if index not in opened:
        opened.add(index)
        opening = formatter.opening(index)
        if opening is not None:
            await writer.event(opening)
    piece = formatter.piece(index, event)
    if piece is not None:
        await writer.event(piece)
