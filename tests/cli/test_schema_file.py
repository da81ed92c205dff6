"""The file that `--schema` names: what is read, what is refused."""

import json

import pytest

from fastvlm.cli import schema_file
from fastvlm.errors import MissingExtraError, UsageError


def test_a_schema_is_an_object(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"enum": ["yes", "no"]}))
    assert schema_file.read_schema(str(tmp_path / "a.json")) == {"enum": ["yes", "no"]}
    assert schema_file.read_schema(None) is None


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[1]", "holds list; expected an object"),
        (b"{", "is not JSON"),
        (b"\xff\xfe\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b" " * (2**20 + 1), "is larger than 1048576 bytes"),
    ],
)
def test_anything_else_is_refused(tmp_path, content, says):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UsageError, match=says):
        schema_file.read_schema(str(tmp_path / "a.json"))


@pytest.mark.parametrize("name", ["absent.json", ".", "a\0b"])
def test_a_file_that_cannot_be_read(tmp_path, name):
    with pytest.raises(UsageError, match="cannot be read"):
        schema_file.read_schema(f"{tmp_path}/{name}")


def test_without_the_extra_one_line_names_it(monkeypatch):
    monkeypatch.setattr(schema_file, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"--schema needs .* 'fastvlm\[serve\]'"):
        schema_file.read_schema("a.json")
