"""The application: routes, and the model's way from closed to ready to stopping."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from fastvlm.engine.engine import Engine
from fastvlm.engine.types import SamplingParams
from fastvlm.images import ImageLimits
from fastvlm.images.pool import ImagePool
from fastvlm.server.http.access import AccessMiddleware
from fastvlm.server.http.body import UploadDeadline, announced_bytes, read_body
from fastvlm.server.http.connections import UploadSlots, client_key
from fastvlm.server.http.disconnect import ClientDisconnected, RequestTimedOut, run_while_connected
from fastvlm.server.http.errors import ApiError, as_api_error, error_response, no_such_model, unready
from fastvlm.server.http.remote_images import RemoteImages
from fastvlm.server.http.response_writer import ResponseWriter
from fastvlm.server.metrics import CONTENT_TYPE, Metrics
from fastvlm.server.openai.completions import ServerContext, answer_chat, answer_completion
from fastvlm.server.openai.logprobs import LogprobFormatter
from fastvlm.server.openai.openapi import DOCS_STYLE, docs_page, document
from fastvlm.server.openai.structured_output import GrammarCompiler
from fastvlm.server.openai.text_limits import text_limits
from fastvlm.server.replicas import Replicas
from fastvlm.server.settings import ServeSettings

__all__ = ["OpenEngines", "Service", "create_app"]

logger = logging.getLogger("fastvlm.server")

OpenEngines = Callable[[], Mapping[str, Sequence[Engine]]]
Answer = Callable[[ServerContext, bytes, ResponseWriter, float], Coroutine[None, None, None]]
_WARM_UP_TOKENS = 4
_SMALL_BODY_BYTES = 2**16  # one of them for each connection is little memory


class Service:
    """The server's state: "starting", "warming up", "ready", "stopping", or "failed" with the reason.

    Args:
        settings: of the server.
        open_engines: opens the model, in a thread of its own: for each name that clients may ask for one engine a
            replica, all with the same tokenizer.
    """

    def __init__(self, settings: ServeSettings, open_engines: OpenEngines) -> None:
        self.settings, self.metrics = settings, Metrics()
        self.status = "starting"
        self.failure: Exception | None = None
        self.on_ready: Callable[[], None] = lambda: None  # called once, when requests begin to be answered
        self.started_at = int(time.time())
        self.context: ServerContext | None = None
        self.receiving = UploadSlots(settings.max_receiving)
        self._open_engines = open_engines
        self._image_pool = ImagePool(
            settings.image_workers, timeout_s=settings.image_timeout_s, memory_bytes=settings.image_memory_bytes
        )

    @property
    def is_ready(self) -> bool:
        """True while requests are answered."""
        return self.status == "ready"

    async def start(self, on_failure: Callable[[], None]) -> None:
        """Open the model, answer one question with each engine, be ready. A failure is kept, and told."""
        try:
            await asyncio.to_thread(self._image_pool.start)
            engines = await asyncio.to_thread(self._open_engines)
            context = await asyncio.to_thread(self._context, engines)
            for replicas in context.models.values():
                await replicas.open()
            self.context = context
            self._become("warming up")
            for replicas in context.models.values():
                for replica in replicas.all:
                    await replica.async_engine.generate(_WARM_UP, SamplingParams(max_new_tokens=_WARM_UP_TOKENS))
            self.metrics.watch({name: replicas.all for name, replicas in context.models.items()})
            self._become("ready")
            if self.is_ready:
                self.on_ready()
        except Exception as error:  # noqa: BLE001 - whoever started the server raises it
            self.status, self.failure = "failed", error
            on_failure()

    def _become(self, status: str) -> None:
        if self.status != "stopping":
            self.status = status

    def _context(self, engines: Mapping[str, Sequence[Engine]]) -> ServerContext:
        settings, engine = self.settings, next(iter(engines.values()))[0]
        limits = ImageLimits(max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels)
        for one in chain.from_iterable(engines.values()):
            one.processor.image_processor.image_limits = limits
        tokenizer, end_ids = engine.processor.tokenizer, sorted(engine.config.stop_token_ids)
        guides = GrammarCompiler(tokenizer, engine.config.text_config.vocab_size, end_ids)
        max_prompt_tokens = min(engine.context - 1, settings.max_prompt_tokens or engine.context)
        return ServerContext(
            settings=settings,
            models={name: Replicas(several, self._image_pool) for name, several in engines.items()},
            guides=guides,
            names=LogprobFormatter(guides.tokens, tokenizer, end_ids),
            remote=RemoteImages(
                settings.remote_hosts, max_bytes=settings.max_image_bytes, timeout_s=settings.remote_timeout_s
            ),
            metrics=self.metrics,
            tokenizer=tokenizer,
            texts=text_limits(guides.tokens, tokenizer, max_prompt_tokens),
        )

    def stop(self) -> None:
        """Take no more requests; those that are here go on."""
        self.status = "stopping"

    async def close(self) -> None:
        """End what still runs."""
        self.stop()
        await asyncio.to_thread(self._image_pool.close)
        if self.context is not None:
            for replicas in self.context.models.values():
                await replicas.close()
            self.context.reader.shutdown(wait=False)


# A black image and a question: the encoder, the prompt's pass and the decoder have all run once.
_WARM_UP = [
    {
        "role": "user",
        "content": [
            {"type": "image", "image": b"P5 1 1 255\n\x00"},  # a PGM of one black pixel
            {"type": "text", "text": "?"},
        ],
    }
]


class _Asking:
    """An ASGI endpoint that answers with the engine; every way in which that can end is told here."""

    def __init__(self, service: Service, answer: Answer) -> None:
        self._service, self._answer = service, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        service, writer, start_s = self._service, ResponseWriter(send), time.perf_counter()
        try:
            await self._attended(scope, receive, writer, start_s)
            return
        except ClientDisconnected:
            service.metrics.hang_ups.inc()
            return
        except RequestTimedOut:
            error = _too_slow(service.settings.request_timeout_s)
        except Exception as raised:  # noqa: BLE001 - every failure becomes an answer
            is_ending = service.status == "stopping" and not isinstance(raised, ApiError)
            error = unready("The server is stopping.") if is_ending else as_api_error(raised)
        service.metrics.errors.labels(error.code).inc()
        if writer.has_begun:
            await writer.fail(error)
        else:
            await error_response(error)(scope, receive, send)

    async def _attended(self, scope: Scope, receive: Receive, writer: ResponseWriter, start_s: float) -> None:
        service, limit_s = self._service, self._service.settings.request_timeout_s
        if service.context is None or not service.is_ready:
            raise unready(f"The server is {service.status}. Try again later.")
        body = await self._body(scope, receive, limit_s)
        left_s = max(0.0, limit_s - (time.perf_counter() - start_s))
        work = self._answer(service.context, body, writer, start_s)
        del body  # the work forgets it too, once it is parsed
        await run_while_connected(work, receive, left_s)

    async def _body(self, scope: Scope, receive: Receive, limit_s: float) -> bytes:
        settings = self._service.settings
        is_small = announced_bytes(scope) <= _SMALL_BODY_BYTES
        client = client_key((scope.get("client") or (None,))[0])
        pace = UploadDeadline(settings.min_body_rate, settings.header_timeout_s, limit_s)
        with nullcontext() if is_small else self._service.receiving.one(client):
            return await read_body(scope, receive, settings.max_body_bytes, pace)


def _too_slow(limit_s: float) -> ApiError:
    # OpenAI's clients would ask again by themselves, and the second time would take as long.
    message = f"The reply took longer than {limit_s:g} s, which is the limit. Ask for fewer tokens or images."
    return ApiError(504, message, code="timeout", kind="server_error", headers={"x-should-retry": "false"})


def create_app(
    service: Service, *, page: Path | None = None, on_failure: Callable[[], None] = lambda: None
) -> Starlette:
    """The ASGI application.

    Args:
        service: its state; opened when the application starts, closed when it ends.
        page: a folder whose files are shown at ``/``; None for none.
        on_failure: called when the model could not be opened; the service has the reason.
    """
    settings = service.settings

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        opening = asyncio.create_task(service.start(on_failure))
        yield
        await opening  # a thread that opens a model cannot be interrupted
        await service.close()

    middleware = [Middleware(AccessMiddleware, settings=settings, metrics=service.metrics)]
    if settings.cors_origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # OpenAI's clients send a dozen of their own
            expose_headers=["X-Request-Id", "Retry-After"],
        )
        middleware.insert(0, cors)
    return Starlette(
        routes=_routes(service, page),
        middleware=middleware,
        lifespan=lifespan,
        exception_handlers={HTTPException: _http_error, Exception: _unexpected},
    )


def _routes(service: Service, page: Path | None) -> list[BaseRoute]:
    content = document(service.settings.served_names, has_keys=bool(service.settings.api_keys))
    docs = docs_page(content)
    routes: list[BaseRoute] = [
        Route("/v1/chat/completions", _Asking(service, answer_chat), methods=["POST"]),
        Route("/v1/completions", _Asking(service, answer_completion), methods=["POST"]),
        _get("/v1/models", lambda _: JSONResponse({"object": "list", "data": _models(service)})),
        _get("/v1/models/{model:path}", lambda request: _one_model(service, request)),
        _get("/health", lambda _: _state(service, is_good=service.status != "failed")),
        _get("/ready", lambda _: _state(service, is_good=service.is_ready)),
        _get("/metrics", lambda _: Response(service.metrics.page(), headers={"Content-Type": CONTENT_TYPE})),
        _get("/openapi.json", lambda _: JSONResponse(content)),
        _get("/docs", lambda _: HTMLResponse(docs)),
        _get("/docs.css", lambda _: Response(DOCS_STYLE, media_type="text/css")),
    ]
    return [*routes, *_page_routes(page)] if page is not None else routes


def _get(path: str, answer: Callable[[Request], Response]) -> Route:
    """A route whose answer is there at once: made in the event loop, not in a thread."""

    async def endpoint(request: Request) -> Response:
        return answer(request)

    return Route(path, endpoint)


def _page_routes(page: Path) -> list[BaseRoute]:
    """A route for each file that is there now: no path of a request is ever looked for on the disk."""
    files = {f"/{file.relative_to(page).as_posix()}": file for file in sorted(page.rglob("*")) if file.is_file()}
    files["/"] = page / "index.html"
    return [Route(path, partial(_file, file)) for path, file in files.items()]


async def _file(file: Path, _: Request) -> Response:
    return FileResponse(file, headers={"Cache-Control": "no-cache"})


def _models(service: Service) -> list[dict[str, Any]]:
    """The model, then its adapters."""
    return [
        {"id": name, "object": "model", "created": service.started_at, "owned_by": "fastvlm"}
        for name in service.settings.served_names
    ]


def _one_model(service: Service, request: Request) -> Response:
    found = [model for model in _models(service) if model["id"] == request.path_params["model"]]
    return JSONResponse(found[0]) if found else error_response(no_such_model(service.settings.served_names))


def _state(service: Service, *, is_good: bool) -> Response:
    content = {"status": service.status, "is_ready": service.is_ready}
    return JSONResponse(content, 200 if is_good else 503, headers={} if is_good else {"Retry-After": "1"})


def _http_error(_: Request, error: Exception) -> Response:
    """What the router answers: no such path, no such method."""
    assert isinstance(error, HTTPException)  # noqa: S101 - it is registered for these
    message = {404: "There is nothing at this path; /docs lists what is.", 405: "This path has other methods."}
    text = message.get(error.status_code, error.detail)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    return error_response(ApiError(error.status_code, text, code=code, headers=error.headers))


def _unexpected(_: Request, error: Exception) -> Response:
    return error_response(as_api_error(error))
