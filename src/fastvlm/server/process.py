"""The server process: listening socket, uvicorn, signals, logs, graceful shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn

from fastvlm.errors import UsageError
from fastvlm.server.app import create_app
from fastvlm.server.http.connections import limited_connections
from fastvlm.server.http.log_limit import LogLimit
from fastvlm.server.service import OpenEngines, Service
from fastvlm.server.settings import ServeSettings

_LINGER_S = 5.0  # after the grace period: time to send the error events of replies that were cut
_BACKLOG = 128  # connections not accepted yet; asyncio logs an error for each when open files run out
_OTHER_FILES = 256  # open files besides connections: weights, images from URLs, workers


def serve(
    settings: ServeSettings,
    open_engines: OpenEngines,
    *,
    page: Path | None = None,
    on_listening: Callable[[str], None] = lambda _: None,
    on_ready: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: of the server.
        open_engines: opens the model, see :class:`Service`; requests are refused with 503 meanwhile.
        page: a folder whose files are served at ``/``.
        on_listening: called with the server's URL once clients can connect; requests get 503 until it is ready.
        on_ready: called with the URL once requests are answered.

    Raises:
        UsageError: the address cannot be listened on, or the system allows too few open files.
        FastVlmError: the model could not be opened.
    """
    _allow_files(settings.max_connections + _OTHER_FILES)
    service = Service(settings, open_engines)
    with _listen(settings) as listener, _logs():
        host, port = listener.getsockname()[:2]
        server = _Server(service)
        server.config.app = create_app(service, page)
        service.on_failure = lambda: setattr(server, "should_exit", True)
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        service.on_ready = lambda: on_ready(url)
        on_listening(url)
        # uvicorn raises the signal again after a clean shutdown; here the process ends with exit code 0.
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
    if service.failure is not None:
        raise service.failure


def _allow_files(count: int) -> None:
    """Raise the soft limit of open files to `count`; raises UsageError if the hard limit is lower."""
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415 - not on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return
    if hard != resource.RLIM_INFINITY and hard < count:
        raise UsageError(
            f"max_connections needs {count} open files ({_OTHER_FILES} besides connections), and {hard} are allowed. "
            "Lower --max-connections, or raise the limit (ulimit -Hn, LimitNOFILE)."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


class _Server(uvicorn.Server):
    """uvicorn's server with a grace period at shutdown."""

    def __init__(self, service: Service) -> None:
        self._service = service
        grace_s = service.settings.shutdown_grace_s
        config = uvicorn.Config(
            app="",
            http=limited_connections(service.settings),
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=math.ceil(service.settings.header_timeout_s),
            timeout_graceful_shutdown=int(grace_s + _LINGER_S) + 1,
            backlog=_BACKLOG,
        )
        super().__init__(config)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for running replies during the grace period; then they end with an error event."""
        self._service.stop()
        closing = asyncio.create_task(self._close_later())
        try:
            await super().shutdown(sockets)
        finally:
            closing.cancel()
            await asyncio.gather(closing, return_exceptions=True)

    async def _close_later(self) -> None:
        await asyncio.sleep(self._service.settings.shutdown_grace_s)
        await self._service.close()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's signal handlers; the signal is not raised again afterwards."""
        with super().capture_signals():
            yield
            self._captured_signals.clear()


def _listen(settings: ServeSettings) -> socket.socket:
    """A listening socket, bound before the model is opened, so that a taken port is reported at once."""
    try:
        found = socket.getaddrinfo(
            settings.host.strip("[]"), settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, _, _, _, address = found[0]
        is_dual = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        return socket.create_server(address, family=family, backlog=_BACKLOG, dualstack_ipv6=is_dual)
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]  # `create_server` adds the address
        raise UsageError(
            f"Cannot listen on {settings.host}, port {settings.port} ({reason}). Try another --port."
        ) from error


@contextlib.contextmanager
def _logs() -> Iterator[None]:
    """Write the server's log and the warnings of uvicorn and asyncio to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.addFilter(LogLimit())
    levels = {"fastvlm.server": logging.INFO, "uvicorn.error": logging.WARNING, "asyncio": logging.WARNING}
    for name, level in levels.items():
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name in levels:
            logging.getLogger(name).removeHandler(handler)
