"""The static page in a headless Chromium, without a network: an image in, its answer out."""

import functools
import http.server
import os
import shutil
import threading
import time
from pathlib import Path
from typing import ClassVar

import pytest
from chromium import open_chromium

from fastvlm.export.page_files import write_page

EXAMPLES = Path(__file__).parents[2] / "examples"
LIMIT_S = 180


class Handler(http.server.SimpleHTTPRequestHandler):
    extensions_map: ClassVar = {**http.server.SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript"}

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site(mini_onnx, modules, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "mini"
    shutil.copytree(mini_onnx, folder, copy_function=os.link)
    for name in ("page.json", "index.html"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "vendor", ignore_errors=True)
    write_page(folder, modules)
    handler = functools.partial(Handler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


def until(driver, condition):
    end_s = time.monotonic() + LIMIT_S
    while not (value := condition()):
        shown = driver.find_element("css selector", "body").text
        logs = driver.get_log("browser") if "cannot be loaded" in shown or time.monotonic() > end_s else ""
        assert "cannot be loaded" not in shown and time.monotonic() < end_s, (
            f"it did not happen; the page says: {shown}; {logs}"
        )
        time.sleep(0.1)
    return value


def text(driver, selector):
    return driver.execute_script("return document.querySelector(arguments[0])?.innerText ?? ''", selector)


def test_an_image_gets_its_answer_and_errors_are_lines(site, browser, tmp_path):
    browser.get(site)
    until(browser, lambda: text(browser, "#model") == "ready")
    note = tmp_path / "note.txt"
    note.write_text("not an image")
    browser.find_element("css selector", "#files").send_keys(str(note))
    until(browser, lambda: "is not an image" in text(browser, "#error"))
    browser.find_element("css selector", "#files").send_keys(str(EXAMPLES / "red_star.png"))
    until(browser, lambda: browser.find_elements("css selector", "#images img"))
    assert text(browser, "#error") == ""
    browser.find_element("css selector", "#question").send_keys("What shape is it?")
    browser.find_element("css selector", "#send").click()
    until(browser, lambda: browser.find_elements("css selector", ".turn.assistant .stats"))
    assert text(browser, ".turn.assistant .body") == "It is a star."
    if "FASTVLM_SCREENSHOT" in os.environ:
        browser.save_screenshot(os.environ["FASTVLM_SCREENSHOT"])
    severe = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert severe == []
