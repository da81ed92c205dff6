"""Captioning on a local Ray cluster, in `.venv-ray` (``make ray``); skipped without it."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from fastvlm.captioning import CaptionSettings, Prompt
from fastvlm.errors import MissingExtraError

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-ray/bin/python"
MINI_EVAL = ROOT / "src/fastvlm/evaluation/mini_eval"


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    import sys

    from fastvlm.integrations.ray_data import Cluster, caption_on_cluster

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"fastvlm\[ray\]"):
        caption_on_cluster([str(tmp_path)], tmp_path, [Prompt("P")], CaptionSettings(), {}, Cluster())


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not PYTHON.exists(), reason="Ray is not installed; run: make ray")
def test_a_job_on_two_actors_of_which_one_is_killed(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    images = sorted(MINI_EVAL.glob("*.png"))[:40]
    for number, image in enumerate(images):
        content = image.read_bytes()
        (photos / f"{number:02d}.png").write_bytes(content[: len(content) // 2] if number in (7, 30) else content)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        [PYTHON, Path(__file__).with_name("ray_data_run.py"), tmp_path],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = [
        json.loads(line.removeprefix("FOUND ")) for line in done.stdout.splitlines() if line.startswith("FOUND ")
    ]
    lines = [json.loads(line) for part in (tmp_path / "out").glob("*.jsonl") for line in part.read_text().splitlines()]
    expected = sorted(
        (f"{number:02d}.png", prompt) for number in range(40) for prompt in ("What color is it?", "What shape is this?")
    )
    assert sorted((line["id"], line["prompt"]) for line in lines) == expected
    assert sorted({line["id"] for line in lines if line["error"]}) == ["07.png", "30.png"]
    assert found["killed"] == 1
    assert found["code"] == 0
    assert found["again"] == [0, 40]  # by the command line
    assert "do not fit a cluster of 4 CPUs" in found["too_many"]
    assert "is the output of another run" in found["other_run"]
    of_lines = {(line["id"], line["prompt"]): line["text"] for line in lines}
    assert {(name, prompt): text for name, prompt, text, _ in found["rows"]} == of_lines
