"""Settings of `fastvlm serve`, each declared once. Loads neither torch nor a web framework.

A field of :class:`ServeSettings` is all there is to a setting: its name, type, default, lowest value and description
make the option on the command line, the variable of the environment and the key of the TOML file.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

from fastvlm.config import BITS, ENCODER_BITS
from fastvlm.engine.types import check_lookup
from fastvlm.errors import UsageError

# Names of version 0.1, still read from the environment and from files.
FORMER_NAMES = {
    "max_pictures": "max_images",
    "max_picture_bytes": "max_image_bytes",
    "max_picture_pixels": "max_image_pixels",
    "picture_memo_bytes": "pixel_cache_bytes",
}
_HOST = re.compile(r"(\*|(\*\.)?[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*\.?)(:\d{1,5})?")
_ORIGIN = re.compile(r"\*|https?://[^/\s*]+")
_MIN_KEY_LENGTH = 16  # characters; 16 random letters and digits hold 95 bits
_MIN_IMAGE_MEMORY_BYTES = 2**28  # libraries alone take half of it
_MODEL, _NETWORK, _IMAGES, _LIMITS = "Model", "Network", "Images", "Limits"


@dataclass(frozen=True)
class Setting:
    """The declaration of one setting.

    Args:
        group: title above the option on the help page; empty for a setting without an option.
        default: its value if it is set nowhere.
        text: what it does; for a flag, what the flag does.
        metavar: what stands for the value on the help page.
        short: a one-letter option.
        least: the lowest value of an integer.
        name, kind: of the field; str, int, float, bool or tuple.
    """

    group: str
    default: Any
    text: str
    metavar: str = "N"
    short: str = ""
    least: int = 1
    name: str = ""
    kind: type = str

    @property
    def flag(self) -> str:
        """The option's name: without the unit of seconds, in the singular for lists, ``--no-`` for what is on."""
        flag = self.name.removesuffix("_s") if self.kind is float else self.name
        flag = flag.removesuffix("s") if self.kind is tuple else flag
        return ("--no-" if self.default is True else "--") + flag.replace("_", "-")

    @property
    def help(self) -> str:
        """The description, with the default."""
        if self.kind in (bool, tuple) or self.default is None:
            return self.text
        return f"{self.text}  [default: {f'{self.default:g}' if isinstance(self.default, float) else self.default}]"

    def check_range(self, value: object) -> None:
        """Raise UsageError for a number out of range: seconds are above 0, integers `least` or more."""
        if self.kind in (int, float) and isinstance(value, (int, float)):
            is_seconds = self.name.endswith("_s")
            is_in_range = (value > 0 if is_seconds else value >= self.least) and value < 2**53  # False for NaN
            _check(self.name, value, is_in_range, "above 0" if is_seconds else f"{self.least} or more")


def _setting(*declaration: Any, **more: Any) -> Any:
    """A field of :class:`ServeSettings`; arguments as for :class:`Setting`."""
    setting = Setting(*declaration, **more)
    return field(default=setting.default, metadata={"setting": setting})


