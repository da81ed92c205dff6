"""`fastvlm serve`: an OpenAI-compatible server, and a web page."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from fastvlm.backends.native.openmp import configure_openmp
from fastvlm.cli.choices import ModelChoice
from fastvlm.cli.mini_notice import tell_once
from fastvlm.cli.options import DebugOption, QuietOption
from fastvlm.cli.serve_options import chosen_settings, with_setting_options
from fastvlm.cli.terminal import Notes, in_bytes, quiet_libraries, quiet_warnings, say
from fastvlm.errors import MissingExtraError
from fastvlm.formats.places import adapter_folder, checkpoint_path
from fastvlm.server.setting_sources import read_settings
from fastvlm.server.settings import ServeSettings

_PACKAGES = ("starlette", "uvicorn", "pydantic", "llguidance", "prometheus-client")  # of the extra `serve`


@with_setting_options
def serve(
    config: Annotated[
        str | None,
        typer.Option("--config", metavar="FILE", help="Settings in TOML; the environment and options override it."),
    ] = None,
    is_quiet: QuietOption = False,
    is_debug: DebugOption = False,
    **options: Any,
) -> None:
    """Serve a model through the APIs of OpenAI, Ollama and Anthropic, and a web page, until Ctrl-C.

    Each setting can also be set in the environment (FASTVLM_SERVE_MAX_IMAGES=4) or in a TOML file (max_images = 4);
    options override the environment, the environment the file. API keys come from a file or from
    FASTVLM_SERVE_API_KEYS, never from options, which other users of the machine can see.

    \b
    Examples:
      fastvlm serve
      fastvlm serve --model apple/FastVLM-0.5B --port 8080 --slots 8
      fastvlm serve --host 0.0.0.0 --api-keys-file keys.txt
      fastvlm serve --config serve.toml --access-log
      fastvlm serve --adapter receipts=out/receipts-lora
    """
    _check_extra()
    settings = read_settings(chosen_settings(options), os.environ, config)
    _run(settings, Notes(is_quiet=is_quiet), is_quiet=is_quiet, is_debug=is_debug)


def _check_extra() -> None:
    """Raise MissingExtraError for the first package of the extra `serve` that is not installed."""
    from importlib.util import find_spec

    for package in _PACKAGES:
        if find_spec(package.replace("-", "_")) is None:
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
        encoder_bits=settings.encoder_bits,
    )
    configure_openmp()
    for adapter in settings.adapter_folders.values():
        adapter_folder(adapter)  # errors are reported before anything is imported or fetched
    quiet_warnings(is_quiet=is_quiet, is_debug=is_debug)
    folder = checkpoint_path(choice.name, revision=choice.revision)  # the Hub shows a bar of its own
    tell_once(folder, notes)
    with notes.waiting("Starting"):
        quiet_libraries(is_quiet=is_quiet, is_debug=is_debug)
        from fastvlm.server.engines import open_engines
        from fastvlm.server.process import serve as serve_until_stopped
        from fastvlm.web import page_folder
    report = (lambda *_: None) if is_quiet else say  # also without a terminal: the log says where the server is

    def on_adapter(name: str, own_bytes: int) -> None:
        weights = f"{in_bytes(own_bytes)} of decoder weights besides those of {settings.served_name}"
        report("adapter", f"{name}: {weights}")

    serve_until_stopped(
        settings,
        lambda: open_engines(settings, on_adapter),
        page=page_folder() if settings.page else None,
        on_listening=lambda url: report("opening", f"{choice.name}; {url} answers 503 until it is ready"),
        on_ready=lambda url: report("serving", f"{settings.served_name} at {url}  (API {url}/v1, docs {url}/docs)"),
    )
