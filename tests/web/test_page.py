"""The page as people use it: image in, streamed text out, stop, errors, camera, keyboard, phone width."""

import base64
import json
import os
import re
import time
from pathlib import Path

import pytest
from server_process import ROOT, data_uri, question

PAGE = ROOT / "src" / "fastvlm" / "web" / "page"
LIMIT_S = 120
SHOTS = os.environ.get("FASTVLM_SCREENSHOTS")  # a folder; nothing is written without it


class Page:
    """One visit of the page."""

    def __init__(self, driver, url):
        self.driver, self.url = driver, url
        driver.get(url)
        self.until(lambda: self.text("#model") == "mini")

    def until(self, condition):
        end_s = time.monotonic() + LIMIT_S
        while True:
            value = condition()
            if value:
                return value
            assert time.monotonic() < end_s, f"it did not happen; the page says: {self.text('body')}"
            time.sleep(0.05)

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def text(self, selector):
        return self.driver.execute_script("return document.querySelector(arguments[0])?.innerText ?? ''", selector)

    def click(self, selector):
        self.driver.find_element("css selector", selector).click()

    def press(self, *keys):
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def type(self, text):
        self.driver.find_element("css selector", "#question").send_keys(text)

    def answered(self, count=1):
        """The texts of all answers, once there are `count` of them, each with its line of figures."""
        self.until(lambda: len(self.all(".turn.assistant .stats")) >= count)
        return [one.text for one in self.all(".turn.assistant p:not(.stats)")]

    def shot(self, name):
        if SHOTS:
            self.driver.save_screenshot(str(Path(SHOTS) / f"{name}.png"))


@pytest.fixture
def page(browser, server):
    visit = Page(browser, server.url)
    yield visit
    errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert errors == [], "the browser's console has errors"


def test_every_example_on_the_page_gets_the_right_answer(server):
    listed = re.search(r"const EXAMPLES = (\[.*?\n\]);", (PAGE / "main.js").read_text(encoding="utf-8"), re.DOTALL)
    answers = {}
    for name, text in json.loads(re.sub(r",\s*\]$", "]", listed[1])):
        reply = server.chat(question(text, data_uri(PAGE / "examples" / name)))
        answers[name] = reply.json()["choices"][0]["message"]["content"]
    assert answers == {
        "letter.png": "K",
        "red_star.png": "It is a star.",
        "five_shapes.png": "5",
        "word.png": "OAK",
        "objects.png": "A cloud and a banana.",
        "shapes.png": "It is a cross.",
    }


def test_an_example_is_one_click_away_and_the_answer_streams_in(page):
    page.shot("welcome")
    [letter, *_] = page.all("#examples button")
    letter.click()
    [answer] = page.answered()
    assert answer.strip() == "K"
    assert re.fullmatch(r"first word after \d+ ms( · \d+ tokens/s)?( · cut.*)?", page.text(".turn.assistant .stats"))
    assert len(page.all(".turn.user img")) == 1 and not page.all("#examples button")[0].is_displayed()
    page.type("What color is the letter?")
    from selenium.webdriver import Keys

    page.press(Keys.ENTER)
    assert page.answered(2)[1].strip() == "red"
    page.shot("conversation")


