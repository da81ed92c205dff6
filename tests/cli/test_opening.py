"""What is done, and left undone, while a model is opened."""

import gc
import os

import pytest

from fastvlm.cli import opening
from fastvlm.cli.choices import ModelChoice
from fastvlm.cli.terminal import Notes
from fastvlm.engine.engine import Engine
from fastvlm.errors import CheckpointError


def opened(name="mini"):
    return opening.open_model(ModelChoice(name, device="cpu"), Notes(is_quiet=True), is_debug=False)


@pytest.mark.parametrize("was_on", [True, False])
def test_no_garbage_is_looked_for_while_a_model_is_opened(monkeypatch, was_on):
    seen = []
    build = Engine.from_checkpoint
    monkeypatch.setattr(
        Engine, "from_checkpoint", lambda *args, **kw: seen.append(gc.isenabled()) or build(*args, **kw)
    )
    try:
        if not was_on:
            gc.disable()
        model, load_ms = opened()
        with model:
            assert model.ask(None, "What is red?", max_new_tokens=4) and load_ms > 0
        assert (seen, gc.isenabled()) == ([False], was_on)
    finally:
        gc.enable()


def test_it_is_looked_for_again_when_opening_fails(tmp_path):
    with pytest.raises(CheckpointError):
        opened(str(tmp_path))
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_waiting_threads_of_openmp_sleep_soon_unless_the_environment_says_otherwise(
    monkeypatch, environment, expected, tmp_path
):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # what this process had comes back afterwards
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CheckpointError):
        opened(str(tmp_path))
    assert os.environ.get("GOMP_SPINCOUNT") == expected
