"""`fastvlm serve`: an OpenAI-compatible server, and a page."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastvlm.cli import serve_options as options
from fastvlm.cli.choices import ModelChoice
from fastvlm.cli.mini_notice import tell_once
from fastvlm.cli.options import DebugOption, QuietOption
from fastvlm.cli.serve_engines import open_engines
from fastvlm.cli.terminal import Notes, quiet_libraries, quiet_warnings, say
from fastvlm.errors import MissingExtraError
from fastvlm.formats.places import adapter_folder, checkpoint_path

if TYPE_CHECKING:
    from fastvlm.server.settings import ServeSettings

__all__ = ["serve"]

# Modules of the extra, and the packages that bring them.
_NEEDED = {
    "starlette": "starlette",
    "uvicorn": "uvicorn",
    "pydantic": "pydantic",
    "llguidance": "llguidance",
    "prometheus_client": "prometheus-client",
}


def serve(
    model: options.Model = None,
    revision: options.Revision = None,
    name: options.Name = None,
    adapters: options.Adapters = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    bits: options.Bits = None,
    image_fit: options.Fit = None,
    image_size: options.ImageSize = None,
    replicas: options.Replicas = None,
    slots: options.Slots = None,
    admission_ratio: options.AdmissionRatio = None,
    context: options.Context = None,
    image_cache_bytes: options.ImageCacheBytes = None,
    pixel_cache_bytes: options.PixelCacheBytes = None,
    host: options.Host = None,
    port: options.Port = None,
    api_keys_file: options.ApiKeysFile = None,
    cors_origins: options.CorsOrigins = None,
    has_no_page: options.NoPage = False,
    access_log: options.AccessLog = False,
    remote_hosts: options.RemoteHosts = None,
    remote_timeout_s: options.RemoteSeconds = None,
    max_images: options.MaxImages = None,
    max_image_bytes: options.MaxImageBytes = None,
    max_image_pixels: options.MaxImagePixels = None,
    image_workers: options.ImageWorkers = None,
    image_timeout_s: options.ImageSeconds = None,
    image_memory_bytes: options.ImageMemoryBytes = None,
    max_body_bytes: options.MaxBodyBytes = None,
    max_prompt_tokens: options.MaxPromptTokens = None,
    max_output_tokens: options.MaxOutputTokens = None,
    max_choices: options.MaxChoices = None,
    max_waiting: options.MaxWaiting = None,
    max_receiving: options.MaxReceiving = None,
    max_connections: options.MaxConnections = None,
    header_timeout_s: options.HeaderSeconds = None,
    min_body_rate: options.MinBodyRate = None,
    request_timeout_s: options.RequestSeconds = None,
    shutdown_grace_s: options.GraceSeconds = None,
    config: options.Config = None,
    is_quiet: QuietOption = False,
    is_debug: DebugOption = False,
) -> None:
    """Serve a model to OpenAI's clients, and a page to people, until Ctrl-C.

    Each setting may also stand in the environment (FASTVLM_SERVE_MAX_IMAGES=4) or in a TOML file (max_images = 4);
    options win over the environment, the environment over the file. API keys stand in a file or in
    FASTVLM_SERVE_API_KEYS, never among the options, which other users of the machine can see.

    \b
    Examples:
      fastvlm serve
      fastvlm serve --model apple/FastVLM-0.5B --port 8080 --slots 8
      fastvlm serve --host 0.0.0.0 --api-keys-file keys.txt
      fastvlm serve --config serve.toml --access-log
      fastvlm serve --adapter receipts=out/receipts-lora
    """
    told = dict(locals())
    _check_extra()
    from fastvlm.server.setting_sources import read_settings

    settings = read_settings(_given(told), os.environ, config)
    _run(settings, Notes(is_quiet=is_quiet), is_quiet=is_quiet, is_debug=is_debug)


def _given(told: Mapping[str, Any]) -> dict[str, Any]:
    """What was typed, by the settings' names."""
    plain = ("has_no_page", "access_log", "config", "is_quiet", "is_debug")
    given = {name: value for name, value in told.items() if name not in plain and value is not None}
    for name in ("adapters", "cors_origins", "remote_hosts"):
        if name in given:
            given[name] = tuple(given[name])
    if told["has_no_page"]:
        given["page"] = False
    if told["access_log"]:
        given["access_log"] = True
    return given


def _check_extra() -> None:
    """Raise MissingExtraError for the first package of the extra that is not there."""
    from importlib.util import find_spec

    for module, package in _NEEDED.items():
        if find_spec(module) is None:
            raise MissingExtraError(package, "serve", "fastvlm serve")


def _run(settings: ServeSettings, notes: Notes, *, is_quiet: bool, is_debug: bool) -> None:
    choice = ModelChoice(
        settings.model,
        settings.revision,
        settings.device,
        settings.dtype,
        settings.image_fit,
        settings.image_size,
        settings.bits,
    )
    for adapter in settings.adapter_folders.values():
        adapter_folder(adapter)  # what is wrong is told before anything is imported or fetched
    quiet_warnings(is_quiet=is_quiet, is_debug=is_debug)
    folder = checkpoint_path(choice.name, revision=choice.revision)  # the Hub shows a bar of its own
    tell_once(folder, notes)
    with notes.waiting("Starting"):
        quiet_libraries(is_quiet=is_quiet, is_debug=is_debug)
        from fastvlm.server.process import serve as serve_until_stopped
        from fastvlm.web import page_folder
    tell = _silence if is_quiet else say  # also without a terminal: a log that says where the server is
    serve_until_stopped(
        settings,
        lambda: open_engines(folder, choice, settings, tell),
        page=page_folder() if settings.page else None,
        on_listening=lambda url: tell("opening", f"{choice.name}; {url} answers 503 until it is ready"),
        on_ready=lambda url: tell("serving", f"{settings.served_name} at {url}  (API {url}/v1, docs {url}/docs)"),
    )


def _silence(kind: str, message: str) -> None:
    """What says nothing."""
