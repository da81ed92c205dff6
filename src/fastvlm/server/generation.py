"""The steps of every generation request, in any client's API: see :func:`answer`.

An endpoint is a function that reads a body into a :class:`GenerationRequest`, and a :class:`ReplyFormatter`. To add
one, write both in one file, as in :mod:`fastvlm.server.openai.chat`, and add a line to
:data:`fastvlm.server.routes.API_ROUTES`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Protocol

from fastvlm.engine.prompt_inputs import ChatPrompt, PromptInputs
from fastvlm.engine.structured_output import GrammarGuide
from fastvlm.engine.types import Completion, SamplingParams, TokenEvent, Usage
from fastvlm.errors import ConfigError, ContextLengthError, PromptError, SchemaError
from fastvlm.processing.image_processor import ImageProcessor
from fastvlm.server.context import ServerContext
from fastvlm.server.conversation import Messages, conversation_key, load_images
from fastvlm.server.http.errors import ApiError, invalid, no_such_model
from fastvlm.server.http.response_writer import ResponseWriter
from fastvlm.server.media import MediaReader
from fastvlm.server.replicas import Replica

_SCHEMA_PARAM = "response_format.json_schema.schema"
_IMAGE_PARAM = "mm_processor_kwargs"


class ReplyFormatter(Protocol):
    """Formats the replies to one request in the format of one endpoint."""

    stream_type: str  # media type of a streamed reply

    def events(self, index: int, event: TokenEvent) -> bytes:
        """What a stream sends for one token of choice `index`; empty while its text is not complete."""

    def end(self, usage: Usage) -> bytes:
        """The end of a stream, after all choices."""

    def failure(self, error: ApiError) -> bytes:
        """The end of a stream that fails."""

    def reply(self, completions: Sequence[Completion], usage: Usage) -> bytes:
        """The whole reply as JSON. Runs in a thread: log probabilities of many choices are megabytes."""


@dataclass
class GenerationRequest:
    """What a client asks for.

    Args:
        model: its name for clients.
        prompts: conversations, or texts that are used as they are; none to ask whether the model is loaded.
        params: sampling parameters of the first choice; the context may leave less than their `max_new_tokens`.
        formatter: formats the replies.
        num_choices: replies to each prompt.
        is_stream: send the tokens as they come.
        schema: the JSON schema that replies obey; None for free text.
        image_size, image_fit: of the images, instead of the model's own; see :func:`_image_processor`.
        is_continued: the reply continues the last message of a conversation, which is the assistant's.
    """

    model: str
    prompts: list[Messages] | list[str]
    params: SamplingParams
    formatter: ReplyFormatter
    num_choices: int = 1
    is_stream: bool = False
    schema: Mapping[str, Any] | None = None
    image_size: int | tuple[int, int] | None = None
    image_fit: str | None = None
    is_continued: bool = False


ReadRequest = Callable[[ServerContext, bytes], GenerationRequest]


@dataclass(frozen=True)
class _Choice:
    prompt: PromptInputs
    params: SamplingParams
    guide: GrammarGuide | None


async def answer(context: ServerContext, read: ReadRequest, body: bytes, writer: ResponseWriter, client: str) -> None:
    """Answer one request.

    Args:
        context: of the server.
        read: reads the body, in the thread that parses.
        body: what the client has sent.
        writer: sends the response.
        client: identifies the client, see :func:`fastvlm.server.http.connections.client_key`.

    Raises:
        ApiError, FastVlmError: the request is wrong, or cannot be answered.
    """
    request = await context.parse(read, body)
    del body  # and the images below: a request that waits for a slot keeps only its prepared prompt
    if request.model not in context.models:
        raise no_such_model(context.settings.served_names)
    count = request.num_choices * len(request.prompts)
    if count > context.settings.max_choices:
        message = f"The request asks for {count} replies; the limit is {context.settings.max_choices} (max_choices)."
        raise invalid(message, param="n")
    with context.models[request.model].reserve(count, conversation_key(request.prompts)) as replica:
        images = _image_processor(replica, request)
        guides = await _guides(context, request.schema, count)
        prompts = [await _prepare(context, replica, request, prompt, client, images) for prompt in request.prompts]
        request.prompts.clear()
        params = _fitting_params(context, request.params, prompts, replica)
        each = range(request.num_choices)
        settings = [(prompt, _choice_params(params, index)) for prompt in prompts for index in each]
        choices = [_Choice(*one, guide) for one, guide in zip(settings, guides, strict=True)]
        await _respond(context, request, replica, choices, writer)


async def _guides(
    context: ServerContext, schema: Mapping[str, Any] | None, count: int
) -> Sequence[GrammarGuide | None]:
    """One guide for each of `count` replies, compiled in another thread."""
    if schema is None:
        return [None] * count
    try:
        guide = await asyncio.to_thread(context.grammars.compile, schema)
    except SchemaError as error:
        raise invalid(str(error), param=_SCHEMA_PARAM, code="invalid_json_schema") from error
    return [guide, *(guide.copy() for _ in range(count - 1))]


def _image_processor(replica: Replica, request: GenerationRequest) -> ImageProcessor | None:
    """The image processor of the request's size and fit; None for the model's own.

    Raises:
        ApiError: a size that is not a multiple of 64, or has more pixels than the server's own.
    """
    if request.image_size is None and request.image_fit is None:
        return None
    own = replica.engine.processor.image_processor
    try:
        chosen = own.chosen(request.image_size, request.image_fit)
    except ConfigError as error:
        raise invalid(str(error), param=_IMAGE_PARAM) from error
    if prod(chosen.image_size) > prod(own.image_size):
        height, width = own.image_size
        raise invalid(
            f"image_size is {request.image_size}; this server takes up to {height}x{width} pixels. Send a smaller "
            "one, or start the server with a larger --image-size.",
            param=_IMAGE_PARAM,
        )
    return chosen


async def _prepare(
    context: ServerContext,
    replica: Replica,
    request: GenerationRequest,
    prompt: Messages | str,
    client: str,
    images: ImageProcessor | None,
) -> PromptInputs:
    if isinstance(prompt, str):
        return await replica.async_engine.prepare({"input_ids": [await context.parse(_token_ids, prompt)]})
    processor = images or replica.engine.processor.image_processor
    await load_images(context, prompt, MediaReader(context.settings, replica.image_pool, processor, client))
    is_continued = request.is_continued
    chat = ChatPrompt(prompt, add_generation_prompt=not is_continued, continue_final_message=is_continued)
    return await replica.async_engine.prepare(chat, client, images)


def _token_ids(context: ServerContext, text: str) -> list[int]:
    ids: list[int] = context.tokenizer(text)["input_ids"]
    if not ids:
        raise PromptError("The prompt is empty; expected a text.")
    return ids


def _fitting_params(
    context: ServerContext, params: SamplingParams, prompts: Sequence[PromptInputs], replica: Replica
) -> SamplingParams:
    """`params` with a reply that fits into the context behind the longest prompt.

    Raises:
        ContextLengthError: a prompt leaves no room for a reply, or is longer than `max_prompt_tokens`.
    """
    num_tokens, size = max((len(prompt.token_ids) for prompt in prompts), default=0), replica.engine.context
    longest = min(size - 1, context.settings.max_prompt_tokens or size)
    if num_tokens > longest:
        setting = "context" if longest == size - 1 else "max_prompt_tokens"
        raise ContextLengthError(
            f"The prompt has {num_tokens} tokens; the limit is {longest} ({setting}). Shorten it, or send fewer images."
        )
    return replace(params, max_new_tokens=min(params.max_new_tokens, size - num_tokens))


def _choice_params(params: SamplingParams, index: int) -> SamplingParams:
    """The parameters of choice `index`, with a seed of its own: with one seed all choices would be equal."""
    return params if params.seed is None else replace(params, seed=(params.seed + index) % 2**63)


async def _respond(
    context: ServerContext,
    request: GenerationRequest,
    replica: Replica,
    choices: Sequence[_Choice],
    writer: ResponseWriter,
) -> None:
    """Generate the choices, and send them as they come or as one response."""
    formatter, completions, has_text = request.formatter, dict[int, Completion](), False
    async with aclosing(_events(replica, choices)) as events:
        async for index, event in events:
            if event.text and not has_text:
                has_text = True
                context.metrics.ttft.observe(time.perf_counter() - writer.start_s)
            if event.completion is not None:
                completions[index] = event.completion
            if request.is_stream and (data := formatter.events(index, event)):
                await writer.stream(data, formatter.stream_type, formatter.failure)
    ordered = [completions[index] for index in range(len(choices))]
    usage = _total_usage(ordered, request.num_choices)
    context.metrics.add(usage, ordered)
    if request.is_stream:
        await writer.stream(formatter.end(usage), formatter.stream_type, formatter.failure)
        await writer.end(b"")
    else:
        await writer.json(await asyncio.to_thread(formatter.reply, ordered, usage))


async def _events(replica: Replica, choices: Sequence[_Choice]) -> AsyncGenerator[tuple[int, TokenEvent]]:
    """(index, event) of all choices as they come; when closed, or if one raises, the others are cancelled."""
    queue: asyncio.Queue[tuple[int, TokenEvent] | Exception] = asyncio.Queue()

    async def forward(index: int, choice: _Choice) -> None:
        stream = replica.async_engine.stream(choice.prompt, choice.params, guide=choice.guide)
        try:
            async with aclosing(stream) as events:
                async for event in events:
                    queue.put_nowait((index, event))
        except Exception as error:  # noqa: BLE001 - raised by the reader of the queue
            queue.put_nowait(error)

    tasks = [asyncio.ensure_future(forward(index, choice)) for index, choice in enumerate(choices)]
    try:
        num_running = len(choices)
        while num_running:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            index, event = item
            if event.completion is not None:
                num_running -= 1
                _check_grammar(choices[index].guide)
            yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _check_grammar(guide: GrammarGuide | None) -> None:
    if guide is not None and guide.error is not None:
        reason = guide.error.strip().partition("\n")[0]
        raise invalid(
            f"The schema cannot be enforced: while the reply was generated, its grammar failed ({reason}). "
            "Simplify it.",
            param=_SCHEMA_PARAM,
            code="invalid_json_schema",
        )


def _total_usage(completions: Sequence[Completion], num_choices: int) -> Usage:
    """Token counts of a request; a prompt of several choices counts once, as its first choice has it."""
    prompts = [completion.usage for completion in completions[::num_choices]]
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in prompts),
        image_tokens=sum(usage.image_tokens for usage in prompts),
        completion_tokens=sum(completion.usage.completion_tokens for completion in completions),
        cached_prompt_tokens=sum(usage.cached_prompt_tokens for usage in prompts),
    )
