"""Handlers of POST /v1/chat/completions and /v1/completions.

A request is parsed, assigned to a replica, prepared (images, tokens), generated, and its response written: see
:func:`answer_chat` and :func:`_respond`.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence

from fastvlm.engine.prompt_inputs import PromptInputs
from fastvlm.engine.structured_output import GrammarGuide
from fastvlm.engine.types import Completion, SamplingParams
from fastvlm.errors import PromptError, SchemaError
from fastvlm.processing.prompt import IMAGE_TOKEN
from fastvlm.server.context import Exchange, ServerContext
from fastvlm.server.http.body import parse
from fastvlm.server.http.errors import invalid, no_such_model
from fastvlm.server.openai.formatters import ChatFormatter, CompletionFormatter, ReplyFormatter
from fastvlm.server.openai.generation import Choice, RequestUsage, stream_choices
from fastvlm.server.openai.messages import check_texts, read_messages
from fastvlm.server.openai.sampling import choice_params, max_new_tokens, sampling_params
from fastvlm.server.openai.schemas import ChatRequest, CompletionRequest, ImagePart, Message, SchemaFormat
from fastvlm.server.replicas import Replica, Replicas

_Request = ChatRequest | CompletionRequest


async def answer_chat(context: ServerContext, body: bytes, exchange: Exchange) -> None:
    """Answer one chat request."""
    request, conversation = await context.parse(_parse_chat, body)
    del body  # and the images below: a request that waits for a slot keeps only its prepared prompt
    replicas, count = _replicas(context, request), _num_choices(context, request, num_prompts=1)
    with replicas.reserve(count, conversation) as replica:
        guides = await _guides(context, request, count)
        messages = await read_messages(
            request.messages,
            context.remote_images.fetch,
            max_images=context.settings.max_images,
            max_image_bytes=context.settings.max_image_bytes,
        )
        prompt = await replica.async_engine.prepare(messages, exchange.client)
        request.messages.clear()
        del messages
        params = _sampling_params(context, request, [prompt], replica)
        choices = [Choice(prompt, choice_params(params, index), guide) for index, guide in enumerate(guides)]
        formatter = ChatFormatter(request.model, context.logprobs, has_usage=_has_usage(request))
        await _respond(context, request, replica, choices, formatter, exchange)


async def _guides(context: ServerContext, request: ChatRequest, count: int) -> list[GrammarGuide] | list[None]:
    """One guide for each of `count` replies, compiled in another thread; None for free text."""
    wanted = request.response_format
    if wanted is None or wanted.type == "text":
        return [None] * count
    schema = wanted.json_schema.schema_ if isinstance(wanted, SchemaFormat) else {"type": "object"}
    try:
        guide = await asyncio.to_thread(context.grammars.compile, schema)
    except SchemaError as error:
        raise invalid(str(error), param="response_format.json_schema.schema", code="invalid_json_schema") from error
    return [guide, *(guide.copy() for _ in range(count - 1))]


def _parse_chat(context: ServerContext, body: bytes) -> tuple[ChatRequest, str]:
    """The request, and a digest of its first messages, which identifies the conversation."""
    request = parse(body, ChatRequest)
    check_texts(request.messages, context.text_limits)
    return request, _digest(request.messages[:2])


async def answer_completion(context: ServerContext, body: bytes, exchange: Exchange) -> None:
    """Answer one completion request. The text is used as it is, so it may contain a chat's special tokens."""
    request, conversation = await context.parse(_parse_completion, body)
    del body
    texts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
    replicas, count = _replicas(context, request), _num_choices(context, request, num_prompts=len(texts))
    with replicas.reserve(count, conversation) as replica:
        ids = [await context.parse(_token_ids, text) for text in texts]
        prompts = [await replica.async_engine.prepare({"input_ids": [one]}) for one in ids]
        params = _sampling_params(context, request, prompts, replica)
        each = count // len(prompts)
        choices = [Choice(prompt, choice_params(params, index)) for prompt in prompts for index in range(each)]
        formatter = CompletionFormatter(request.model, context.logprobs, has_usage=_has_usage(request))
        await _respond(context, request, replica, choices, formatter, exchange)


