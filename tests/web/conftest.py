"""The page in a real browser, over a real server; skipped where there is no Chromium with its driver."""

import shutil

import pytest
from chromium import open_chromium
from firefox import Firefox
from server_process import Server

FIREFOX = shutil.which("firefox-esr") or shutil.which("firefox")


@pytest.fixture(scope="session")
def server():
    running = Server("--accept", "pdf", "--max-images", 3)
    yield running
    assert running.stop() == 0, running.lines


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    with open_chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="session")
def firefox(tmp_path_factory):
    if FIREFOX is None:
        pytest.skip("no firefox here; on Debian: apt-get install firefox-esr")
    running = Firefox(FIREFOX, tmp_path_factory.mktemp("firefox"))
    yield running
    running.close()
