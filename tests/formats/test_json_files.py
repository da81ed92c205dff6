"""JSON that is too much."""

import json

import pytest

from fastvlm.errors import CheckpointError
from fastvlm.formats.json_files import check_text_files, parse_json, read_json, read_text


@pytest.mark.parametrize("text", ['{"a": [1, 2.5, -3e4, null, true, "x"]}', "18446744073709551615", "0"])
def test_what_pythons_json_reads_is_the_same(text):
    assert parse_json(text.encode()) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 200_000 + "]" * 200_000, "nested too deeply"),
        ('{"a":' * 200_000 + "1" + "}" * 200_000, "nested too deeply"),
        ("9" * 5000, "5000 digits"),
        ("1e999", "too large"),
        ("NaN", "not a number"),
        ("-Infinity", "not a number"),
        ("{", "JSON"),
        ("\xff", "JSON"),
    ],
)
def test_bombs_are_clear_errors(tmp_path, text, words):
    file = tmp_path / "config.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=f"config.json cannot be read as JSON.*{words}|{words}"):
        read_json(file)


def test_large_files_are_not_read(tmp_path):
    for name, read in (("config.json", read_json), ("chat_template.jinja", read_text)):
        with (tmp_path / name).open("wb") as stream:
            stream.truncate(1 << 40)  # a sparse terabyte
        with pytest.raises(CheckpointError, match=f"{name} has 1099511627776 bytes"):
            read(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"chat_template.jinja has"):
        check_text_files(tmp_path)


def test_files_that_other_libraries_read_are_checked(tmp_path):
    check_text_files(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"tokenizer_config.json"):
        check_text_files(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"tokenizer_config.json holds list"):
        check_text_files(tmp_path)


def test_a_template_that_is_no_text(tmp_path):
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match=r"not UTF-8"):
        read_text(tmp_path / "chat_template.jinja")
