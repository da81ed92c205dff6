"""What the shipped checkpoint is, said once to a person and to nobody else."""

import io
import sys

import pytest

from fastvlm.cli.mini_notice import SINGLE_TURN, tell_once
from fastvlm.cli.terminal import Notes
from fastvlm.formats.places import checkpoint_path


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def told(tmp_path, monkeypatch):
    """Tell of a folder; returns what came out."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def tell(folder=None, stream=Terminal, *, is_quiet=False) -> str:
        monkeypatch.setattr(sys, "stderr", stream())
        tell_once(folder or checkpoint_path("mini"), Notes(is_quiet=is_quiet))
        return sys.stderr.getvalue()

    return tell


def test_it_is_said_the_first_time_in_one_line(told, tmp_path):
    line = told()
    assert line.startswith("fastvlm: note: ") and line.count("\n") == 1
    for words in ("drawings, words, receipts and charts", "one question", "photographs", "fastvlm info mini"):
        assert words in line
    assert told() == ""
    assert [path.name for path in (tmp_path / "cache" / "fastvlm").iterdir()] == ["mini-notice-shown"]


def test_nobody_but_a_person_hears_it(told, tmp_path):
    assert told(stream=io.StringIO) == told(is_quiet=True) == told(tmp_path) == ""
    assert not (tmp_path / "cache").exists(), "what was not said is not noted as said"


def test_a_cache_that_cannot_be_written_is_no_failure(told, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert told() and told()


def test_no_home_is_no_failure(told, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")

    def fail():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.home", fail)
    assert told()


@pytest.fixture
def notes(monkeypatch):
    """All notes, also those that are not shown because stderr is no terminal."""
    said = []
    monkeypatch.setattr(Notes, "say", lambda _, text: said.append(text))
    return said


def test_a_chat_says_that_the_shipped_model_answers_one_question_at_a_time(fastvlm, notes, parrot_folder):
    assert fastvlm("chat", "-m", parrot_folder).code == 0 and SINGLE_TURN not in notes
    assert fastvlm("chat", "-m", "mini").code == 0 and SINGLE_TURN in notes


def test_ask_without_an_image_says_that_nothing_is_remembered(fastvlm, notes, image, parrot_folder):
    words = "Earlier calls are not remembered; fastvlm chat IMAGE keeps a conversation."
    fastvlm("ask", image, "What color is it?", "-m", parrot_folder)
    assert not any(words in note for note in notes)
    fastvlm("ask", "And what shape?", "-m", parrot_folder)
    assert any(words in note for note in notes)
    assert "Nothing is remembered" in " ".join(fastvlm("ask", "--help").out.split())
