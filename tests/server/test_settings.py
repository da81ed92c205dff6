"""Settings: what may be chosen, from where, and what is refused."""

import pytest

from fastvlm.errors import UsageError
from fastvlm.server.setting_sources import read_settings
from fastvlm.server.settings import FORMER_NAMES, ServeSettings, declared_settings, is_loopback

KEY = "0123456789abcdef"


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(tmp_path):
    file = tmp_path / "serve.toml"
    file.write_text('port = 1\nslots = 1\nmax_images = 1\nremote_hosts = ["a.example"]\nrequest_timeout_s = 5\n')
    environment = {"FASTVLM_SERVE_SLOTS": "2", "FASTVLM_SERVE_MAX_IMAGES": "2", "HOME": "/"}
    settings = read_settings({"max_images": 3}, environment, file)
    assert (settings.port, settings.slots, settings.max_images) == (1, 2, 3)
    assert settings.remote_hosts == ("a.example",) and settings.request_timeout_s == 5
    assert settings.max_choices == ServeSettings().max_choices


def test_the_environment_names_the_file_too(tmp_path):
    (tmp_path / "a.toml").write_text("page = false")
    assert not read_settings({}, {"FASTVLM_SERVE_CONFIG": str(tmp_path / "a.toml")}).page


@pytest.mark.parametrize(("former", "present"), FORMER_NAMES.items())
def test_names_of_version_0_1_go_on_working(tmp_path, former, present):
    assert former not in declared_settings()
    assert getattr(read_settings({}, {f"FASTVLM_SERVE_{former.upper()}": "5"}), present) == 5
    file = tmp_path / "serve.toml"
    file.write_text(f"{former} = 6")
    assert getattr(read_settings({}, {}, file), present) == 6
    assert getattr(read_settings({}, {f"FASTVLM_SERVE_{present.upper()}": "7"}, file), present) == 7
    file.write_text(f"{former} = 6\n{present} = 6")
    with pytest.raises(UsageError, match=f"set twice, as {present} and under its former name"):
        read_settings({}, {}, file)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("page", "off", False),
        ("access_log", "TRUE", True),
        ("remote_hosts", "a.example, *.b.example", ("a.example", "*.b.example")),
        ("remote_timeout_s", "2.5", 2.5),
        ("context", "512", 512),
        ("api_keys", KEY, (KEY,)),
    ],
)
def test_texts_of_the_environment_become_values(name, text, value):
    assert getattr(read_settings({}, {f"FASTVLM_SERVE_{name.upper()}": text}), name) == value


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"FASTVLM_SERVE_PROT": "1"}, "FASTVLM_SERVE_PROT is not a setting. Known settings: model"),
        ({"FASTVLM_SERVE_PORT": "eighty"}, "FASTVLM_SERVE_PORT is 'eighty'; expected a whole number"),
        ({"FASTVLM_SERVE_PAGE": "maybe"}, "expected true or false"),
        ({"FASTVLM_SERVE_CONFIG": "/nowhere/a.toml"}, "cannot be read"),
    ],
)
def test_mistakes_in_the_environment_are_named(environment, words):
    with pytest.raises(UsageError, match=words):
        read_settings({}, environment)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("prot = 1", "prot in '.*' is not a setting"),
        ("port = '1'", "port in .* expected a whole number"),
        ("port = true", "expected a whole number"),
        ("remote_hosts = 'a'", "expected a list of strings"),
        ("port = ", "is not valid TOML"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path, content, words):
    (tmp_path / "a.toml").write_text(content)
    with pytest.raises(UsageError, match=words):
        read_settings({}, {}, tmp_path / "a.toml")


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 70000},
        {"slots": 0},
        {"bits": 5},
        {"prompt_lookup": 0},
        {"prompt_lookup": 65},
        {"request_timeout_s": 0},
        {"remote_timeout_s": float("nan")},
        {"remote_hosts": ("http://a.example",)},
        {"adapters": ("name",)},
        {"adapters": ("=folder",)},
        {"adapters": ("a=x", "a=y")},
        {"adapters": ("mini=x",)},
        {"cors_origins": ("example.org",)},
        {"accepts": ("png",)},
        {"api_keys": ("short",)},
        {"api_keys": ("with\nnewline and long",)},
    ],
)
def test_values_that_no_server_can_have_are_refused(wrong):
    with pytest.raises(UsageError):
        ServeSettings(**wrong)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", ""])
def test_a_server_that_others_reach_needs_keys(host):
    with pytest.raises(UsageError, match="no API keys: anyone could use this"):
        ServeSettings(host=host)
    assert ServeSettings(host=host, api_keys=(KEY,)).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost", "LOCALHOST"])
def test_this_machine_alone_needs_none(host):
    assert is_loopback(host) and ServeSettings(host=host)


def test_keys_come_from_a_file(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# ours\n\n{KEY}\n  {KEY}2 \n")
    settings = ServeSettings(host="0.0.0.0", api_keys_file=str(file))
    assert settings.api_keys == (KEY, KEY + "2") and settings.api_keys_file is None
    file.write_text("# none\n")
    with pytest.raises(UsageError, match="has no key"):
        ServeSettings(api_keys_file=str(file))
    with pytest.raises(UsageError, match="cannot be read"):
        ServeSettings(api_keys_file=str(tmp_path / "nothing"))


def test_the_name_is_the_checkpoints(tmp_path):
    folder = tmp_path / "my-model"
    folder.mkdir()
    assert ServeSettings(model=str(folder)).served_name == "my-model"
    assert ServeSettings(model="apple/FastVLM-0.5B").served_name == "apple/FastVLM-0.5B"
    assert ServeSettings(name="x").served_name == "x"


def test_adapters_have_names_and_folders():
    settings = read_settings({}, {"FASTVLM_SERVE_ADAPTERS": "a=out/a, b=x=y"})
    assert settings.adapter_folders == {"a": "out/a", "b": "x=y"}
    assert settings.served_names == ("mini", "a", "b")
    assert ServeSettings(name="mine", adapters=("mini=x",)).served_names == ("mine", "mini")
