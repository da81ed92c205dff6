"""The protocol: a line in, a line out, whatever happens between."""

import io
import json
import subprocess
import sys

import pytest

from fastvlm.bench import worker
from fastvlm.bench.worker import KINDS, Measured, contestant, serve
from fastvlm.errors import UsageError


class Scripted:
    made = 0

    def __init__(self, factor: float = 1.0) -> None:
        type(self).made += 1
        self.factor = factor

    def encode(self, side_px: int) -> Measured:
        print("a library talks")  # to stdout, which is not the answers' stream
        return Measured(self.factor * side_px, {"part": 0.5}, [1.0, 2.0], {"fact": "x"})

    def fails(self) -> Measured:
        raise ValueError("two\n  lines " + "long " * 200)

    def fails_silently(self) -> Measured:
        raise KeyError

    def _hidden(self) -> Measured:
        raise AssertionError("not a command")


@pytest.fixture
def answers(monkeypatch):
    monkeypatch.setitem(KINDS, "scripted", (__name__, "Scripted"))
    monkeypatch.setattr(worker.importlib, "import_module", lambda _: sys.modules[Scripted.__module__])
    sys.modules.setdefault(Scripted.__module__, sys.modules[__name__]) if __name__ in sys.modules else None
    monkeypatch.setattr(worker, "contestant", lambda kind, options: Scripted(**options))
    Scripted.made = 0

    def run(*lines, **options):
        out = io.StringIO()
        serve("scripted", options, iter([line + "\n" for line in lines]), out)
        return [json.loads(line) for line in out.getvalue().splitlines()]

    return run


def test_an_answer_has_all_fields(answers):
    (found,) = answers('{"do": "encode", "side_px": 64}', factor=2.0)
    assert found == {"ok": True, "value": 128.0, "parts": {"part": 0.5}, "check": [1.0, 2.0], "facts": {"fact": "x"}}


def test_failures_are_one_line_and_the_next_command_works(answers):
    bad, silent, good = answers('{"do": "fails"}', '{"do": "fails_silently"}', '{"do": "encode", "side_px": 1}')
    assert (bad["ok"], bad["kind"]) == (False, "ValueError")
    assert bad["error"].startswith("two lines long") and len(bad["error"]) <= 500 and "\n" not in bad["error"]
    assert silent == {"ok": False, "error": "KeyError", "kind": "KeyError"}
    assert good["ok"] and Scripted.made == 1


@pytest.mark.parametrize("line", ['{"do": "nothing"}', '{"do": "_hidden"}', '{"do": "factor"}', "{", "[]", "{}"])
def test_what_is_no_command_is_told(answers, line):
    (found,) = answers(line)
    assert found["ok"] is False and found["error"]


def test_wrong_arguments_are_told(answers):
    (found,) = answers('{"do": "encode", "side": 3}')
    assert found["kind"] == "TypeError"


def test_empty_lines_are_passed_over(answers):
    assert answers("", "  ") == []


def test_an_unknown_kind_is_an_error():
    with pytest.raises(UsageError, match="no worker 'llama'"):
        contestant("llama", {})


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_there(kind):
    import importlib

    module, name = KINDS[kind]
    assert isinstance(getattr(importlib.import_module(module), name), type)


def test_a_process_keeps_its_answers_apart_from_what_libraries_print():
    code = (
        "import sys, fastvlm.bench.worker as w\n"
        "class Talks:\n"
        "    def open(self):\n"
        "        print('noise'); import os; os.write(1, b'noise')\n"
        "        return w.Measured(1.0)\n"
        "w.contestant = lambda kind, options: Talks()\n"
        "sys.exit(w.main(['talks', '{}']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input='{"do": "open"}\n', capture_output=True, text=True, check=True, timeout=300
    )
    assert json.loads(done.stdout)["value"] == 1.0
    assert done.stderr.count("noise") == 2
