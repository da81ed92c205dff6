"""What is done, and left undone, while a model is opened."""

import gc

import pytest

from fastvlm.cli import opening
from fastvlm.cli.choices import ModelChoice, Sampling
from fastvlm.cli.terminal import Notes
from fastvlm.errors import CheckpointError

SAMPLING = Sampling(4, 0.0, None, None)


def answerer(name="mini"):
    choice = ModelChoice(name, None, "cpu", "auto", None, None, 16, None)
    return opening.open_answerer(choice, SAMPLING, Notes(is_quiet=True), is_debug=False)


@pytest.mark.parametrize("was_on", [True, False])
def test_no_garbage_is_looked_for_while_a_model_is_opened(monkeypatch, was_on):
    seen = []
    open_engine = opening.open_engine
    monkeypatch.setattr(
        opening, "open_engine", lambda *args, **kw: seen.append(gc.isenabled()) or open_engine(*args, **kw)
    )
    try:
        if not was_on:
            gc.disable()
        answerer().reply([opening.user_message([], "What is red?")])
        assert (seen, gc.isenabled()) == ([False], was_on)
    finally:
        gc.enable()


def test_it_is_looked_for_again_when_opening_fails(tmp_path):
    with pytest.raises(CheckpointError):
        answerer(str(tmp_path))
    assert gc.isenabled()
