"""Names as people type, paste and drop them lead to the files that are meant."""

import os
import shlex
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastvlm.cli.image_names import file_name, is_url, split_names
from fastvlm.errors import UsageError


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder, which is not the current one."""
    for name in ("cat.png", "my cat.png", "it's.png", "a#b.png", "c:d.png"):
        (tmp_path / name).write_bytes(b"x")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(elsewhere)
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("~/cat.png", ["cat.png"]),
        ("~/my cat.png", ["my cat.png"]),  # a line that is one file needs no quotes
        ("'~/my cat.png'", ["my cat.png"]),
        (r"~/my\ cat.png ~/cat.png", ["my cat.png", "cat.png"]),
        ("{home}/my cat.png", ["my cat.png"]),
        ("'{home}/my cat.png'", ["my cat.png"]),
        ("'{home}/my cat.png' ", ["my cat.png"]),  # what a terminal writes when a file is dropped
        (r"{home}/my\ cat.png", ["my cat.png"]),
        ("{home}/it's.png", ["it's.png"]),
        ("'{home}/it'\\''s.png'", ["it's.png"]),
        ("~/a#b.png ~/cat.png", ["a#b.png", "cat.png"]),
        ("~/c:d.png", ["c:d.png"]),
        ("file://{home}/my%20cat.png", ["my cat.png"]),
        ("file://localhost{home}/cat.png", ["cat.png"]),
        ("FILE://{home}/cat.png", ["cat.png"]),
        ('"~/my cat.png" ~/cat.png', ["my cat.png", "cat.png"]),
    ],
)
def test_a_line_leads_to_the_files_that_are_meant(home, typed, names):
    assert split_names(typed.replace("{home}", str(home))) == [str(home / name) for name in names]


@pytest.mark.parametrize("typed", ["~/cat.png", r"~/my\ cat.png", "'~/my cat.png'"])
def test_an_argument_is_read_the_same_way(home, typed):
    assert Path(file_name(typed)).parent == home


def test_what_exists_as_it_was_typed_stays(home):
    odd = Path("~") / "cat.png"
    odd.parent.mkdir()
    odd.write_bytes(b"x")
    assert file_name("~/cat.png") == "~/cat.png"
    (home / "elsewhere" / r"a\ b.png").write_bytes(b"x")
    assert file_name(r"a\ b.png") == r"a\ b.png"


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        (r"C:\Users\me\cat.png", [r"C:\Users\me\cat.png"]),
        (r'"C:\Users\me\my cat.png"', [r"C:\Users\me\my cat.png"]),
        (r"C:\a.png D:\b.png", [r"C:\a.png", r"D:\b.png"]),
        (r"\\server\share\cat.png", [r"\\server\share\cat.png"]),
        (r"..\cat.png", [r"..\cat.png"]),
        ("https://example.org/a%20b.png?x=1#y data:image/png;base64,AA==",
         ["https://example.org/a%20b.png?x=1#y", "data:image/png;base64,AA=="]),
        ("", []),
    ],
)  # fmt: skip
def test_backslashes_and_urls_stay_as_they_are(home, typed, names):
    assert split_names(typed) == names


def test_what_cannot_be_read_is_told(home):
    with pytest.raises(UsageError, match="Close the quotes"):
        split_names("'open")
    with pytest.raises(UsageError, match="'server'"):
        file_name("file://server/cat.png")


@pytest.mark.parametrize(
    ("name", "is_one"), [("http://x", True), ("data:,", True), (r"C:\cat.png", False), ("a b", False)]
)
def test_urls(name, is_one):
    assert is_url(name) is is_one


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), max_size=3))
def test_quoted_names_come_back_as_they_were(names):
    names = [name for name in names if not is_url(name) and name.strip() and not name.startswith("~")]
    with suppress(UsageError):
        read = split_names(shlex.join(names))
        if "\\" not in "".join(names) and not any(map(os.path.exists, (*names, shlex.join(names)))):
            assert read == names


@given(st.text())
def test_any_text_is_read_or_refused_with_a_usage_error(text):
    with suppress(UsageError):
        file_name(text)
        split_names(text)
