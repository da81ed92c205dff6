"""Runs killed with SIGKILL at random moments and started again: no row twice, none lost."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
from instant import Instant, ids_of, lines_of, write_folder, write_parquet

from fastvlm.captioning import caption

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),  # this process has threads; the child needs none
]
NUM_ROWS = 400
NUM_KILLS = 52


def _run(given: str, out: str, kind: str) -> None:
    """One run in a forked process, a few milliseconds a row."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    caption(given, out, ["P", "Q"], Instant(pause_s=0.02), format=kind, rows_per_part=40)


def _kill_after(seconds: float, *arguments: str) -> bool:
    """Kill a run after some seconds; True if it had ended by itself."""
    process = get_context("fork").Process(target=_run, args=arguments)
    process.start()
    process.join(seconds)
    if process.exitcode is not None:
        assert process.exitcode == 0
        return True
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return False


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("source", ["folder", "parquet"])
def test_killed_at_random_moments(tmp_path, kind, source):
    names = [f"d{number % 7}/{number:03d}.png" for number in range(NUM_ROWS)]
    if source == "folder":
        given, expected = str(write_folder(tmp_path / "photos", names)), sorted(names)
    else:
        given, expected = str(write_parquet(tmp_path / "t.parquet", NUM_ROWS)), [f"r{n}" for n in range(NUM_ROWS)]
    out, chance = tmp_path / "out", random.Random(f"{kind} {source}")
    num_kills = num_rows = 0
    while num_kills < NUM_KILLS // 4:
        if _kill_after(chance.uniform(0.01, 0.25), given, str(out), kind):
            _check_whole(out, expected)
            shutil.rmtree(out)  # begin anew
            num_rows = 0
            continue
        num_kills += 1
        ids = ids_of(out) if out.is_dir() else []
        assert len(ids) == len(set(ids)) * 2 >= num_rows  # committed rows stay
        num_rows = len(ids)
    caption(given, out, ["P", "Q"], Instant(), format=kind, rows_per_part=40)
    _check_whole(out, expected)


def _check_whole(out: Path, expected: list[str]) -> None:
    """Every row is there once for each prompt, and nothing else is in the folder."""
    rows = sorted((line["id"], line["prompt"]) for line in lines_of(out))
    assert rows == sorted((name, prompt) for name in expected for prompt in "PQ")
    assert not [file for file in out.iterdir() if file.suffix in (".journal", ".part")]


def test_a_killed_run_loses_only_rows_in_work(tmp_path):
    given = str(write_parquet(tmp_path / "t.parquet", NUM_ROWS))
    arguments = [
        sys.executable,
        str(Path(__file__).with_name("kill_me.py")),
        given,
        str(tmp_path / "out"),
        "jsonl",
        "0.05",
    ]
    process = subprocess.Popen(arguments)
    journal, deadline_s = tmp_path / "out/t-00001.jsonl.journal", time.monotonic() + 60
    while not (journal.exists() and journal.stat().st_size > 3000):
        assert time.monotonic() < deadline_s
        time.sleep(0.005)
    process.kill()
    process.wait()
    again = Instant()
    caption(given, str(tmp_path / "out"), ["P", "Q"], again, rows_per_part=40)
    done = NUM_ROWS - len(again.asked)
    assert done > 40  # the whole part, and rows of the journal
    assert again.asked == [f"r{number}" for number in range(done, NUM_ROWS)]


def test_a_record_that_is_not_whole_is_cut_off(tmp_path):
    given = str(write_parquet(tmp_path / "t.parquet", 30))
    caption(given, tmp_path / "out", "P", Instant(), rows_per_part=100)
    from fastvlm.captioning.journal import Journal
    from fastvlm.captioning.part_formats import FORMATS

    samples = list(FORMATS["jsonl"].read(tmp_path / "out/t-00000.jsonl", 1))[:9]
    path = tmp_path / "out/t-00000.jsonl.journal"
    journal = Journal(path)
    for sample in samples:
        journal.append(sample)
    journal.close()
    whole = path.read_bytes()
    (tmp_path / "out/t-00000.jsonl").unlink()
    cuts = [len(whole) - 1, len(whole) - 40, len(whole) // 2]
    for cut in cuts:
        path.write_bytes(whole[:cut])
        again = Instant()
        caption(given, tmp_path / "out", "P", again, rows_per_part=100)
        assert ids_of(tmp_path / "out") == [f"r{number}" for number in range(30)]
        assert 30 - len(again.asked) == whole[:cut].count(b"\n")
        (tmp_path / "out/t-00000.jsonl").unlink()


def test_images_in_the_journal_survive(tmp_path):
    """WebDataset parts are written from the journal, which has the images."""
    folder = write_folder(tmp_path / "photos", [f"{number:02d}.png" for number in range(20)])
    chance = random.Random(1)
    for _ in range(12):
        if _kill_after(chance.uniform(0.01, 0.1), str(folder), str(tmp_path / "out"), "webdataset"):
            break
    caption(str(folder), tmp_path / "out", ["P", "Q"], Instant(), format="webdataset", rows_per_part=40)
    from fastvlm.captioning.part_formats import FORMATS

    samples = list(FORMATS["webdataset"].read(tmp_path / "out/photos-00000.tar", 2))
    assert [(sample.id, sample.image) for sample in samples] == [(f"{n:02d}.png", b"x" * 7) for n in range(20)]
