"""The workers of `fastvlm` and `transformers` in real processes: the same tokens and features."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastvlm.bench.inputs import photo_jpeg
from fastvlm.bench.measuring import pixels, sketch
from fastvlm.bench.rates import steady_rate
from fastvlm.bench.transformers_peer import Stamps
from fastvlm.errors import UsageError

PEERS = Path(importlib.util.find_spec("timm").origin).parents[1]
COMMANDS = [
    {"do": "open"},
    {"do": "encode", "side_px": 128},
    {"do": "prefill", "num_tokens": 40},
    {"do": "ttft", "image": "IMAGE", "side_px": 128},
    {"do": "decode", "num_tokens": 12, "prompt_tokens": 40},
    {"do": "throughput", "num_streams": 3, "num_tokens": 8, "prompt_tokens": 40},
    {"do": "second_question", "image": "IMAGE", "side_px": 128},
    {"do": "memory"},
]


@given(st.floats(0.001, 1.0), st.integers(2, 20), st.integers(1, 6))
def test_replies_in_step_have_the_rate_of_one_times_their_number(seconds, tokens, replies):
    times = [seconds * index for index in range(tokens)]
    assert steady_rate([times] * replies) == pytest.approx(replies / seconds)


def test_only_the_time_in_which_all_are_decoded_counts():
    early, late = [0.0, 1.0, 2.0, 3.0], [2.0, 3.0, 4.0, 10.0]
    assert steady_rate([early, late]) == 2.0  # two tokens within (2, 3]


@pytest.mark.parametrize("times", [[[0.0]], [[0.0, 1.0], [1.0, 2.0]]])
def test_replies_that_are_too_short_are_refused(times):
    with pytest.raises(UsageError, match="too short"):
        steady_rate(times)


def test_stamps_take_what_generate_says():
    model, stamps = tiny.model(), Stamps()
    ids = torch.tensor([tiny.prompt("ttt")] * 2)
    output = model.generate(input_ids=ids, max_new_tokens=5, min_new_tokens=5, do_sample=False, streamer=stamps)
    assert torch.equal(torch.stack(stamps.token_ids, 1), output[:, 3:])
    assert len(stamps.times_s) == 5 and stamps.times_s == sorted(stamps.times_s)


def test_pixels_are_the_same_each_time_and_in_range():
    image = pixels(128)
    assert image.shape == (1, 3, 128, 128) and image.dtype == torch.float32
    assert 0 <= float(image.min()) < float(image.max()) <= 1
    assert torch.equal(image, pixels(128))


def test_a_sketch_is_a_part_of_the_tensor():
    tensor = torch.arange(3000.0).reshape(3, 1000)
    assert sketch(tensor)[:3] == [0.0, 11.0, 22.0] and len(sketch(tensor)) == 256
    assert sketch(torch.ones(5)) == [1.0] * 5


@pytest.fixture(scope="module")
def answers(endless, tmp_path_factory):
    """What a real worker of each kind says to COMMANDS."""
    image = tmp_path_factory.mktemp("image") / "photo.jpg"
    image.write_bytes(photo_jpeg(128, 128))
    lines = [json.dumps({k: str(image) if v == "IMAGE" else v for k, v in c.items()}) for c in COMMANDS]
    options = json.dumps({"folder": str(endless), "dtype": "float32", "threads": 1})
    workers = {
        kind: subprocess.Popen(
            [sys.executable, "-m", "fastvlm.bench.worker", kind, options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "FASTVLM_PEERS": str(PEERS)},
        )
        for kind in ("fastvlm", "transformers")
    }
    said = {kind: worker.communicate("\n".join(lines) + "\n", timeout=200)[0] for kind, worker in workers.items()}
    names = [command["do"] for command in COMMANDS]
    return {
        kind: dict(zip(names, [json.loads(line) for line in text.splitlines()], strict=True))
        for kind, text in said.items()
    }


@pytest.mark.parametrize("command", [c["do"] for c in COMMANDS])
def test_every_command_has_a_positive_value(answers, command):
    for kind, said in answers.items():
        if (kind, command) == ("transformers", "second_question"):
            assert "no command" in said[command]["error"]
            continue
        assert said[command]["ok"], said[command]
        assert said[command]["value"] > 0


def test_both_compute_the_same(answers):
    ours, theirs = answers["fastvlm"], answers["transformers"]
    assert ours["encode"]["check"] == pytest.approx(theirs["encode"]["check"], rel=1e-3, abs=1e-4)
    for command in ("ttft", "decode", "throughput"):
        assert ours[command]["check"] == theirs[command]["check"], command
    assert len(ours["decode"]["check"]) == 12 and len(ours["throughput"]["check"]) == 8
    assert ours["prefill"]["facts"] == theirs["prefill"]["facts"]
    assert ours["prefill"]["facts"]["tokens"] >= 40


@pytest.mark.parametrize(
    ("kind", "command"), [("fastvlm", "ttft"), ("transformers", "ttft"), ("fastvlm", "second_question")]
)
def test_the_parts_of_a_first_text_make_the_whole(answers, kind, command):
    said = answers[kind][command]
    parts = [said["parts"][name] for name in ("preprocess", "encode", "prefill", "first_token")]
    assert all(part >= 0 for part in parts)
    assert sum(parts) == pytest.approx(said["value"], rel=1e-6)
    if command == "second_question":
        assert said["parts"]["first_question"] > 0


def test_versions_of_the_peer_are_told(answers):
    assert set(answers["transformers"]["open"]["facts"]) == {"transformers", "timm", "torchvision"}
