"""Templates: saved by `ask --save-as`, taken by `ask --use`, listed and removed by `templates`."""

import json
from pathlib import Path

import parrot
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastvlm.cli.template_files import Template, read_template, template_file, write_template
from fastvlm.errors import UsageError

SCHEMA = json.dumps({"enum": ["cat", "dog"]})


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTVLM_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "templates"


def test_a_question_is_saved_without_asking_and_used(fastvlm, image, parrot_folder, folder):
    saved = fastvlm("ask", "What?", "-n", "2", "-m", parrot_folder, "--save-as", "pet")
    assert (saved.code, saved.out, saved.err) == (0, "", "")
    options = {"model": str(parrot_folder), "max-new-tokens": 2}
    assert json.loads((folder / "pet.json").read_text()) == {"question": "What?", "options": options}
    reply = json.loads(fastvlm("ask", "--use", "pet", image, "--json").out)
    assert reply["usage"]["completion_tokens"] == 2 and reply["usage"]["image_tokens"] == 4


def test_what_is_typed_goes_before_the_template(fastvlm, image, parrot_folder):
    fastvlm("ask", "What?", "-n", "2", "-m", parrot_folder, "--json-schema", SCHEMA, "--save-as", "pet")
    lengths = {
        "a longer question": json.loads(fastvlm("ask", "--use", "pet", image, "Which of all these?", "--json").out),
        "the template's": json.loads(fastvlm("ask", "--use", "pet", image, "--json").out),
    }
    longer, own = (reply["usage"]["prompt_tokens"] for reply in lengths.values())
    assert longer - own == len("Which of all these?") - len("What?"), "one token a letter"
    answer = fastvlm("ask", "--use", "pet", image, "-n", "50").out
    assert json.loads(answer) in ("cat", "dog")
    other = fastvlm("ask", "--use", "pet", image, "-n", "50", "--json-schema", '{"const": "cow"}').out
    assert json.loads(other) == "cow"


def test_a_template_of_a_template_has_the_options_of_both(fastvlm, parrot_folder, monkeypatch):
    monkeypatch.chdir(parrot_folder.parent)
    fastvlm("ask", "What?", "-n", "2", "-m", parrot_folder.name, "--save-as", "one")
    fastvlm("ask", "--use", "one", "Which?", "--image-size", "64", "--save-as", "two")
    assert read_template("one").question == "What?"
    assert read_template("two") == Template(
        "Which?", None, {"model": str(parrot_folder), "max-new-tokens": 2, "image-size": "64"}
    )


def test_with_an_image_it_is_saved_and_asked_and_an_image_in_stdin_counts(process, image, parrot_folder, tmp_path):
    home = {"FASTVLM_HOME": str(tmp_path / "home")}
    asked = process("ask", image, "What?", "-m", parrot_folder, "--save-as", "pet", **home)
    assert (asked.code, asked.out) == (0, parrot.SENTENCE + "\n")
    piped = process("ask", "--use", "pet", "--json", stdin=image.read_bytes(), **home)
    assert json.loads(piped.out)["usage"]["image_tokens"] == 4


def test_the_list_shows_damaged_ones_too(fastvlm, folder):
    assert "There are no templates in" in fastvlm("templates").err
    fastvlm("ask", "How\nmany?", "--save-as", "count")
    (folder / "bad.json").write_text("{")
    lines = fastvlm("templates").out.splitlines()
    assert lines[0].startswith("bad    The template ") and lines[1] == "count  How many?"
    listed = json.loads(fastvlm("templates", "--json").out)
    assert [Path(row["path"]).name for row in listed["templates"]] == ["bad.json", "count.json"]
    assert fastvlm("templates", "--remove", "bad").code == 0
    assert [file.name for file in folder.iterdir()] == ["count.json"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "holds list"),
        ('{"prompt": "x"}', "has other content"),
        ('{"question": 5}', "has other content"),
        ('{"schema": "x"}', "has other content"),
        ('{"options": {"seed": [1]}}', "has other content"),
        ('{"options": {"save-as": "x"}}', "has an option 'save-as'; known are adapter"),
        ('{"options": {"seed": "x"}, "question": "What?"}', "--seed"),
        ('{"options": {"temperature": -1}, "question": "What?"}', "--temperature is -1"),
        ('{"options": {}}', "There is no question"),
    ],
)
def test_a_file_that_is_no_template(fastvlm, folder, content, words):
    folder.mkdir(parents=True)
    (folder / "bad.json").write_text(content)
    outcome = fastvlm("ask", "--use", "bad")
    assert outcome.code == 2 and words in outcome.error and outcome.out == ""


def test_mistakes(fastvlm, folder):
    fastvlm("ask", "What?", "--save-as", "pet")
    for arguments, words in (
        (["ask", "--use", "cat", "What?"], "There is no template 'cat'. Known are: pet."),
        (["ask", "--use", "pet", "none.png"], "There is no file 'none.png'"),
        (["ask", "What?", "--save-as", "../x"], "cannot be called '../x'"),
        (["templates", "--remove", "cat"], "There is no template 'cat'"),
        (["templates", "--remove", "/etc/passwd"], "cannot be called"),
    ):
        outcome = fastvlm(*arguments)
        assert outcome.code == 2 and words in outcome.error, outcome.err
    assert [file.name for file in folder.iterdir()] == ["pet.json"]


def test_a_folder_that_cannot_be_made_is_told(fastvlm, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTVLM_HOME", str(tmp_path / "file"))
    outcome = fastvlm("ask", "What?", "--save-as", "pet")
    assert outcome.code == 2 and "cannot be written" in outcome.error


@given(st.text())
def test_no_name_leaves_the_folder(name):
    try:
        file = template_file(name)
    except UsageError:
        return
    assert file.parent == template_file("x").parent and file.name == f"{name}.json"


@given(
    st.text(st.characters(codec="utf-8")),
    st.dictionaries(st.sampled_from(["seed", "system"]), st.text(st.characters(codec="utf-8")) | st.integers()),
)
def test_what_is_written_is_read(tmp_path_factory, question, options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTVLM_HOME", str(tmp_path_factory.getbasetemp() / "many"))
        template = Template(question, {"type": "number"}, options)
        write_template("x", template)
        assert read_template("x") == template