def test_a_long_conversation_scrolls_in_one_place(page):
    size = {"width": 600, "height": 480, "deviceScaleFactor": 1, "mobile": False}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        for count in range(1, 6):
            page.type("Hello?")
            page.click("#send")
            page.answered(count)
        inside = page.driver.execute_script(
            "const m = document.querySelector('main'); return m.scrollHeight - m.clientHeight"
        )
        whole = page.driver.execute_script("const d = document.documentElement; return d.scrollHeight - d.clientHeight")
        assert inside > 100 and whole == 0
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_picked_a_dropped_and_a_pasted_image_go_with_the_question(page):
    page.driver.find_element("css selector", "#files").send_keys(str(ROOT / "examples" / "red_star.png"))
    page.until(lambda: len(page.all("#images img")) == 1)
    give = """
      const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
      const transfer = new DataTransfer();
      transfer.items.add(new File([bytes], "a.png", { type: "image/png" }));
      const event = arguments[1] === "drop"
        ? new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true })
        : new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true });
      document.body.dispatchEvent(event);
    """
    data = base64.b64encode((ROOT / "examples" / "letter.png").read_bytes()).decode()
    for count, kind in enumerate(("drop", "paste"), start=2):
        page.driver.execute_script(give, data, kind)
        page.until(lambda count=count: len(page.all("#images img")) == count)
    page.click("#images li:nth-child(2) button")
    assert len(page.all("#images img")) == 2
    page.type("What do you see?")
    page.click("#send")
    page.answered()
    assert len(page.all(".turn.user img")) == 2 and page.all("#images img") == []


def test_the_json_preset_gives_json(page):
    page.driver.find_element("css selector", "#files").send_keys(str(ROOT / "examples" / "red_star.png"))
    page.until(lambda: page.all("#images img"))
    page.click("#presets button:nth-child(4)")
    [answer] = page.answered()
    assert set(json.loads(answer)) == {"shape", "color", "count"}


@pytest.mark.parametrize("how", ["button", "escape"])
def test_stop_ends_a_reply_that_stays(browser, endless, how):
    from selenium.webdriver import Keys

    page = Page(browser, endless.url)
    page.driver.execute_script("document.querySelector('#max-tokens').value = 16000")
    page.type("Talk.")
    page.click("#send")
    page.until(lambda: len(page.text(".turn.assistant p")) > 20)
    assert page.all("#stop")[0].is_displayed() and not page.all("#send")[0].is_enabled()
    if how == "button":
        page.click("#stop")
    else:
        page.press(Keys.ESCAPE)
    [answer] = page.answered()
    assert answer.startswith("Gr") and page.text(".turn.assistant .stats").endswith("stopped")
    endless.until_idle()
    page.click("#new")
    assert page.all(".turn") == [] and page.all("#examples button")[0].is_displayed()


def test_an_error_is_told_kindly_and_nothing_is_lost(browser, server):
    page = Page(browser, server.url)
    page.type("Is <|im_end|> a word?")
    page.click("#send")
    page.until(lambda: page.text("#error"))
    assert "is a special token of the model" in page.text("#error")
    assert page.all("#question")[0].get_attribute("value") == "Is <|im_end|> a word?" and page.all(".turn") == []
    page.shot("error")
    page.driver.execute_script("window.fetch = () => Promise.reject(new TypeError('Failed to fetch'))")
    page.click("#send")
    page.until(lambda: "Is it still running?" in page.text("#error"))
    browser.get_log("browser")  # the refused request stands in it


def test_the_camera_gives_an_image(page):
    page.click("#camera")
    page.until(lambda: page.all("#images img"))
    page.type("What is this?")
    page.click("#send")
    assert page.answered()


def skipped(page):
    return int((re.search(r"(\d+) unchanged", page.text("#live-stats")) or [0, 0])[1])


def test_live_answers_again_and_again_and_skips_what_did_not_change(page):
    page.click("#live-camera")
    page.until(lambda: page.text("#live-answer"))
    page.until(lambda: int((re.search(r"(\d+) answer", page.text("#live-stats")) or [0, 0])[1]) >= 2)
    page.shot("live")
    # A camera that shows one image for ever.
    page.click("#live-end")
    assert not page.all("#live")[0].is_displayed()
    page.driver.execute_script("""
      const canvas = document.createElement("canvas");
      canvas.width = canvas.height = 64;
      canvas.getContext("2d").fillRect(0, 0, 32, 32);
      navigator.mediaDevices.getUserMedia = async () => {
        setInterval(() => canvas.getContext("2d").fillRect(0, 0, 32, 32), 50);
        return canvas.captureStream();
      };
    """)
    page.click("#live-camera")
    page.until(lambda: skipped(page) >= 3)
    answers = page.text("#live-stats").partition(" answer")[0]
    page.until(lambda: skipped(page) >= 8)
    assert page.text("#live-stats").startswith(f"{answers} answer"), "the same image was asked about again"
    page.click("#live-snap")
    page.until(lambda: len(page.all("#images img")) == 1)
    page.click("#live-end")


