"""`fastvlm demo-data`: a folder of shards, what it says on which stream, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from fastvlm.cli.main import main
from fastvlm.cli.main import run as fastvlm
from fastvlm_recipes.cli import run

MIX = "shapes=2,word=1"


def test_the_folder_is_printed_and_can_be_looked_at(tmp_path, capsys):
    out = tmp_path / "drawn"
    assert (
        main(["demo-data", str(out), "--images", "12", "--shards-of", "5", "--mix", MIX, "--workers", "1", "-q"]) == 0
    )
    said = capsys.readouterr()
    assert (said.out, said.err) == (f"{out}\n", "")
    shards = [f"shard-0000{number}.tar" for number in range(3)]
    names = ["README.md", "drawing.json", "index.html", "names.json", *shards]
    assert sorted(path.name for path in out.iterdir()) == names


def test_json_tells_what_was_drawn_and_what_was_there(tmp_path, capsys):
    command = ["demo-data", str(tmp_path / "out"), "--images", "6", "--mix", MIX, "--workers", "1", "--json", "-q"]
    assert main(command) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["images"], facts["drawn"], facts["shards"], facts["left_out"]) == (6, 6, 1, {})
    assert sum(facts["kinds"].values()) == 6 and facts["ms_per_image"] > 0
    assert main(command) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["drawn"], facts["ms_per_image"]) == (0, None)


def test_what_this_machine_lacks_is_left_out_and_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    assert main(["demo-data", str(tmp_path / "out"), "--images", "8", "--workers", "1", "--json"]) == 0
    said = capsys.readouterr()
    facts = json.loads(said.out)
    assert {"emoji", "fashion"} <= set(facts["left_out"]) and not set(facts["left_out"]) & set(facts["kinds"])
    assert "note: fashion is left out; it needs Debian's package dataset-fashion-mnist." in said.err
    assert "note: emoji is left out" in said.err and "note: Pillow's own font" in said.err


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--split", "heldut"], "Did you mean 'heldout'"),
        (["--mix", "shape=1"], "Did you mean 'shapes'"),
        (["--mix", "fashion=1"], "dataset-fashion-mnist"),
        (["--images", "0"], "--images is 0"),
        (["--pictures", "-1"], "--images is -1"),  # the option's earlier name
        (["--workers", "0"], "--workers is 0"),
        (["--seed", "-1"], "--seed is -1"),
    ],
)
def test_bad_use_is_one_line_and_leaves_nothing(options, word, tmp_path, capsys):
    assert main(["demo-data", str(tmp_path / "out"), *options]) == 2
    said = capsys.readouterr()
    assert word in said.err and said.err.count("\n") == 1 and said.out == ""
    assert not (tmp_path / "out").exists()


def test_the_earlier_name_of_images_still_works(tmp_path, capsys):
    for option in ("--images", "--pictures"):
        command = ["demo-data", str(tmp_path / option), option, "3", "--mix", MIX, "--workers", "1", "-q"]
        assert main(command) == 0
    capsys.readouterr()
    new, old = ((tmp_path / option / "shard-00000.tar").read_bytes() for option in ("--images", "--pictures"))
    assert new == old


@pytest.mark.parametrize("program", ["demo-data", "fastvlm demo-data"])
def test_help_has_examples(program, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [*program.split(), "--help"])
    with pytest.raises(SystemExit) as left:
        run() if program == "demo-data" else fastvlm()
    page = capsys.readouterr().out
    assert left.value.code == 0 and page.startswith(f"Usage: {program} [OPTIONS] OUT\n")
    assert "fastvlm demo-data ./drawn --images 60000" in page and "--pictures" not in page


def test_the_held_out_part_is_another(tmp_path, capsys):
    for split in ("train", "heldout"):
        command = ["demo-data", str(tmp_path / split), "--images", "4", "--mix", MIX, "--workers", "1", "-q"]
        assert main([*command, "--split", split]) == 0
    capsys.readouterr()
    train, heldout = ((tmp_path / split / "shard-00000.tar").read_bytes() for split in ("train", "heldout"))
    assert train != heldout
    assert "--split heldout" in (tmp_path / "heldout" / "README.md").read_text()


def wait_until(condition, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)


def is_gone(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def test_sigterm_leaves_whole_shards_and_no_process(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "fastvlm", "demo-data", str(out), "--images", "100000", "--shards-of", "40"]
    running = subprocess.Popen(
        [*command, "--mix", MIX, "-q"],
        env={name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    wait_until((out / "shard-00000.tar").exists)
    running.send_signal(signal.SIGTERM)
    said = running.communicate(timeout=240)
    assert (running.returncode, *said) == (143, b"", b"")
    wait_until(lambda: is_gone(running.pid))
    assert not list(out.glob(".*.part")) and not (out / "index.html").exists()
    assert len(list(out.glob("shard-*.tar"))) >= 1
