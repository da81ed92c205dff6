"""Paths and targets that cannot be used are told before the libraries are imported, which takes seconds."""

import subprocess
import sys

import pytest
from cli_process import plain_environment

# Each command line in a process of its own, whose modules are then looked at.
RUN = """
import sys
from fastvlm.cli.main import main
code = main(sys.argv[1:])
print(code, sorted({"torch", "transformers"} & set(sys.modules)))
"""


@pytest.fixture
def place(tmp_path):
    """A folder with an image, a file and an empty folder."""
    from PIL import Image

    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    (tmp_path / "file").write_text("{}")
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("ask nothing.png What?", 2, "There is no file 'nothing.png'."),
        ("ask red.png What? --adapter nowhere", 1, "There is no folder nowhere; expected a LoRA adapter"),
        ("ask red.png What? --adapter empty", 1, "empty has no adapter_config.json"),
        ("ask red.png What? -m nowhere", 1, "There is no folder 'nowhere'"),
        ("ask What? red.png", 2, "the question comes last. Try: fastvlm ask red.png 'What?'"),
        ("ask red.png file", 2, "There is no question"),
        ("chat red.png --adapter nowhere", 1, "There is no folder nowhere"),
        ("chat nothing.png", 2, "There is no file 'nothing.png'."),
        ("convert mini empty", 2, "exists already, and nothing is overwritten"),
        ("convert mini no/where", 2, "is not a folder. Create it first."),
        ("convert nowhere new", 1, "There is no folder 'nowhere'"),
        ("quantize mini empty", 2, "exists already, and nothing is overwritten"),
        ("quantize nowhere new", 1, "There is no folder 'nowhere'"),
        ("serve --adapter a=nowhere", 1, "There is no folder nowhere"),
        ("serve --adapter a=empty", 1, "empty has no adapter_config.json"),
        ("serve --model nowhere", 1, "There is no folder 'nowhere'"),
        ("eval --suite mini --adapter nowhere", 1, "There is no folder nowhere"),
        ("eval --suite mini --out file", 2, "--out file is a file; expected a folder"),
        ("bench --out file", 2, "--out file is a file; expected a folder"),
    ],
)
def test_what_cannot_be_used_is_told_first(place, line, code, words):
    command = [sys.executable, "-c", RUN, *line.split()]
    done = subprocess.run(command, cwd=place, env=plain_environment(), capture_output=True, check=True, timeout=120)
    assert done.stdout.decode() == f"{code} []\n"
    error = done.stderr.decode()
    assert error.startswith("fastvlm: error: ") and error.count("\n") == 1
    assert words in error
    assert sorted(path.name for path in place.iterdir()) == ["empty", "file", "red.png"]