def _parse_completion(context: ServerContext, body: bytes) -> tuple[CompletionRequest, str]:
    """The request, and a digest of its texts."""
    request = parse(body, CompletionRequest)
    if request.best_of not in (None, request.n or 1):
        raise invalid(f"best_of is {request.best_of}; expected the value of n, {request.n or 1}.", param="best_of")
    texts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
    for text in texts:
        context.text_limits.check_length([text], "prompt")
        if IMAGE_TOKEN in text:
            raise invalid(f"The prompt contains {IMAGE_TOKEN!r}; send images to /v1/chat/completions.", param="prompt")
    return request, _digest(texts)


def _token_ids(context: ServerContext, text: str) -> list[int]:
    ids: list[int] = context.tokenizer(text)["input_ids"]
    if not ids:
        raise PromptError("The prompt is empty; expected a text.")
    return ids


def _digest(beginning: Sequence[Message] | Sequence[str]) -> str:
    """A digest of messages (roles, texts, image URLs) or texts."""
    digest = hashlib.blake2b(digest_size=16)
    for one in beginning:
        content = one if isinstance(one, str) else one.content
        for part in content if isinstance(content, list) else [content or ""]:
            text = part if isinstance(part, str) else part.url if isinstance(part, ImagePart) else part.text
            digest.update(f"{type(part).__name__} {len(text)} ".encode() + text.encode("utf-8", "replace"))
        digest.update(b"" if isinstance(one, str) else one.role.encode())
    return digest.hexdigest()


def _replicas(context: ServerContext, request: _Request) -> Replicas:
    """The engines of the request's model."""
    if request.model not in context.models:
        raise no_such_model(context.settings.served_names)
    return context.models[request.model]


def _num_choices(context: ServerContext, request: _Request, num_prompts: int) -> int:
    """Replies to all prompts together."""
    limit = context.settings.max_choices
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options needs stream to be true.", param="stream_options")
    count = (request.n or 1) * num_prompts
    if count > limit:
        raise invalid(f"The request asks for {count} replies; the limit is {limit}.", param="n")
    return count


def _has_usage(request: _Request) -> bool:
    return request.stream_options is not None and request.stream_options.include_usage


def _sampling_params(
    context: ServerContext, request: _Request, prompts: Sequence[PromptInputs], replica: Replica
) -> SamplingParams:
    """The sampling parameters of all choices; the longest prompt leaves the least room for a reply."""
    longest = max(len(prompt.token_ids) for prompt in prompts)
    return sampling_params(request, max_new_tokens(request, longest, replica.engine.context, context.settings))


async def _respond(
    context: ServerContext,
    request: _Request,
    replica: Replica,
    choices: Sequence[Choice],
    formatter: ReplyFormatter,
    exchange: Exchange,
) -> None:
    """Generate the choices, and send them as they come or as one response."""
    usage, completions, writer = RequestUsage(), dict[int, Completion](), exchange.writer
    has_text, begun = False, set[int]()
    async with stream_choices(replica, choices, usage) as events:
        async for index, event in events:
            if event.text and not has_text:
                has_text = True
                context.metrics.ttft.observe(time.perf_counter() - exchange.start_s)
            if event.completion is not None:
                completions[index] = event.completion
            if request.stream:
                chunks = [formatter.first_chunk(index)] if index not in begun else []
                begun.add(index)
                for chunk in [*chunks, formatter.chunk(index, event)]:
                    if chunk is not None:
                        await writer.event(chunk)
    context.metrics.add(usage)
    if not request.stream:
        ordered = [completions[index] for index in range(len(choices))]
        await writer.json(await asyncio.to_thread(formatter.response, ordered, usage))
        return
    if _has_usage(request):
        await writer.event(formatter.usage_chunk(usage))
    await writer.done()
