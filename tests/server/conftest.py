"""One server for all tests that leave it as it was, and the offline engine beside it."""

import parrot
import pytest
from server_process import Server


@pytest.fixture(scope="session")
def server():
    running = Server("--max-output-tokens", 128, "--max-body-bytes", 2**21, "--max-image-pixels", 2_000_000)
    yield running
    assert running.stop() == 0, running.lines
    assert "Traceback" not in "".join(running.lines)


@pytest.fixture(scope="session")
def endless_folder(tmp_path_factory):
    """A checkpoint whose replies end at their limit only, slowly enough to be interrupted."""
    return parrot.save(tmp_path_factory.mktemp("checkpoints") / "endless", is_endless=True)


@pytest.fixture(scope="session")
def endless(endless_folder):
    """A server with one slot and two places in the queue, whose replies are long."""
    running = Server(
        "--slots", 1, "--max-waiting", 2, "--max-output-tokens", 3000, "--name", "mini", model=endless_folder
    )
    yield running
    assert running.stop() == 0, running.lines
    assert "Traceback" not in "".join(running.lines)


@pytest.fixture(scope="session")
def strict(endless_folder):
    """A server with little patience for those who hold connections."""
    most = 16
    running = Server(
        *("--name", "mini", "--max-connections", most, "--header-timeout", 4, "--max-receiving", 4),
        model=endless_folder,
    )
    running.max_connections = most
    yield running
    assert running.stop() == 0, running.lines
    assert "Traceback" not in "".join(running.lines)


@pytest.fixture(scope="session")
def offline():
    """The engine without a server, as the server makes it."""
    import fastvlm
    from fastvlm.backends.local import fast_dtype
    from fastvlm.hf.loading import pick_device

    return fastvlm.Engine.from_model(*fastvlm.load("mini", dtype=fast_dtype(pick_device())), num_slots=4)
