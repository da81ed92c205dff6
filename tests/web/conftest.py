"""The page in a real browser, over a real server; skipped where there is no Chromium with its driver."""

import shutil

import pytest
from firefox import Firefox
from server_process import Server

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FIREFOX = shutil.which("firefox-esr") or shutil.which("firefox")


@pytest.fixture(scope="session")
def server():
    running = Server("--accept", "pdf", "--max-images", 3)
    yield running
    assert running.stop() == 0, running.lines


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no chromium and chromedriver here; on Debian: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--disable-dev-shm-usage"),
        *(f"--user-data-dir={tmp_path_factory.mktemp('profile')}", "--window-size=1000,800"),
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(120)
    driver.set_script_timeout(120)
    yield driver
    driver.quit()


@pytest.fixture(scope="session")
def firefox(tmp_path_factory):
    if FIREFOX is None:
        pytest.skip("no firefox here; on Debian: apt-get install firefox-esr")
    running = Firefox(FIREFOX, tmp_path_factory.mktemp("firefox"))
    yield running
    running.close()
