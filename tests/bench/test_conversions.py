"""Files that peers read: made once for a checkpoint, again for another one, errors in one line."""

import json
from pathlib import Path

import pytest

from fastvlm.bench import conversions
from fastvlm.bench.conversions import SOURCE, converted, main
from fastvlm.errors import MeasurementError, UsageError


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "weights").write_text("1")
    return folder


@pytest.fixture
def made(monkeypatch):
    """The conversions that were made; each writes its options."""
    names = []

    def run(name, options):
        names.append(name)
        with Path(options["file"]).open("w") as file:
            json.dump(options, file)

    monkeypatch.setattr(conversions, "_run", run)
    return names


def test_a_conversion_is_made_once(checkpoint, made, tmp_path):
    work = tmp_path / "new" / "work"
    for _ in range(2):
        file = converted("gguf-decoder", str(checkpoint), str(work), "decoder-8.gguf", bits=8)
    assert file == work / "decoder-8.gguf" and made == ["gguf-decoder"]
    assert json.loads(file.read_text())["bits"] == 8
    converted("gguf-decoder", str(checkpoint), str(work), "decoder-4.gguf", bits=4)
    assert file.exists() and len(made) == 2


def test_another_checkpoint_is_converted_anew(checkpoint, made, tmp_path):
    work = tmp_path / "work"
    first = converted("reference", str(checkpoint), str(work), "reference-40.json")
    (work / "folder").mkdir()
    (checkpoint / "weights").write_text("22")
    second = converted("reference", str(checkpoint), str(work), "other.json")
    assert made == ["reference"] * 2 and second.exists()
    assert not first.exists() and not (work / "folder").exists()
    (work / SOURCE).write_text("nonsense")
    converted("reference", str(checkpoint), str(work), "other.json")
    assert len(made) == 3


def test_a_failure_is_its_last_words(checkpoint, tmp_path):
    with pytest.raises(MeasurementError, match=r"\(reference\) failed: .*config.json") as told:
        converted("reference", str(checkpoint), str(tmp_path / "work"), "reference-40.json", prompt_tokens=40)
    assert "\n" not in str(told.value)


def test_a_place_that_cannot_be_written_is_one_line(checkpoint, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError):
        converted("reference", str(checkpoint), str(tmp_path / "file" / "work"), "reference-40.json")


def test_converters_are_functions_of_their_modules(monkeypatch, tmp_path):
    import importlib

    for module, function in conversions.CONVERTERS.values():
        assert callable(getattr(importlib.import_module(module), function))
    calls = []
    monkeypatch.setattr("fastvlm.bench.reference.write_reference", lambda *a, **k: calls.append((a, k)))
    assert main(["reference", json.dumps({"folder": "f", "file": "g", "prompt_tokens": 3})]) == 0
    ((folder, file), options) = calls[0]
    assert (folder, str(file), options) == ("f", "g", {"prompt_tokens": 3})
