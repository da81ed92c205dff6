"""The command in this process (fast) and in one of its own (real), over a checkpoint whose answers are known."""

import io
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import parrot
import pytest
import warm_process
from PIL import Image
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parent))  # for `import cli_process`

from cli_process import plain_environment


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of a failed command, checked to be one and to have no traceback."""
        assert self.err.endswith("\n") and self.err.count("\n") == 1, self.err
        assert self.err.startswith("fastvlm: error: "), self.err
        assert "Traceback" not in self.err
        return self.err.removeprefix("fastvlm: error: ").strip()


@pytest.fixture(scope="session")
def parrot_folder(tmp_path_factory):
    return parrot.save(tmp_path_factory.mktemp("checkpoints") / "parrot")


@pytest.fixture(scope="session")
def endless_folder(tmp_path_factory):
    return parrot.save(tmp_path_factory.mktemp("checkpoints") / "endless", is_endless=True)


@pytest.fixture
def image(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (90, 60), "red").save(folder / "red.png")
    return folder / "red.png"


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty current directory, which must be empty afterwards unless the test takes what it made out of it."""
    folder = tmp_path / "workplace"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    assert list(folder.iterdir()) == [], "the command wrote to the current directory"


@pytest.fixture
def fastvlm(workplace, monkeypatch, capsys):
    """Run the command in this process: ``fastvlm("ask", image, "...")``."""
    from fastvlm.cli.main import main

    def run(*arguments, stdin: bytes = b"") -> Outcome:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        with warnings.catch_warnings():
            code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    verbosity = logging.get_verbosity()
    yield run
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


@pytest.fixture
def process(workplace):
    """Run the command in a process of its own: forked after the imports; with `settings` (environment) a new one."""

    def run(*arguments, stdin: bytes = b"", **settings) -> Outcome:
        words, environment = [*map(str, arguments)], {**plain_environment(), **settings}
        if not settings:
            return Outcome(*warm_process.run(words, environment, stdin))
        command = [sys.executable, "-m", "fastvlm", *words]
        done = subprocess.run(command, input=stdin, capture_output=True, env=environment, check=False, timeout=300)
        return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())

    return run