def test_everything_can_be_reached_and_is_named(page):
    nameless = page.driver.execute_script("""
      const shown = [...document.querySelectorAll("button, input, textarea, a, video, img, summary")];
      return shown.filter((one) => one.checkVisibility()).filter((one) => {
        const name = one.innerText || one.title || one.getAttribute("aria-label") || one.labels?.[0]?.innerText;
        return !name && !(one.tagName === "IMG" && one.hasAttribute("alt"));
      }).map((one) => one.outerHTML);
    """)
    assert nameless == []
    assert page.driver.execute_script("return document.documentElement.lang") == "en"
    assert page.all("[role=log][aria-live=polite]") and page.all("[role=alert]")
    from selenium.webdriver import Keys

    page.driver.execute_script("document.activeElement.blur(); window.scrollTo(0, 0)")
    reached = set()
    for _ in range(40):
        page.press(Keys.TAB)
        reached.add(page.driver.execute_script("return document.activeElement.id"))
    assert {"new", "question", "pick", "camera", "live-camera", "live-screen", "send"} <= reached


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_everything_and_text_can_be_read(page, scheme):
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    )
    features = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", features)
    try:
        page.all("#examples button")[1].click()
        page.answered()
        assert page.driver.execute_script("return document.documentElement.scrollWidth") <= 360
        for element in page.all("#send, #pick, #camera, #question"):
            box = element.rect
            assert box["x"] >= 0 and box["x"] + box["width"] <= 360 and box["height"] >= 32, element.get_attribute("id")
        page.shot(f"phone-{scheme}")
        for selector in ("#model", ".stats", ".turn.user p", ".turn.assistant p", "#send"):
            assert contrast(page, selector) >= 4.5, selector
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def contrast(page, selector):
    """WCAG 2.2's ratio of a text's color to its ground's."""
    colors = page.driver.execute_script(
        """
        let one = document.querySelector(arguments[0]);
        const text = getComputedStyle(one).color;
        const isClear = (node) => /rgba\\(.*, 0\\)/.test(getComputedStyle(node).backgroundColor);
        while (one && isClear(one)) one = one.parentElement;
        return [text, getComputedStyle(one ?? document.body).backgroundColor];
        """,
        selector,
    )
    light, dark = sorted((luminance(color) for color in colors), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(color):
    channels = [int(value) / 255 for value in re.findall(r"\d+", color)[:3]]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


# ------------------------------------------------------------------------------------------ without a browser


def test_nothing_is_loaded_from_elsewhere():
    for file in PAGE.glob("*.*"):
        addresses = re.findall(r"(?:https?:)?//[a-z][\w.-]+\.[a-z]+", file.read_text(encoding="utf-8"))
        assert set(addresses) <= {"http://www.w3.org"}, file  # SVG's name, which nothing fetches


def test_the_page_talks_to_v1_and_to_its_own_files_only():
    source = "".join(file.read_text(encoding="utf-8") for file in PAGE.glob("*.js"))
    assert set(re.findall(r"[\"'`](/[\w/]+)", source)) == {"/v1/models", "/v1/chat/completions"}


def test_the_page_is_small_and_its_examples_are_the_shipped_ones():
    for file in PAGE.glob("*.*"):
        assert len(file.read_text(encoding="utf-8").splitlines()) <= 400, file
    for file in (PAGE / "examples").iterdir():
        assert file.read_bytes() == (ROOT / "examples" / file.name).read_bytes()
