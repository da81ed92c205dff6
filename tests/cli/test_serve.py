"""`fastvlm serve` before it serves: its help, its extra, what it was told."""

import re
import sys

import pytest
from cli_process import plain_environment

from fastvlm.cli.serve import _given
from fastvlm.errors import MissingExtraError
from fastvlm.server.settings import ServeSettings


def test_help_groups_its_options_and_names_only_what_exists(fastvlm):
    page = fastvlm("serve", "--help").out
    titles = re.findall(r"^(\w+):$", page, re.MULTILINE)
    assert titles == ["Model", "Network", "Images", "Limits", "Options"]
    flags = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", page.partition("Model:\n")[2]))
    examples = page.partition("Examples:\n")[2].partition("\n\n")[0]
    assert set(re.findall(r" (--?[a-z][a-z-]*)", examples)) <= flags


def test_defaults_in_the_help_are_the_settings_own(fastvlm):
    page = " ".join(fastvlm("serve", "--help").out.split())
    settings = ServeSettings()
    for flag, value in {
        "--port PORT": settings.port,
        "--slots N": settings.slots,
        "--admission-ratio N": f"{settings.admission_ratio:g}",
        "--max-body-bytes N": settings.max_body_bytes,
        "--max-image-bytes N": settings.max_image_bytes,
        "--max-image-pixels N": settings.max_image_pixels,
        "--max-images N": settings.max_images,
        "--max-output-tokens N": settings.max_output_tokens,
        "--max-choices N": settings.max_choices,
        "--max-waiting N": settings.max_waiting,
        "--max-receiving N": settings.max_receiving,
        "--request-timeout SECONDS": f"{settings.request_timeout_s:g}",
        "--shutdown-grace SECONDS": f"{settings.shutdown_grace_s:g}",
        "--remote-timeout SECONDS": f"{settings.remote_timeout_s:g}",
        "--image-cache-bytes N": settings.image_cache_bytes,
        "--pixel-cache-bytes N": settings.pixel_cache_bytes,
    }.items():
        assert re.search(rf"{flag} [^[]*\[default: {value}\]", page), flag


def test_what_was_not_typed_is_left_to_the_environment():
    told = {"port": 1, "slots": None, "has_no_page": False, "access_log": False, "cors_origins": ["a"], "config": "x"}
    assert _given({**told, "is_debug": True, "is_quiet": True}) == {"port": 1, "cors_origins": ("a",)}
    assert _given({**told, "has_no_page": True, "access_log": True})["page"] is False


def test_every_option_is_a_setting(fastvlm):
    from dataclasses import fields
    from inspect import signature

    from fastvlm.cli.serve import serve

    own = {"has_no_page", "config", "is_quiet", "is_debug"}
    settings = {field.name for field in fields(ServeSettings)} - {"page", "api_keys"}
    assert set(signature(serve).parameters) - own == settings


def test_without_the_extra_there_is_one_line_that_names_it(fastvlm, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "uvicorn" else object())
    outcome = fastvlm("serve")
    assert outcome.code == 1
    assert outcome.error == str(MissingExtraError("uvicorn", "serve", "fastvlm serve"))
    assert "pip install 'fastvlm[serve]'" in outcome.error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "there are no API keys"),
        (["--bits", "5"], "bits is 5; expected 16, 8 or 4"),
        (["--dtype", "int3"], "--dtype is 'int3'"),
        (["--config", "nowhere.toml"], "cannot be read"),
        (["--adapter", "x"], "adapters is 'x'; expected NAME=FOLDER"),
    ],
)
def test_mistakes_are_one_line(fastvlm, arguments, words):
    outcome = fastvlm("serve", *arguments)
    assert outcome.code == 2 and words in outcome.error


def test_help_loads_nothing_heavy():
    import subprocess

    code = (
        "import sys; from fastvlm.cli.main import main; main(['serve', '--help']); "
        "print([name for name in ('torch', 'starlette', 'uvicorn', 'llguidance') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], env=plain_environment(), capture_output=True, check=True)
    assert done.stdout.decode().splitlines()[-1] == "[]"
