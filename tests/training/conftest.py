"""A tiny checkpoint and its samples; one thread and no figures, which take as long as a small run's steps."""

import pytest
import small_run
import torch

from fastvlm.training.run import training_run


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def _no_figures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run, "draw_curves", lambda *_: None)
        yield


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    return small_run.checkpoint(tmp_path_factory.mktemp("checkpoints") / "small")


@pytest.fixture(scope="session")
def small_data(tmp_path_factory):
    return small_run.samples(tmp_path_factory.mktemp("data"))
