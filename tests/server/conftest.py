"""One server for all tests that leave it as it was, and the offline engine beside it."""

import parrot
import pytest
from server_process import Server


@pytest.fixture(scope="session")
def server():
    with Server("--max-output-tokens", 128, "--max-body-bytes", 2**21, "--max-image-pixels", 2_000_000) as running:
        yield running


@pytest.fixture(scope="session")
def endless_folder(tmp_path_factory):
    """A checkpoint whose replies end at their limit only, slowly enough to be interrupted."""
    return parrot.save(tmp_path_factory.mktemp("checkpoints") / "endless", is_endless=True)


@pytest.fixture(scope="session")
def endless(endless_folder):
    """A server with one slot and two places in the queue, whose replies are long."""
    limits = ("--slots", 1, "--max-waiting", 2, "--max-output-tokens", 3000)
    with Server("--name", "mini", *limits, model=endless_folder) as running:
        yield running


@pytest.fixture(scope="session")
def strict(endless_folder):
    """A server that gives slow clients little time and few connections."""
    limits = ("--max-connections", 16, "--header-timeout", 4, "--max-receiving", 4)
    with Server("--name", "mini", *limits, model=endless_folder) as running:
        running.max_connections = 16
        yield running


@pytest.fixture(scope="session")
def offline():
    """The engine without a server, as the server makes it."""
    import fastvlm
    from fastvlm.backends.devices import pick_device
    from fastvlm.backends.local import fast_dtype

    return fastvlm.Engine.from_model(*fastvlm.load("mini", dtype=fast_dtype(pick_device())), num_slots=4)
