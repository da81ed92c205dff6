"""A tiny checkpoint and its samples, and one thread: on a busy machine two of them wait for each other."""

import pytest
import small_run
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    return small_run.checkpoint(tmp_path_factory.mktemp("checkpoints") / "small")


@pytest.fixture(scope="session")
def small_data(tmp_path_factory):
    return small_run.samples(tmp_path_factory.mktemp("data"))
