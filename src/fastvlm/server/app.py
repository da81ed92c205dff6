"""The ASGI application: routes, middleware, error responses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from fastvlm.server.http.access import AccessMiddleware
from fastvlm.server.http.errors import ApiError, as_api_error, error_response
from fastvlm.server.openapi import DOCS_STYLE, docs_page, document
from fastvlm.server.routes import API_ROUTES, get_route
from fastvlm.server.service import Service


def create_app(service: Service, page: Path | None = None, *, wait_until_ready: bool = False) -> Starlette:
    """The ASGI application.

    Args:
        service: its state; opened when the application starts, closed when it ends.
        page: a folder whose files are served at ``/``; None for none.
        wait_until_ready: start only when requests are answered, for servers that send requests to whatever has
            started; a model that cannot be opened then fails the start. Otherwise requests get 503 until it is open.
    """

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        opening = asyncio.create_task(service.start())
        if wait_until_ready:
            await opening
            if service.failure is not None:
                await service.close()
                raise service.failure
        yield
        await opening  # a thread that opens a model cannot be interrupted
        await service.close()

    return Starlette(
        routes=_routes(service, page),
        middleware=_middleware(service),
        lifespan=lifespan,
        exception_handlers={HTTPException: _http_error, Exception: _unexpected_error},
    )


def _middleware(service: Service) -> list[Middleware]:
    settings = service.settings
    labels = frozenset([*(route.path for route in API_ROUTES), "/docs", "/"])
    access = Middleware(AccessMiddleware, settings=settings, metrics=service.metrics, labels=labels)
    if not settings.cors_origins:
        return [access]
    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(settings.cors_origins),
        allow_methods=["GET", "POST"],
        allow_headers=["*"],  # OpenAI's clients send a dozen of their own
        expose_headers=["X-Request-Id", "Retry-After"],
    )
    return [cors, access]


def _routes(service: Service, page: Path | None) -> list[BaseRoute]:
    content = document(service.settings.served_names, has_keys=bool(service.settings.api_keys))
    docs = docs_page(content)
    return [
        *(route.starlette_route(service) for route in API_ROUTES),
        get_route("/openapi.json", lambda _: JSONResponse(content)),
        get_route("/docs", lambda _: HTMLResponse(docs)),
        get_route("/docs.css", lambda _: FileResponse(DOCS_STYLE)),
        *(_page_routes(page) if page is not None else ()),
    ]


def _page_routes(page: Path) -> list[BaseRoute]:
    """One route per file that exists now, so that no path from a request is ever looked up on the disk."""
    files = {f"/{file.relative_to(page).as_posix()}": file for file in sorted(page.rglob("*")) if file.is_file()}
    files["/"] = page / "index.html"
    return [Route(path, partial(_file, file)) for path, file in files.items()]


async def _file(file: Path, _: Request) -> Response:
    return FileResponse(file, headers={"Cache-Control": "no-cache"})


def _http_error(request: Request, error: Exception) -> Response:
    """The router's errors: unknown path, wrong method."""
    assert isinstance(error, HTTPException)  # noqa: S101 - it is registered for these
    message = {404: "This path does not exist; /docs lists all paths.", 405: "This path does not allow this method."}
    text = message.get(error.status_code, error.detail)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    return error_response(ApiError(error.status_code, text, code=code, headers=error.headers), request.url.path)


def _unexpected_error(request: Request, error: Exception) -> Response:
    return error_response(as_api_error(error), request.url.path)
