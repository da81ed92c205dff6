"""`fastvlm bench`: a small run from end to end, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_process import hear_ctrl_c, plain_environment

from fastvlm.cli import bench as verb

SHORT = ("--what", "encode,decode", "--bits", "16", "--rounds", "1", "--new-tokens", "4", "--threads", "1")


def test_a_small_run(process, endless_folder, tmp_path):
    outcome = process(
        *("bench", endless_folder, *SHORT, "--image-size", "64,128", "--plot", tmp_path / "bars.svg"),
        *("--out", tmp_path / "results"),
    )
    assert (outcome.code, outcome.err) == (0, "")
    page, last = outcome.out.rstrip("\n").rsplit("\n", 1)
    result = json.loads(last)
    measured = {(entry["measure"], *entry["case"].values()) for entry in result["measures"]}
    assert measured == {("encode", 64), ("encode", 128), ("decode",)}
    assert all(entry["median"] > 0 for entry in result["measures"])
    assert result["rounds"] == 1 and result["failures"] == {}
    assert result["model"]["name"] == "endless" and result["model"]["is_random"] is False
    assert result["ratios"]["encode_vs_transformers"] is None
    assert "--peers" in result["not_measured"]["encode_vs_transformers"]
    assert result["roofline"]["peaks"]["bandwidth"] > 1e8
    for words in ("encode: pixels to visual tokens", "fastvlm 64 px", "decode: one reply"):
        assert words in page
    assert "<svg" in (tmp_path / "bars.svg").read_text()
    names = sorted(file.name for file in (tmp_path / "results").iterdir())
    assert len(names) == 2 and names[0].startswith("endless-encode-decode_") and names[0].endswith(".json")
    assert json.loads((tmp_path / "results" / names[0]).read_text()) == result


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mini", "--preset", "mini"], "Both the model 'mini' and --preset mini"),
        (["--preset", "8b"], "--preset is '8b'; expected one of 0.5b, 1.5b, 7b, mini"),
        (["--keep"], "give --preset too"),
        (["--checkpoint", "x"], "give --preset too"),
        (["--what", "speed"], "--what has 'speed'"),
        (["--what", ","], "--what is empty"),
        (["--bits", "2"], "--bits has 2"),
        (["--bits", "eight"], "--bits is 'eight'; expected whole numbers"),
        (["--dtype", "int8"], "--dtype has 'int8'"),
        (["--image-size", "100"], "--image-size has 100"),
        (["--streams", "0"], "--streams"),
        (["--rounds", "0"], "--rounds"),
        (["--image", "12mp"], "--image is '12mp'; expected WIDTHxHEIGHT"),
        (["--image", "20000x10"], "at most 10000"),
        (["--plot", "bars.pdf"], "ends in .svg or .png"),
        (["--threads", "-2"], "--threads is -2"),
        (["a", "b"], "bench --help"),
    ],
)
def test_bad_use_is_one_line(fastvlm, arguments, words):
    outcome = fastvlm("bench", *arguments)
    assert outcome.code == 2 and outcome.out == ""
    assert words in outcome.error


def test_a_folder_that_is_no_checkpoint_fails_before_anything_is_measured(fastvlm, tmp_path):
    (tmp_path / "empty").mkdir()
    outcome = fastvlm("bench", tmp_path / "empty")
    assert outcome.code == 1 and "config.json" in outcome.error


def test_a_model_that_cannot_be_opened_is_one_line(process, endless_folder, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in endless_folder.iterdir():
        if not file.name.startswith("tokenizer"):
            (broken / file.name).symlink_to(file)
    outcome = process("bench", broken, *SHORT)
    assert outcome.code == 1 and "has no tokenizer" in outcome.error and outcome.out == ""


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="process groups")
def test_ctrl_c_ends_all_processes_and_leaves_no_checkpoint(tmp_path):
    environment = {**plain_environment(), "XDG_CACHE_HOME": str(tmp_path / "cache"), "MARK": str(tmp_path)}
    command = [sys.executable, "-m", "fastvlm", "bench", "--preset", "mini", "--rounds", "50", "--bits", "16"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        preexec_fn=hear_ctrl_c,  # noqa: PLW1509
    ) as run:
        deadline = time.monotonic() + 240
        while not workers_of(environment["MARK"]) and time.monotonic() < deadline and run.poll() is None:
            time.sleep(0.1)
        assert workers_of(environment["MARK"])
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=240)
    assert (run.returncode, out, err.decode()) == (130, b"", "fastvlm: stopped: by Ctrl-C.\n")
    assert workers_of(environment["MARK"]) == []
    assert [file for file in (tmp_path / "cache").rglob("*") if file.is_file()] == []


def workers_of(mark: str) -> list[int]:
    """Workers whose environment has this mark."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if f"MARK={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found += [int(folder.name)] if b"fastvlm.bench.worker" in (folder / "cmdline").read_bytes() else []
        except OSError:  # noqa: PERF203  # no process, or gone by now
            continue
    return found


def test_a_random_checkpoint_is_removed_unless_it_is_kept(tmp_path, monkeypatch):
    from fastvlm.bench import random_checkpoint
    from fastvlm.cli.terminal import Notes

    def make(_preset, folder, on_bytes):
        """As the true one, which takes seconds and is tested on its own."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").touch()
        on_bytes(1)

    monkeypatch.setattr(random_checkpoint, "make_checkpoint", make)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    home = tmp_path / "fastvlm" / "bench" / "random-mini"

    def made(**settings):
        chosen = {"model": None, "preset": "mini", "checkpoint": None, "is_kept": False, "revision": None, **settings}
        with verb._folder(verb._Source(**chosen), Notes(is_quiet=True)) as folder:
            assert (folder / "config.json").is_file()
        return folder

    assert made() == home and not home.exists()
    assert made(checkpoint=tmp_path / "mine") == tmp_path / "mine" and (tmp_path / "mine").is_dir()
    assert made(is_kept=True) == home and home.is_dir()
    assert made() == home and home.is_dir(), "one that was there stays"


def test_help_and_bad_use_load_no_torch(process):
    code = (
        "import sys; from fastvlm.cli.main import main\n"
        "main(['bench', '--help']); main(['bench', '--preset', 'x']); print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=plain_environment())
    assert done.stdout.splitlines()[-1] == "False"
    assert "--preset is 'x'" in done.stderr
