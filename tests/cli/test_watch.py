"""`fastvlm watch` over videos, streams and folders: answers, lines, commands, endings, memory."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import parrot
import pytest
from cli_process import hear_ctrl_c, plain_environment
from media_files import disk, video
from PIL import Image
from stream_server import serving

from fastvlm import FastVLM
from fastvlm.cli import watch_command
from fastvlm.cli.choices import Sampling
from fastvlm.cli.question import Question
from fastvlm.cli.watch_command import CommandChoice
from fastvlm.cli.watch_loop import Counts, WatchLoop, opened_frames
from fastvlm.errors import ImageError, UsageError
from fastvlm.images import live_sources
from fastvlm.images.live_frames import ChangeFilter, LiveFrame

COLORS = ("red", "green", "blue")
FIRST_LINE = parrot.SENTENCE.splitlines()[0]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    path.write_bytes(video([disk(one) for one in COLORS], each=5, fps=20))
    return path


def lines(outcome):
    return [json.loads(line) for line in outcome.out.splitlines()]


def test_one_answer_for_each_change(fastvlm, clip, parrot_folder):
    outcome = fastvlm("watch", clip, "What?", "-m", parrot_folder, "--all-frames")
    assert outcome.code == 0
    shown = [line for line in outcome.out.splitlines() if line.startswith("[")]
    assert [line.partition(",")[0] for line in shown] == ["[0:00.0", "[0:00.2", "[0:00.5"]
    assert all(line.endswith(f"ms] {FIRST_LINE}") for line in shown)
    assert outcome.err.startswith("fastvlm: watched: 15 frames in ")
    assert outcome.err.endswith("12 unchanged, 0 dropped.\n") and ", 3 answers after " in outcome.err


def test_json_lines_say_when_where_and_how_long(fastvlm, clip, parrot_folder):
    outcome = fastvlm("watch", clip, "What?", "-m", parrot_folder, "--all-frames", "--json", "-q")
    found = lines(outcome)
    assert outcome.err == ""
    assert [(line["frame"], line["time_s"], line["file"]) for line in found] == [
        (1, 0, None),
        (6, 0.25, None),
        (11, 0.5, None),
    ]
    assert all(line["answer"] == parrot.SENTENCE and line["latency_ms"] >= line["timings_ms"]["ttft"] for line in found)
    assert [line["usage"]["cached_prompt_tokens"] > 0 for line in found] == [False, True, True], (
        "the prompt's beginning"
    )
    assert all(line["time"].endswith("+00:00") and line["is_triggered"] is False for line in found)


def test_at_its_own_speed_frames_are_dropped_not_queued(fastvlm, clip, parrot_folder, monkeypatch):
    slow = WatchLoop._answer
    monkeypatch.setattr(WatchLoop, "_answer", lambda self, frame: (time.sleep(0.3), slow(self, frame)))
    outcome = fastvlm("watch", clip, "What?", "-m", parrot_folder, "--json")
    found = lines(outcome)
    assert found[-1]["frame"] > 10 and found[-1]["dropped"] > 0
    assert "watched: 15 frames" in outcome.err


def test_it_ends_after_the_answers_asked_for(fastvlm, clip, parrot_folder):
    options = ("-m", parrot_folder, "--all-frames", "--json", "--max-answers", "2", "--interval", "0.3")
    assert [line["frame"] for line in lines(fastvlm("watch", clip, "What?", *options))] == [1, 7]


def test_a_schema_is_followed(fastvlm, clip, parrot_folder, tmp_path):
    pytest.importorskip("llguidance")
    (tmp_path / "schema.json").write_text('{"enum": ["yes", "no"]}')
    options = (
        "-m",
        parrot_folder,
        "--all-frames",
        "--json",
        "--schema",
        tmp_path / "schema.json",
        "--max-answers",
        "1",
    )
    (line,) = lines(fastvlm("watch", clip, "Is it red?", *options))
    assert json.loads(line["answer"]) in ("yes", "no")


def test_a_command_gets_the_answer_and_its_failure_ends_nothing(process, clip, parrot_folder, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import json, os, sys\n"
        "line = json.loads(sys.stdin.read())\n"
        "assert line['answer'] == os.environ['FASTVLM_ANSWER']\n"
        f"print(os.environ['FASTVLM_FRAME'], sys.argv[1], file=open({str(tmp_path / 'log')!r}, 'a'))\n"
        "print('to stderr')\n"
        "sys.exit(line['frame'] == 6)\n"
    )
    command = f"{sys.executable} {script} 'two words; $HOME'"
    outcome = process(
        "watch", clip, "What?", "-m", parrot_folder, "--all-frames", "--json", "--when", "a RED", "--run", command
    )
    assert [line["is_triggered"] for line in lines(outcome)] == [True] * 3
    assert (tmp_path / "log").read_text().splitlines() == [f"{number} two words; $HOME" for number in (1, 6, 11)]
    assert outcome.err.count("to stderr") == 3 and outcome.err.count("failed with exit code 1.") == 1
    assert outcome.err.endswith("3 commands run, 1 failed.\n")


@pytest.mark.parametrize(
    ("when", "answer", "is_triggered"),
    [
        ("yes", "Yes, there is.", True),
        ("yes", "no, yesterday", False),
        ("yes", '{"seen": "yes"}', True),
        (" at the door ", "Somebody is At the Door.", True),
        ("100 %", "It is 100 %.", True),
        ("a.c", "abc", False),
        (None, "", True),
    ],
)
def test_a_word_triggers_a_command(when, answer, is_triggered):
    assert CommandChoice(when, sys.executable).is_triggered_by(answer) is is_triggered
    assert CommandChoice().is_triggered_by(answer) is False


def test_a_command_that_hangs_is_ended_and_one_that_is_gone_is_told(monkeypatch, tmp_path):
    line = {"answer": "a\0b", "time": "", "frame": 1, "time_s": 0.0, "file": None, "latency_ms": 1.0}
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nsleep 60\n")
    program.chmod(0o755)
    choice, warnings = CommandChoice(run=str(program)), []
    monkeypatch.setattr(watch_command, "TIMEOUT_S", 0.2)
    assert choice.start(line, warnings.append) is False
    program.unlink()
    assert choice.start(line, warnings.append) is False
    assert "was ended after 0.2 s" in warnings[0] and "could not be started" in warnings[1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--when", "yes"), "Give --run 'COMMAND' too."),
        (("--when", " ", "--run", "true"), "--when is empty"),
        (("--run", "no-such-program-at-all x"), "there is no program 'no-such-program-at-all'"),
        (("--run", "'open"), "Close the quotes."),
        (("--run", ""), "--run is empty"),
        (("--interval", "-1"), "--interval is -1; expected 0 to 86400"),
        (("--max-answers", "0"), "--max-answers is 0; expected 1 or more."),
        (("--schema", "absent.json"), "cannot be read"),
    ],
)
def test_impossible_options_are_one_line(fastvlm, clip, options, says):
    outcome = fastvlm("watch", clip, "What?", *options)
    assert outcome.code == 2 and says in outcome.error


def test_impossible_sources_are_one_line_before_a_model_is_opened(fastvlm, image, monkeypatch):
    monkeypatch.setattr(live_sources.sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    for source, options, says, code in (
        ("camera:99", (), "camera:99 cannot be opened", 1),
        ("camera:0", ("--all-frames",), "a camera goes on by itself", 2),
        (image.parent, ("--interval", "1"), "each new file of a folder is answered", 2),
        ("screen", (), "DISPLAY is not set", 1),
        (image, (), "is not a video", 2),
        ("nothing", (), "There is no source", 2),
        ("rtsp://127.0.0.1:1/x", (), "cannot be opened (Connection refused)", 1),
    ):
        outcome = fastvlm("watch", source, "What?", "-m", "/nowhere", *options)
        assert outcome.code == code and says in outcome.error


def test_a_stream_that_breaks_off_for_good_ends_with_one_line(fastvlm, parrot_folder, monkeypatch):
    monkeypatch.setattr("fastvlm.images.live_video.RETRY_PAUSES_S", (0.01,))
    with serving([disk("red"), disk("blue")], rounds=2) as (address, _):  # the first is the check
        outcome = fastvlm("watch", f"{address}/mjpeg", "What?", "-m", parrot_folder, "--json")
    *told, watched, error = outcome.err.splitlines()
    assert outcome.code == 1 and lines(outcome)
    assert [line.startswith("fastvlm: warning: ") and "Opening it again" in line for line in told] == [True]
    assert watched.startswith("fastvlm: watched: ") and "Opened again 1 times in vain." in error


def test_a_camera_is_asked_about_until_it_is_unplugged(fastvlm, clip, parrot_folder, monkeypatch):
    camera = live_sources.find_source
    monkeypatch.setattr(
        live_sources, "find_source", lambda name: replace(camera(name), address=str(clip), container_format=None)
    )
    outcome = fastvlm("watch", "camera:0", "What?", "-m", parrot_folder, "--json")
    assert outcome.code == 1 and lines(outcome)[0]["answer"] == parrot.SENTENCE
    assert outcome.err.splitlines()[-1] == "fastvlm: error: camera:0 has broken off."


def test_ctrl_c_ends_a_watched_folder_with_a_summary(workplace, tmp_path, parrot_folder):
    folder = tmp_path / "incoming"
    folder.mkdir()
    command = [sys.executable, "-m", "fastvlm", "watch", folder, "What?", "-m", parrot_folder, "--json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "preexec_fn": hear_ctrl_c}
    written, is_done = [], threading.Event()

    def write():
        while not is_done.wait(1.0):  # until the command has been started, too
            (folder / f"{len(written)}.png.part").write_bytes(b"damaged" if len(written) % 2 else png)
            (folder / f"{len(written)}.png.part").rename(folder / f"{len(written)}.png")
            written.append(1)

    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    png = (tmp_path / "a.png").read_bytes()
    writer = threading.Thread(target=write)
    writer.start()
    try:
        with subprocess.Popen(command, env=plain_environment(), **pipes) as running:
            found = [json.loads(running.stdout.readline()) for _ in range(2)]
            running.send_signal(signal.SIGINT)
            _, err = running.communicate(timeout=240)
    finally:
        is_done.set()
        writer.join()
    assert running.returncode == 130
    assert [line["file"].endswith(".png") and line["answer"] == parrot.SENTENCE for line in found] == [True, True]
    assert found[1]["usage"]["cached_prompt_tokens"] > found[0]["usage"]["cached_prompt_tokens"], "the same image again"
    *warnings, watched, stopped = err.decode().splitlines()
    assert warnings and all("warning: " in line and "is not an image" in line for line in warnings)
    assert "2 answers after " in watched and "not readable" in watched and stopped == "fastvlm: stopped: by Ctrl-C."


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
def test_memory_stays_the_same_over_thousands_of_frames(parrot_folder, capsys):
    """3,000 frames at 64 px as fast as they come, each tenth a new image; the first 1,000 fill caches and pools."""

    class Source:
        kind = "simulated"

        def frames(self, stop, warn, *, is_paced=True):
            for number in range(1, 3001):
                color = (number // 10 * 37 % 256, number // 2560 * 64, number // 10 * 91 % 256)
                if number == 1000:
                    resident.append(resident_bytes())
                yield LiveFrame(lambda color=color: Image.new("RGB", (64, 64), color), number, number / 30)

    resident, counts = [], Counts()
    with FastVLM(str(parrot_folder), num_slots=1, image_cache_bytes=2**16, pixel_cache_bytes=0) as model:
        question = Question("What?", None, Sampling(max_new_tokens=2), None)
        loop = WatchLoop(model, 0.0, question, CommandChoice(), True, pytest.fail, counts)
        with opened_frames(Source(), counts, pytest.fail, is_each=True) as frames:
            loop.run(frames, ChangeFilter())
    resident.append(resident_bytes())
    assert counts.frames == 3000 and counts.answers + counts.unchanged == 3000 and counts.answers > 250
    assert len(capsys.readouterr().out.splitlines()) == counts.answers
    assert resident[1] - resident[0] < 8 * 2**20, f"{resident[1] - resident[0]} bytes more after 2,000 frames"


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_source_that_stalls_is_one_line(monkeypatch):
    monkeypatch.setattr("fastvlm.cli.watch_loop.STALL_S", 0.05)

    class Source:
        kind = "camera"

        def frames(self, stop, warn, *, is_paced=True):
            stop.wait()
            yield from ()

    with (
        pytest.raises(ImageError, match="No frame has come"),
        opened_frames(Source(), Counts(), print, is_each=False) as it,
    ):
        list(it)


def test_an_empty_command_is_refused_where_it_is_made():
    with pytest.raises(UsageError, match="--run is empty"):
        CommandChoice(run=" ")
