"""`fastvlm serve` before it serves: its help, its extra, its options."""

import re
import subprocess
import sys
from inspect import signature

import pytest
from cli_process import plain_environment

from fastvlm.cli.serve import serve
from fastvlm.cli.serve_options import chosen_settings
from fastvlm.errors import MissingExtraError
from fastvlm.server.settings import declared_settings


def test_help_groups_its_options_and_names_only_what_exists(fastvlm):
    page = fastvlm("serve", "--help").out
    titles = re.findall(r"^(\w+):$", page, re.MULTILINE)
    assert titles == ["Model", "Network", "Images", "Limits", "Options"]
    flags = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", page.partition("Model:\n")[2]))
    examples = page.partition("Examples:\n")[2].partition("\n\n")[0]
    assert set(re.findall(r" (--?[a-z][a-z-]*)", examples)) <= flags


def test_every_setting_is_an_option_with_its_default_and_help(fastvlm):
    page = " ".join(fastvlm("serve", "--help").out.split())
    for setting in declared_settings().values():
        if setting.name == "api_keys":  # other users of the machine can see options
            assert "--api-key " not in page
        else:
            assert f"{setting.flag} " in page and " ".join(setting.help.split()) in page, setting.name
    assert "--slots N Replies that one engine generates together. [default: 4]" in page


def test_flags_are_named_after_settings():
    flags = {setting.name: setting.flag for setting in declared_settings().values()}
    expected = {"page": "--no-page", "access_log": "--access-log", "adapters": "--adapter", "slots": "--slots"}
    expected |= {"request_timeout_s": "--request-timeout", "max_images": "--max-images"}
    assert {name: flags[name] for name in expected} == expected


def test_only_options_that_were_given_are_settings():
    given = {"port": 1, "slots": None, "page": None, "access_log": None, "cors_origins": ["a"]}
    assert chosen_settings(given) == {"port": 1, "cors_origins": ("a",)}
    assert chosen_settings({"page": True, "access_log": True}) == {"page": False, "access_log": True}


def test_every_option_is_a_setting():
    own = {"config", "is_quiet", "is_debug"}
    assert set(signature(serve).parameters) - own == set(declared_settings()) - {"api_keys"}


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
        (["--adapter", "x=."], "has no adapter_config.json"),
        (["--slots", "0"], "slots is 0; expected 1 or more"),
    ],
)
def test_mistakes_are_one_line(fastvlm, arguments, words):
    outcome = fastvlm("serve", *arguments)
    assert outcome.code in (1, 2) and words in outcome.error and "\n" not in outcome.error


@pytest.mark.parametrize("hidden", [(), ("starlette", "uvicorn", "llguidance")])
def test_help_needs_neither_torch_nor_the_extra(hidden):
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({hidden!r})); from fastvlm.cli.main import main; "
        "main(['serve', '--help']); "
        "print([name for name in ('torch', 'starlette', 'uvicorn', 'llguidance') if sys.modules.get(name)])"
    )
    done = subprocess.run([sys.executable, "-c", code], env=plain_environment(), capture_output=True, check=True)
    lines = done.stdout.decode().splitlines()
    assert lines[0].startswith("Usage: fastvlm serve") and lines[-1] == "[]"
