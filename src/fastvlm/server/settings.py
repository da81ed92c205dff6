"""Everything that can be chosen about a server: one frozen record, checked. Loads neither torch nor a web framework."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, fields
from pathlib import Path

from fastvlm.engine.types import BITS
from fastvlm.errors import UsageError

__all__ = ["ServeSettings", "is_loopback"]

_HOST = re.compile(r"(\*|(\*\.)?[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*\.?)(:\d{1,5})?")
_ORIGIN = re.compile(r"\*|https?://[^/\s*]+")
_MIN_IMAGE_MEMORY_BYTES = 2**28
_MIN_KEY_LENGTH = 16  # characters; 16 random letters and digits hold 95 bits


@dataclass(frozen=True)
class ServeSettings:
    """What `fastvlm serve` does. `_bytes`, `_pixels`, `_tokens` and `_s` are units.

    Args:
        model, revision, device, dtype, bits, image_fit, image_size: which checkpoint and how it runs, as in `ask`.
        name: what clients call the model; None for the checkpoint's own name.
        adapters: LoRA adapters that are served beside the model, each ``NAME=FOLDER`` with the name that clients use.
        replicas: engines in this process for each name, with caches and slots of their own.
        slots: replies that one replica makes at the same time.
        admission_ratio: how long a new request's images and prompt are worked on between two tokens of running
            replies, in decoding steps: large numbers start requests sooner, small ones keep replies flowing.
        context: tokens of one conversation, reply included; None for what the model was made for.
        host, port: where to listen; port 0 for any free one.
        api_keys: clients must have one of them; empty for anyone, which only a loopback host may allow.
        api_keys_file: a file with further keys, one a line.
        cors_origins: pages elsewhere that may ask, as ``https://example.org``; ``*`` for all.
        page: show the page at ``/``.
        access_log: one line on stderr for each request.
        remote_hosts: hosts whose images are fetched, ``example.org``, ``*.example.org``, ``example.org:8443``, or
            ``*`` for any public one; empty for none.
        remote_timeout_s: seconds that fetching one image may take, redirects included.
        max_body_bytes: of one request.
        max_image_bytes, max_image_pixels: of one image, encoded, and its width x height.
        max_images: in one request.
        image_workers: processes that decode images, one each at a time; requests without images never wait for them.
        image_timeout_s: seconds that decoding one image may take.
        image_memory_bytes: address space of one such process. 40 million pixels take up to 1.2 GB (WebP with alpha).
        max_prompt_tokens: of one request, those of images included; None for what the context leaves.
        max_output_tokens: of one reply; also what a request gets that names no limit.
        max_choices: replies to one request (`n`).
        max_waiting: requests that wait for a slot of one replica; more are answered with 429.
        max_receiving: requests with large bodies (above 64 KiB) that are received at the same time, half of them from
            one client, which bounds the memory for them.
        max_connections: at the same time, half of them from one client (an IPv4 address, an IPv6 /64 network).
        header_timeout_s: seconds for the header of one request.
        min_body_rate: bytes a second that a body must bring, counted after the first `header_timeout_s` seconds.
        request_timeout_s: seconds for one request, from its first byte to the reply's last.
        shutdown_grace_s: seconds that running replies get after SIGTERM.
        image_cache_bytes, pixel_cache_bytes: memory for known images, encoded and prepared, of one replica.

    Raises:
        UsageError: a value that no server can have, or a server that anyone on the network could use without a key.
    """

    model: str = "mini"
    revision: str | None = None
    device: str | None = None
    dtype: str = "auto"
    bits: int = 16
    image_fit: str | None = None
    image_size: str | None = None
    name: str | None = None
    adapters: tuple[str, ...] = ()
    replicas: int = 1
    slots: int = 4
    admission_ratio: float = 4.0
    context: int | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    api_keys_file: str | None = None
    cors_origins: tuple[str, ...] = ()
    page: bool = True
    access_log: bool = False
    remote_hosts: tuple[str, ...] = ()
    remote_timeout_s: float = 10.0
    max_body_bytes: int = 20 * 2**20
    max_image_bytes: int = 15 * 2**20
    max_image_pixels: int = 40_000_000
    max_images: int = 8
    image_workers: int = 2
    image_timeout_s: float = 20.0
    image_memory_bytes: int = 3 * 2**29
    max_prompt_tokens: int | None = None
    max_output_tokens: int = 1024
    max_choices: int = 8
    max_waiting: int = 64
    max_receiving: int = 32
    max_connections: int = 512
    header_timeout_s: float = 10.0
    min_body_rate: int = 2**14
    request_timeout_s: float = 300.0
    shutdown_grace_s: float = 30.0
    image_cache_bytes: int = 2**28
    pixel_cache_bytes: int = 2**26

    def __post_init__(self) -> None:
        for field in fields(self):
            self._check_number(field.name, getattr(self, field.name))
        _check("port", self.port, self.port <= 65535, "0 to 65535")
        _check("bits", self.bits, self.bits in BITS, "16, 8 or 4")
        least = f"{_MIN_IMAGE_MEMORY_BYTES} or more: libraries alone take half of it"
        _check("image_memory_bytes", self.image_memory_bytes, self.image_memory_bytes >= _MIN_IMAGE_MEMORY_BYTES, least)
        self._check_adapters()
        for host in self.remote_hosts:
            _check("remote_hosts", host, _HOST.fullmatch(host) is not None, "a host such as images.example.org")
        for origin in self.cors_origins:
            _check("cors_origins", origin, _ORIGIN.fullmatch(origin) is not None, "an origin, https://example.org")
        object.__setattr__(self, "api_keys", (*self.api_keys, *_keys_in(self.api_keys_file)))
        object.__setattr__(self, "api_keys_file", None)  # read once
        if any(len(key) < _MIN_KEY_LENGTH or not key.isascii() or not key.isprintable() for key in self.api_keys):
            raise UsageError(
                f"An API key is too short or has characters that no header can carry; expected {_MIN_KEY_LENGTH} or "
                'more printable ones. Make one: python -c "import secrets; print(secrets.token_urlsafe(32))"'
            )
        if not self.api_keys and not is_loopback(self.host):
            raise UsageError(
                f"host is {self.host!r}, which others can reach, and there are no API keys: anyone could use this "
                "server. Set FASTVLM_SERVE_API_KEYS or --api-keys-file, or listen on 127.0.0.1."
            )

    def _check_number(self, name: str, value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return
        lowest = 0 if name in ("port", "max_images", "image_cache_bytes", "pixel_cache_bytes") else 1
        lowest_ok = value > 0 if name.endswith("_s") else value >= lowest  # False for NaN
        _check(name, value, lowest_ok and value < 2**53, f"{'above 0' if name.endswith('_s') else f'{lowest} or more'}")

    def _check_adapters(self) -> None:
        names = {self.served_name}
        for adapter in self.adapters:
            name, _, folder = adapter.partition("=")
            _check("adapters", adapter, bool(name and folder), "NAME=FOLDER")
            if name in names:
                raise UsageError(f"adapters has {name!r} twice, or it is the model's own name. Name it otherwise.")
            names.add(name)

    @property
    def adapter_folders(self) -> dict[str, str]:
        """Name -> folder of each adapter, in their order."""
        return {name: folder for name, _, folder in (adapter.partition("=") for adapter in self.adapters)}

    @property
    def served_names(self) -> tuple[str, ...]:
        """All names that clients may ask for: the model's, then the adapters'."""
        return (self.served_name, *self.adapter_folders)

    @property
    def served_name(self) -> str:
        """What clients call the model: a Hub name as it is, a folder's last part."""
        return self.name or (Path(self.model).resolve().name if Path(self.model).is_dir() else self.model)


def is_loopback(host: str) -> bool:
    """True if only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _check(name: str, value: object, is_right: bool, expected: str) -> None:
    if not is_right:
        raise UsageError(f"{name} is {value!r}; expected {expected}.")


def _keys_in(file: str | None) -> tuple[str, ...]:
    """One key a line; empty lines and those that begin with # are none."""
    if file is None:
        return ()
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise UsageError(f"The file of API keys {file!r} cannot be read ({reason}).") from error
    keys = tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    if not keys:
        raise UsageError(f"The file of API keys {file!r} has no key in it; expected one a line.")
    return keys
