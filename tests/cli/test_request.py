"""Mistakes in what was typed are told before anything is loaded."""

import os
import sys
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastvlm.cli.request import UNQUOTED_HINT, check_images, check_question
from fastvlm.errors import UsageError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "cat.png").write_bytes(b"x")
    (tmp_path / "README").write_bytes(b"x")
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "question", ["cat.png", "README", "-", "http://example.org/cat.png", "https://x/y", "data:image/png;base64,AA"]
)
def test_a_forgotten_question_is_told(folder, question):
    with pytest.raises(UsageError, match=r"There is no question, only .*the last argument is the question"):
        check_question(question)


@pytest.mark.parametrize("question", ["dog.png", "sub/dog.webp", "/tmp/nothing.jpeg", "cat.pgn"])
def test_a_missing_file_is_no_question(folder, question):
    with pytest.raises(UsageError, match="There is no question, and no file"):
        check_question(question)


@pytest.mark.parametrize(
    "question",
    [
        "What is this?",
        "sub",
        "Describe.",
        "Why?",
        "Is it cat.png?",
        "e.g.",
        "你好",
        "x" * 5000,
        "a\0b",
        "Yes/no?",
        "...",
        "data: what is it?",
    ],
)
def test_questions_are_questions(folder, question):
    check_question(question)


@pytest.mark.parametrize("question", ["", " ", "\n\t"])
def test_an_empty_question_is_told(question):
    with pytest.raises(UsageError, match="The question is empty"):
        check_question(question)


def test_a_question_of_broken_bytes_is_told():
    with pytest.raises(UsageError, match=r"not valid UTF-8 \(character 1\)"):
        check_question("a\udcff")


@given(st.text())
def test_any_question_is_taken_or_refused_with_a_usage_error(question):
    with suppress(UsageError):
        check_question(question)


def test_files_urls_and_pipes_may_be_images(folder):
    os.mkfifo(folder / "pipe")
    check_images(["cat.png", str(folder / "cat.png"), "pipe", "https://example.org/x", "data:,x"])


def test_a_missing_image_is_told_with_the_hint(folder):
    with pytest.raises(UsageError, match=r"There is no file 'What'\. If that is a part of the question"):
        check_images(["cat.png", "What"], UNQUOTED_HINT)
    with pytest.raises(UsageError, match=r"There is no file 'What'\.$"):
        check_images(["What"])


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "~nobody-of-that-name/x"])
def test_names_that_no_file_system_takes_are_missing_files(folder, name):
    with pytest.raises(UsageError, match="There is no file"):
        check_images([name])


def test_a_folder_is_told(folder):
    with pytest.raises(UsageError, match=r"'sub/' is a folder; expected an image file\. Try: sub/\*\.png"):
        check_images(["sub/"])


def test_stdin_twice_is_told(folder):
    with pytest.raises(UsageError, match="'-' stands 2 times"):
        check_images(["-", "cat.png", "-"])


def test_stdin_that_is_a_terminal_is_told(folder, monkeypatch):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    with pytest.raises(UsageError, match="stdin is the terminal"):
        check_images(["-"])
