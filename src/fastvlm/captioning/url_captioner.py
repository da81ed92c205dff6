"""Captioner on a server with OpenAI's API: vLLM, `fastvlm serve`, or another one."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import httpx

from fastvlm.captioning.rows import Answer, Prompt, Row
from fastvlm.errors import UsageError

_BACKOFF_S = (0.5, 30.0)  # before the first retry, and at most; doubled each time
_ROW_STATUS = (400, 413, 415, 422)  # the server refuses this row, not the run
_RETRIED_STATUS = (408, 409, 429, 500, 502, 503, 504)
_MIME_OF = ((b"\xff\xd8", "jpeg"), (b"\x89PNG", "png"), (b"GIF8", "gif"), (b"RIFF", "webp"))
_SHOWN = 200  # characters of a server's message


class UrlCaptioner:
    """Sends each image with its prompt to ``URL/chat/completions``; see :class:`fastvlm.captioning.rows.Captioner`.

    Args:
        url: of the API, such as ``http://host:8000/v1``; ``/v1`` is added if it has no path.
        model: the server's name of the model; None for the first one that it lists.
        sampling: further fields of the request, such as ``temperature`` and ``max_tokens``.
        system: system prompt; None for none.
        api_key: None for none.
        concurrency: requests at the same time.
        retries: of a request that fails by the network or with a status such as 429 and 503.
        timeout_s: of one request.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        sampling: Mapping[str, Any] | None = None,
        system: str | None = None,
        api_key: str | None = None,
        concurrency: int = 16,
        retries: int = 5,
        timeout_s: float = 300.0,
    ) -> None:
        self._url, self._sampling, self._system = _api_url(url), dict(sampling or {}), system
        self._retries, self.num_concurrent = retries, concurrency
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._model, self._headers, self._timeout_s = model or self._first_model(headers), headers, timeout_s
        self.identity: Mapping[str, Any] = {"server_model": self._model, "system": system, **self._sampling}

    async def __aenter__(self) -> UrlCaptioner:
        self._room = asyncio.Semaphore(self.num_concurrent)
        limits = httpx.Limits(max_connections=self.num_concurrent)
        self._client = httpx.AsyncClient(headers=self._headers, timeout=self._timeout_s, limits=limits)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def answer(self, row: Row, image: bytes, prompts: Sequence[Prompt]) -> list[Answer]:
        """One answer for each prompt; an image that the server refuses has an error.

        Raises:
            UsageError: the server cannot be reached, refuses the key, or does not know the model.
        """
        del row
        uri = f"data:image/{_mime(image)};base64,{base64.b64encode(image).decode()}"
        return list(await asyncio.gather(*(self._reply(uri, prompt) for prompt in prompts)))

    async def _reply(self, uri: str, prompt: Prompt) -> Answer:
        content = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": prompt.text}]
        system = [] if self._system is None else [{"role": "system", "content": self._system}]
        body = {"model": self._model, "messages": [*system, {"role": "user", "content": content}], **self._sampling}
        if prompt.schema is not None:
            schema = {"name": "answer", "schema": dict(prompt.schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        async with self._room:
            begun_s = time.monotonic()
            response = await self._post(body)
            ms = round(1000 * (time.monotonic() - begun_s), 1)
        if response.status_code in _ROW_STATUS:
            return Answer.failed(f"ServerError: status {response.status_code}: {_message(response)}")
        return _answer(response, ms)

    async def _post(self, body: Mapping[str, Any]) -> httpx.Response:
        """The server's response. Raises UsageError after the last retry, and for a status that ends the run."""
        for attempt in range(self._retries + 1):
            wait_s = min(_BACKOFF_S[0] * 2**attempt, _BACKOFF_S[1])
            try:
                response = await self._client.post(f"{self._url}/chat/completions", json=body)
            except httpx.HTTPError as error:
                problem = f"cannot be reached ({type(error).__name__}: {error})"
            else:
                if response.is_success or response.status_code in _ROW_STATUS:
                    return response
                problem = f"answers with status {response.status_code}: {_message(response)}"
                if response.status_code not in _RETRIED_STATUS:
                    break
                wait_s = max(wait_s, _retry_after_s(response))
            if attempt < self._retries:
                await asyncio.sleep(wait_s)
        raise UsageError(
            f"{self._url} {problem}. Nothing is lost: give the same command again when the server answers, or with "
            "another --url, --model or key."
        )

    def _first_model(self, headers: Mapping[str, str]) -> str:
        try:
            response = httpx.get(f"{self._url}/models", headers=headers, timeout=30.0)
            response.raise_for_status()
            return str(response.json()["data"][0]["id"])
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, IndexError, TypeError) as error:
            raise UsageError(
                f"{self._url}/models does not name a model ({type(error).__name__}: {error}). Is it the address of an "
                "OpenAI-compatible server, such as http://localhost:8000/v1?"
            ) from error


def _api_url(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UsageError(f"--url is {url!r}: {error}. Expected an address such as http://localhost:8000/v1.") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UsageError(f"--url is {url!r}; expected an address such as http://localhost:8000/v1.")
    return str(parsed).rstrip("/") if parsed.path.strip("/") else f"{str(parsed).rstrip('/')}/v1"


def _mime(image: bytes) -> str:
    return next((kind for start, kind in _MIME_OF if image.startswith(start)), "png")


def _message(response: httpx.Response) -> str:
    """The message of an error response, in OpenAI's shape or any other."""
    try:
        error = response.json().get("error", response.text)
        text = error.get("message", str(error)) if isinstance(error, dict) else str(error)
    except (ValueError, AttributeError):
        text = response.text
    return " ".join(text.split())[:_SHOWN]


def _retry_after_s(response: httpx.Response) -> float:
    try:
        return min(max(float(response.headers.get("retry-after", 0)), 0.0), 60.0)
    except ValueError:  # a date
        return 0.0


def _answer(response: httpx.Response, ms: float) -> Answer:
    try:
        content = response.json()
        choice = content["choices"][0]
        tokens = int((content.get("usage") or {}).get("completion_tokens") or 0)
        return Answer(str(choice["message"]["content"] or ""), None, str(choice["finish_reason"]), tokens, ms)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        return Answer.failed(f"ServerError: its response is no chat completion ({type(error).__name__}: {error})")
