"""Fetches images from URLs: only from allowed hosts, and never from inside the server's own network (SSRF).

For the first URL and every redirect, scheme, host and port are checked, the name is resolved here, all its addresses
must be public, and the connection goes to the address that was checked, so DNS rebinding has no effect. No proxy, no
cookies, no credentials; size and time are limited.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urljoin

import httpx

from fastvlm.server.http.errors import ApiError, invalid

_MAX_REDIRECTS = 3
_REDIRECTS = (301, 302, 303, 307, 308)
_DEFAULT_PORTS = {"http": 80, "https": 443}
# IANA's registries of special-purpose addresses (RFC 6890; as of 2025-10), and multicast. Python's `is_global` follows
# them only as far as its version knows them, and lets through 192.0.0.8 to .10, fec0::/10 and 3fff::/20.
_SPECIAL_V4 = tuple(
    map(
        ipaddress.IPv4Network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
            *("192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16"),
            *("192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        ),
    )
)
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")  # all that is allocated; the rest is special or reserved
_SPECIAL_V6 = tuple(map(ipaddress.IPv6Network, ("2001::/23", "2001:db8::/32", "2620:4f:8000::/48", "3fff::/20")))
# An IPv6 address that contains an IPv4 address is as public as that.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


def is_public(address: str) -> bool:
    """True for an address of the open internet: not private, loopback, link-local, shared, multicast or reserved."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return not any(ip in network for network in _SPECIAL_V4)
    inner = ip.ipv4_mapped or ip.sixtofour or (ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else None)
    if inner is not None:
        return is_public(str(inner))
    return ip in _GLOBAL_V6 and not any(ip in network for network in _SPECIAL_V6)


async def resolve(host: str, port: int) -> Sequence[str]:
    """All addresses of `host`; raises OSError if there are none."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class RemoteImages:
    """Fetches images.

    Args:
        hosts: allowed hosts: ``example.org``, ``*.example.org``, ``example.org:8443``, ``*``; empty for none.
        max_bytes: size of an image.
        timeout_s: for one image, redirects included.
        resolve, is_allowed: for tests: the addresses of a name, and which of them may be connected to.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        *,
        max_bytes: int,
        timeout_s: float,
        resolve: Resolve = resolve,
        is_allowed: Callable[[str], bool] = is_public,
    ) -> None:
        self._hosts = tuple(host.lower().rstrip(".") for host in hosts)
        self._max_bytes, self._timeout_s = max_bytes, timeout_s
        self._resolve, self._is_allowed = resolve, is_allowed

    async def fetch(self, url: str) -> bytes:
        """The bytes behind `url`.

        Raises:
            ApiError: not allowed, not reachable, too large, too slow. Says nothing about the server's own network.
        """
        if not self._hosts:
            raise invalid(
                "This server fetches no images from URLs. Send the image as a data URI: "
                "data:image/png;base64,<payload>.",
                code="remote_images_disabled",
            )
        try:
            return await asyncio.wait_for(self._fetch(url), self._timeout_s)
        except asyncio.TimeoutError as error:
            raise _unreachable(f"The image took longer than {self._timeout_s} s.") from error
        except (httpx.HTTPError, httpx.StreamError, OSError, UnicodeError) as error:  # UnicodeError: not a DNS name
            raise _unreachable("The image's host cannot be reached.") from error

    async def _fetch(self, url: str) -> bytes:
        async with httpx.AsyncClient(trust_env=False, timeout=self._timeout_s, follow_redirects=False) as client:
            for _ in range(_MAX_REDIRECTS + 1):
                answer = await self._request(client, url)
                if isinstance(answer, bytes):
                    return answer
                url = urljoin(url, answer)
        raise _unreachable(f"The image's URL redirects more than {_MAX_REDIRECTS} times.")

    async def _request(self, client: httpx.AsyncClient, text: str) -> bytes | str:
        """An image's bytes, or the URL of a redirect."""
        url = self._checked_url(text)
        address = await self._checked_address(url)
        # The certificate is checked against the name; the connection goes to the address.
        request = client.stream(
            "GET",
            url.copy_with(host=address),
            headers={"Host": url.netloc.decode("ascii"), "User-Agent": "fastvlm", "Accept-Encoding": "identity"},
            extensions={"sni_hostname": url.raw_host.decode("ascii")},
        )
        async with request as response:
            if response.status_code in _REDIRECTS and "location" in response.headers:
                return str(response.headers["location"])
            return await self._body(response)

    def _checked_url(self, text: str) -> httpx.URL:
        try:
            url = httpx.URL(text)
        except (httpx.InvalidURL, ValueError) as error:
            raise _refused() from error
        if url.scheme not in _DEFAULT_PORTS or not url.raw_host or url.userinfo or not self._is_listed(url):
            raise _refused()
        return url.copy_with(fragment=None)

    def _is_listed(self, url: httpx.URL) -> bool:
        host, port = url.raw_host.decode("ascii").lower().rstrip("."), url.port or _DEFAULT_PORTS[url.scheme]
        for entry in self._hosts:
            name, _, own_port = entry.partition(":")
            is_same_port = port == int(own_port) if own_port else url.port is None
            if is_same_port and (name in ("*", host) or (name.startswith("*.") and host.endswith(name[1:]))):
                return True
        return False

    async def _checked_address(self, url: httpx.URL) -> str:
        """The first address of the URL's host, all of which must be allowed."""
        port = url.port or _DEFAULT_PORTS[url.scheme]
        addresses = await self._resolve(url.raw_host.decode("ascii"), port)
        if not addresses or not all(self._is_allowed(address) for address in addresses):
            raise _refused()
        return addresses[0]

    async def _body(self, response: httpx.Response) -> bytes:
        if response.status_code != httpx.codes.OK:
            raise _unreachable(f"The image's host answered with HTTP status {response.status_code}.")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise _unreachable("The image's host sent compressed data, which was not requested.")
        body = bytearray()
        async for piece in response.aiter_raw():
            body += piece
            if len(body) > self._max_bytes:
                message = f"The image has more than {self._max_bytes} bytes, which is the limit (max_image_bytes)."
                raise invalid(message, code="image_too_large")
        return bytes(body)


def _unreachable(message: str) -> ApiError:
    return invalid(message, code="image_unreachable")


def _refused() -> ApiError:
    """One error for all reasons: the reason would reveal details of the server's own network."""
    return invalid(
        "This server may not fetch the image's URL. Send the image as a data URI.",
        code="image_url_not_allowed",
    )
