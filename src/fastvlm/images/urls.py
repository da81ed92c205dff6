"""Download an image from an http(s) URL, within limits on bytes, seconds and redirects."""

from __future__ import annotations

import time

import httpx

from fastvlm.errors import ImageError
from fastvlm.images.limits import ImageLimits


def fetch(url: str, name: str, limits: ImageLimits) -> bytes:
    """The body of an http(s) URL, read in chunks so that a long or slow one is given up early.

    Raises:
        ImageTooLargeError: more bytes than the limit.
        ImageError: unreachable, too slow, any status but 200; `name` is how the error calls the URL.
    """
    deadline_s = time.monotonic() + limits.timeout_s
    body = bytearray()
    try:
        with (
            httpx.Client(follow_redirects=True, max_redirects=limits.max_redirects, timeout=limits.timeout_s) as client,
            client.stream("GET", url, headers={"User-Agent": "fastvlm"}) as response,
        ):
            if response.status_code != httpx.codes.OK:
                raise ImageError(f"{name} answered with HTTP status {response.status_code}; expected 200.")
            announced = response.headers.get("Content-Length", "")
            limits.check_num_bytes(int(announced) if announced.isdecimal() else 0, name)
            for chunk in response.iter_bytes():
                body += chunk
                limits.check_num_bytes(len(body), name)
                if time.monotonic() > deadline_s:
                    raise ImageError(f"{name} took longer than {limits.timeout_s} s. Download it, and pass the file.")
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
        reason = str(error) or type(error).__name__
        raise ImageError(
            f"{name} cannot be fetched ({type(error).__name__}: {reason}); limits are {limits.timeout_s} s and "
            f"{limits.max_redirects} redirects. Download it, and pass the file."
        ) from error
    return bytes(body)
