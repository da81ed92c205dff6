"""A torchvision that does not match torch is named, with the cure, by the command line and in Python."""

import os
import subprocess
import sys

import pytest

import fastvlm.import_failures
from fastvlm.errors import InstallationError
from fastvlm.import_failures import explain_import_failure

# What torch raises when the compiled half of torchvision is missing.
MISFIT = "raise RuntimeError('operator torchvision::nms does not exist')\n"


@pytest.fixture
def misfit(tmp_path):
    """A folder whose torchvision cannot be imported, as an environment for processes."""
    for name, content in {
        "torchvision/__init__.py": MISFIT,
        "torchvision-0.9.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.9.0\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path[:1], os.environ.get("PYTHONPATH", "")]),
    }


def run(arguments, environment, folder):
    return subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("command", [["convert", "mini", "out"], ["train", "lora", "--check", "--data", "none.jsonl"]])
def test_verbs_say_so_in_one_line(command, misfit, tmp_path):
    (tmp_path / "none.jsonl").write_text("")
    finished = run(["-m", "fastvlm", *command], misfit, tmp_path)
    assert finished.returncode == 1
    assert finished.stdout == ""
    assert finished.stderr.count("\n") == 1
    assert "torchvision 0.9.0 does not match torch 2." in finished.stderr
    assert "pip uninstall torchvision" in finished.stderr


def test_python_says_so(misfit, tmp_path):
    code = "import fastvlm\ntry: fastvlm.load('mini')\nexcept ImportError as error: print(type(error).__name__, error)"
    finished = run(["-c", code], misfit, tmp_path)
    assert finished.stdout.startswith("InstallationError torchvision 0.9.0 does not match torch 2."), finished.stderr


def test_other_errors_are_left_alone():
    assert explain_import_failure(RuntimeError("operator mine::nms does not exist")) is None


def test_the_error_may_be_a_cause(monkeypatch):
    monkeypatch.setattr(
        fastvlm.import_failures, "_version", {"torch": "2.13.0+cpu", "torchvision": "0.29.2"}.__getitem__
    )
    try:
        try:
            raise RuntimeError("operator torchvision::nms does not exist")
        except RuntimeError as error:
            raise ModuleNotFoundError("Could not import module 'AutoModel'") from error
    except ModuleNotFoundError as error:
        explanation = explain_import_failure(error)
    assert isinstance(explanation, InstallationError)
    assert "torchvision 0.29.2 does not match torch 2.13.0+cpu" in str(explanation)
    assert str(explanation).endswith("pip install 'torchvision==0.28.*'")
