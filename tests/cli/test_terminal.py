"""Talk goes to terminals only, and says nothing that a terminal would obey."""

import io
import json
import sys
import threading
import time
import unicodedata
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastvlm
from fastvlm.cli import terminal
from fastvlm.cli.terminal import Answers, Notes, in_bytes, print_json, printable, quiet_libraries


class FakeTerminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def terminal_in(monkeypatch) -> FakeTerminal:
    """A terminal in place of stdout and stderr; called in a test, because pytest sets its own between phases."""
    fake = FakeTerminal()
    monkeypatch.setattr(sys, "stderr", fake)
    monkeypatch.setattr(sys, "stdout", fake)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return fake


@given(st.text())
def test_printable_keeps_everything_but_controls(text):
    shown = printable(text)
    assert len(shown) == len(text)
    for before, after in zip(text, shown, strict=True):
        is_control = unicodedata.category(before) in ("Cc", "Cs") and before not in "\n\t"
        assert after == ("\ufffd" if is_control else before)


def test_emoji_of_several_parts_stay_whole():
    assert printable("👩‍🚀 नमस्ते é") == "👩‍🚀 नमस्ते é"


def test_an_answer_cannot_command_the_terminal_but_reaches_a_pipe_unchanged(monkeypatch):
    screen = terminal_in(monkeypatch)
    Answers().write("a\x1b[2Jb\n")
    assert screen.getvalue() == "a\ufffd[2Jb\n"
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stdout", pipe)
    Answers().write("a\x1b[2Jb")
    assert pipe.getvalue() == "a\x1b[2Jb"


def until(condition):
    """Wait for what another thread does; the limit is for a test that hangs."""
    end_s = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < end_s, "it did not happen"
        time.sleep(0.01)


def test_notes_are_for_terminals(monkeypatch):
    screen = terminal_in(monkeypatch)
    Notes().say("hello")
    assert "hello" in screen.getvalue()
    length = len(screen.getvalue())
    Notes(is_quiet=True).say("hush")
    assert len(screen.getvalue()) == length
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stderr", pipe)
    notes = Notes()
    notes.say("hello")
    monkeypatch.setattr(terminal, "PATIENCE_S", 0.0)
    threads = threading.active_count()
    with notes.waiting("Opening"), notes.counting("Writing") as progress:
        progress(1, 2)
        until(lambda: threading.active_count() <= threads)  # what shows them late has had its turn
    assert pipe.getvalue() == ""


def test_no_color_where_none_is_wanted(monkeypatch):
    screen = terminal_in(monkeypatch)
    Notes().say("faint")
    assert "\x1b[2m" in screen.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    before = len(screen.getvalue())
    Notes().say("plain")
    assert screen.getvalue()[before:] == "plain\n"


def test_waiting_shows_only_what_takes_long(monkeypatch):
    screen = terminal_in(monkeypatch)
    monkeypatch.setattr(terminal, "PATIENCE_S", 3600.0)
    with Notes().waiting("Quick"):
        pass
    assert screen.getvalue() == ""
    monkeypatch.setattr(terminal, "PATIENCE_S", 0.05)
    with Notes().waiting("Slow [bold]work"):
        until(lambda: "Slow [bold]work" in screen.getvalue())  # shown, and no markup
    with Notes().counting("Writing") as progress:
        progress(1, 4)
        until(lambda: "Writing" in screen.getvalue() and "%" in screen.getvalue())


def test_waiting_ends_when_the_work_fails(monkeypatch):
    screen = terminal_in(monkeypatch)
    monkeypatch.setattr(terminal, "PATIENCE_S", 0.0)
    threads = threading.active_count()

    def work():
        with Notes().waiting("Slow"):
            until(lambda: "Slow" in screen.getvalue())
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        work()
    until(lambda: threading.active_count() <= threads)  # nobody is left who could go on showing it


def test_our_warnings_are_lines_and_others_are_silent(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        quiet_libraries(is_quiet=False, is_debug=False)
        warnings.warn_explicit("told", UserWarning, fastvlm.__file__, 1)
        warnings.warn_explicit("hidden", UserWarning, "/elsewhere/torch/x.py", 1)
    assert capsys.readouterr().err == "fastvlm: warning: told\n"
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        quiet_libraries(is_quiet=True, is_debug=False)
        warnings.warn_explicit("told", UserWarning, fastvlm.__file__, 1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (12_345, "12.3 KB"), (456_000_000, "456 MB"), (7e15, "7000 TB")],
)
def test_bytes_in_a_fitting_unit(num_bytes, text):
    assert in_bytes(int(num_bytes)) == text


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_json_loses_nothing_in_any_encoding(monkeypatch, encoding):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    content = {"answer": "Grüße 你好 🙂\n"}
    print_json(content)
    stream.flush()
    assert json.loads(raw.getvalue().decode(encoding)) == content and raw.getvalue().count(b"\n") == 1