@dataclass(frozen=True)
class ServeSettings:
    """The settings of one server. `_bytes`, `_pixels`, `_tokens` and `_s` (seconds) are units.

    Raises:
        UsageError: a value out of range, or a server that others on the network could use without an API key.
    """

    # fmt: off
    model: str = _setting(_MODEL, "mini", "The shipped 'mini', a folder, or a Hub name.", metavar="MODEL", short="-m")
    revision: str | None = _setting(_MODEL, None, "Branch, tag or commit of a Hub name.", metavar="REV")
    name: str | None = _setting(_MODEL, None, "Model name for clients; if not given, as --model.", metavar="NAME")
    adapters: tuple[str, ...] = _setting(
        _MODEL, (), "A LoRA adapter to serve under that name; repeatable.", metavar="NAME=FOLDER")
    device: str | None = _setting(_MODEL, None, "cpu, cuda, cuda:1, mps; a GPU if there is one.", metavar="DEVICE")
    dtype: str = _setting(_MODEL, "auto", "auto, float32, bfloat16, float16.", metavar="DTYPE")
    bits: int = _setting(_MODEL, 16, "Bits of the decoder's weights on a CPU: 16, 8, 4.", metavar="BITS")
    encoder_bits: int = _setting(_MODEL, 16, "Bits of the image encoder's weights on a CPU: 16, 8.", metavar="BITS")
    image_fit: str | None = _setting(
        _MODEL, None, "pad, crop or stretch; if not given, the checkpoint's.", metavar="FIT")
    image_size: str | None = _setting(
        _MODEL, None, "Side in pixels, or HEIGHTxWIDTH; multiples of 64.", metavar="SIZE")
    replicas: int = _setting(_MODEL, 1, "Engines per model name, each with its own slots and caches.")
    slots: int = _setting(_MODEL, 4, "Replies that one engine generates together.")
    admission_ratio: float = _setting(
        _MODEL, 4.0, "Prefill a new request for the time of N decoding steps, then decode one token for the running "
        "ones: large values start requests sooner, small ones keep replies flowing.")
    context: int | None = _setting(
        _MODEL, None, "Tokens of a conversation, reply included; if not given, the model's own limit.",
        metavar="TOKENS")
    prompt_lookup: int | None = _setting(
        _MODEL, None, "Draft up to N tokens from what prompt and reply already contain and check them in one step: the "
        "same replies, sooner where they repeat text.", metavar="N")
    image_cache_bytes: int = _setting(_MODEL, 2**28, "Memory for encoded images, per engine.", least=0)
    pixel_cache_bytes: int = _setting(_MODEL, 2**26, "Memory for preprocessed images, per engine.", least=0)

    host: str = _setting(
        _NETWORK, "127.0.0.1", "Address to listen on; any but loopback needs API keys.", metavar="HOST")
    port: int = _setting(_NETWORK, 8000, "0 for any free port.", metavar="PORT", short="-p", least=0)
    api_keys: tuple[str, ...] = _setting("", (), "Clients need one of these keys.")
    api_keys_file: str | None = _setting(
        _NETWORK, None, "Clients need one of its keys, one per line.", metavar="FILE")
    cors_origins: tuple[str, ...] = _setting(
        _NETWORK, (), "Origin of pages that may send requests, https://example.org; repeatable, * for all.",
        metavar="ORIGIN")
    page: bool = _setting(_NETWORK, True, "No web page at /.")
    access_log: bool = _setting(_NETWORK, False, "One line on stderr per request.")

    remote_hosts: tuple[str, ...] = _setting(
        _IMAGES, (), "Fetch images from it: example.org, *.example.org, example.org:8443, * for any public one; "
        "repeatable.", metavar="HOST")
    remote_timeout_s: float = _setting(
        _IMAGES, 10.0, "To fetch one image, redirects included.", metavar="SECONDS")
    accepts: tuple[str, ...] = _setting(
        _IMAGES, (), "Take such files where an image may be: pdf, video; repeatable.", metavar="KIND")
    max_images: int = _setting(_IMAGES, 8, "Images in one request.", least=0)
    max_image_bytes: int = _setting(_IMAGES, 15 * 2**20, "Size of one image, encoded.")
    max_image_pixels: int = _setting(_IMAGES, 40_000_000, "Width x height of one image.")
    image_workers: int = _setting(_IMAGES, 2, "Processes that decode images, one image each at a time.")
    image_timeout_s: float = _setting(_IMAGES, 20.0, "To decode one image.", metavar="SECONDS")
    image_memory_bytes: int = _setting(
        _IMAGES, 3 * 2**29, "Address space of one decoding process.", least=_MIN_IMAGE_MEMORY_BYTES)

    lenient: bool = _setting(
        _LIMITS, False, "Ignore unknown parameters of requests, with one line of log for each; otherwise refuse them.")
    max_body_bytes: int = _setting(_LIMITS, 20 * 2**20, "Size of one request's body.")
    max_prompt_tokens: int | None = _setting(
        _LIMITS, None, "Tokens of a prompt, images included; if not given, what the context leaves.")
    max_output_tokens: int = _setting(_LIMITS, 1024, "Tokens of one reply; also the default of max_tokens.")
    max_choices: int = _setting(_LIMITS, 8, "Replies to one request (n).")
    max_waiting: int = _setting(_LIMITS, 64, "Replies that wait for a slot, per engine; more get 429.")
    max_receiving: int = _setting(
        _LIMITS, 32, "Bodies above 64 KiB received at the same time, half of them from one client.")
    max_connections: int = _setting(_LIMITS, 512, "Open connections, half of them from one client.")
    header_timeout_s: float = _setting(_LIMITS, 10.0, "To receive a request's header.", metavar="SECONDS")
    min_body_rate: int = _setting(
        _LIMITS, 2**14, "Lowest upload rate in bytes per second, counted after --header-timeout.")
    request_timeout_s: float = _setting(
        _LIMITS, 300.0, "From a request's first byte to the reply's last.", metavar="SECONDS")
    shutdown_grace_s: float = _setting(_LIMITS, 30.0, "For running replies after SIGTERM.", metavar="SECONDS")
    # fmt: on

    def __post_init__(self) -> None:
        for setting in declared_settings().values():
            setting.check_range(getattr(self, setting.name))
        _check("port", self.port, self.port <= 65535, "0 to 65535")
        _check("bits", self.bits, self.bits in BITS, "16, 8 or 4")
        _check("encoder_bits", self.encoder_bits, self.encoder_bits in ENCODER_BITS, "16 or 8")
        check_lookup(self.prompt_lookup, "prompt_lookup")
        for host in self.remote_hosts:
            _check("remote_hosts", host, _HOST.fullmatch(host) is not None, "a host such as images.example.org")
        for kind in self.accepts:
            _check("accepts", kind, kind in ("pdf", "video"), "pdf or video")
        for origin in self.cors_origins:
            _check("cors_origins", origin, _ORIGIN.fullmatch(origin) is not None, "an origin, https://example.org")
        self._check_adapters()
        self._check_keys()

    def _check_adapters(self) -> None:
        names = {self.served_name}
        for adapter in self.adapters:
            name, _, folder = adapter.partition("=")
            _check("adapters", adapter, bool(name and folder), "NAME=FOLDER")
            if name in names:
                raise UsageError(f"adapters has {name!r} twice, or it is the model's own name. Choose another name.")
            names.add(name)

    def _check_keys(self) -> None:
        """Add the keys of `api_keys_file` to `api_keys`, then check them."""
        if self.api_keys_file is not None:
            object.__setattr__(self, "api_keys", (*self.api_keys, *_read_keys(self.api_keys_file)))
            object.__setattr__(self, "api_keys_file", None)
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

    @property
    def adapter_folders(self) -> dict[str, str]:
        """Name -> folder of each adapter, in their order."""
        return {name: folder for name, _, folder in (adapter.partition("=") for adapter in self.adapters)}

    @property
    def served_names(self) -> tuple[str, ...]:
        """All model names that clients may use: the model's, then the adapters'."""
        return (self.served_name, *self.adapter_folders)

    @property
    def served_name(self) -> str:
        """The model's name for clients: a Hub name as it is, a folder's last part."""
        return self.name or (Path(self.model).resolve().name if Path(self.model).is_dir() else self.model)


@cache
def declared_settings() -> dict[str, Setting]:
    """Name -> declaration of each setting, in the order of the help page."""
    hints, settings = get_type_hints(ServeSettings), dict[str, Setting]()
    for one in fields(ServeSettings):
        kinds = [kind for kind in get_args(hints[one.name]) if kind is not type(None)] or [hints[one.name]]
        kind = tuple if Ellipsis in kinds else kinds[0]
        settings[one.name] = replace(one.metadata["setting"], name=one.name, kind=kind)
    return settings


def is_loopback(host: str) -> bool:
    """True if only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _check(name: str, value: object, is_right: bool, expected: str) -> None:
    if not is_right:
        raise UsageError(f"{name} is {value!r}; expected {expected}.")


def _read_keys(file: str) -> tuple[str, ...]:
    """The keys in `file`, one per line; empty lines and those that begin with # are skipped."""
    try:
        lines = map(str.strip, Path(file).read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UsageError(f"The file of API keys {file!r} cannot be read ({reason}).") from error
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise UsageError(f"The file of API keys {file!r} has no key in it; expected one per line.")
    return keys
