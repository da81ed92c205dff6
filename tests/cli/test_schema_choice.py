"""`fastvlm ask --schema` and `--json-schema`."""

import json
import sys

import pytest

SCHEMA = {"enum": ["cat", "dog"]}


def test_the_answer_follows_a_schema_from_a_file_and_from_text(fastvlm, image, parrot_folder, tmp_path):
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    for option in (("--schema", file), ("--json-schema", json.dumps(SCHEMA))):
        outcome = fastvlm("ask", image, "What?", "-m", parrot_folder, *option)
        assert (outcome.code, outcome.err) == (0, "") and json.loads(outcome.out) in ("cat", "dog")


def test_a_cut_document_warns(fastvlm, image, parrot_folder):
    outcome = fastvlm("ask", image, "What?", "-m", parrot_folder, "--json-schema", json.dumps(SCHEMA), "-n", "1")
    assert outcome.code == 0 and outcome.err.startswith("fastvlm: warning: The answer was cut by --max-new-tokens")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "--json-schema is not JSON"),
        ("[]", "--json-schema holds list; expected a JSON schema as an object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"minimum": 1e999}', "--json-schema is not JSON"),
        ("", "--json-schema is not JSON"),
    ],
)
def test_what_is_no_schema_is_told_before_anything_is_opened(fastvlm, text, words, tmp_path):
    outcome = fastvlm("ask", "What?", "--json-schema", text, "-m", tmp_path / "nowhere")
    assert outcome.code == 2 and words in outcome.error
    (tmp_path / "schema.json").write_text(text)
    outcome = fastvlm("ask", "What?", "--schema", tmp_path / "schema.json", "-m", tmp_path / "nowhere")
    assert outcome.code == 2 and words.removeprefix("--json-schema") in outcome.error


def test_files_that_cannot_be_read(fastvlm, tmp_path):
    (tmp_path / "large.json").write_bytes(b" " * 300_000)
    for name, words in (
        ("none.json", "No such file"), (".", "Is a directory"), ("large.json", "more than 262144 bytes"),
        ("nul\0", "null byte"),
    ):  # fmt: skip
        outcome = fastvlm("ask", "What?", "--schema", tmp_path / name)
        assert outcome.code == 2 and words in outcome.error, outcome.err


def test_both_forms_contradict(fastvlm):
    outcome = fastvlm("ask", "What?", "--schema", "a", "--json-schema", "{}")
    assert outcome.code == 2 and "both given" in outcome.error


def test_without_the_package_the_extra_is_named(fastvlm, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    outcome = fastvlm("ask", "What?", "--json-schema", "{}")
    assert outcome.code == 1 and "--schema needs the package 'llguidance'" in outcome.error
    assert "pip install 'fastvlm[serve]'" in outcome.error
