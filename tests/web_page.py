"""The web page in a browser, as its tests use it."""

from __future__ import annotations

import time
from pathlib import Path

from server_process import ROOT

LIMIT_S = 120
AXE = Path(__file__).parent / "web" / "vendor" / "axe.min.js"


class Page:
    """One visit of the page by someone who was never there: nothing is stored in the browser."""

    def __init__(self, driver, url, script=""):
        """`script` runs before the page's own."""
        self.driver, self.url = driver, url
        driver.get("about:blank")
        driver.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": url, "storageTypes": "all"})
        added = driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})
        driver.get(url)
        self.until_ready()
        driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)

    def until_ready(self):
        self.until(lambda: self.text("#model") == "mini" or self.value("#model-choice") == "mini")

    def reload(self):
        self.driver.refresh()
        self.until_ready()

    def until(self, condition):
        end_s = time.monotonic() + LIMIT_S
        while True:
            value = condition()
            if value:
                return value
            assert time.monotonic() < end_s, f"it did not happen; the page says: {self.text('body')}"
            time.sleep(0.05)

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def text(self, selector):
        return self.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector)

    def one(self, selector):
        return self.driver.find_element("css selector", selector)

    def texts(self, selector):
        return [one.text for one in self.all(selector)]

    def value(self, selector):
        return self.run("return document.querySelector(arguments[0])?.value", selector)

    def is_shown(self, selector):
        return any(one.is_displayed() for one in self.all(selector))

    def click(self, selector):
        self.one(selector).click()

    def press(self, *keys):
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def type(self, text):
        self.one("#question").send_keys(text)

    def fill(self, selector, value):
        """Put a value into a field, as typing it does."""
        self.run(
            "const [e, value] = arguments; e.value = value; e.dispatchEvent(new Event('input'))",
            self.one(selector),
            value,
        )

    def pick(self, *files):
        self.one("#files").send_keys("\n".join(map(str, files)))

    def pick_example(self, name):
        self.pick(ROOT / "examples" / f"{name}.png")
        self.until(lambda: self.all("#images li"))

    def ask(self, text):
        """Ask; the texts of all answers."""
        count = len(self.all(".turn.assistant"))
        self.type(text)
        self.click("#send")
        return self.answered(count + 1)

    def answered(self, count=1):
        """The texts of all answers, once there are `count` of them, each with its line of figures."""
        self.until(
            lambda: len(self.all(".turn.assistant .stats:not([hidden])")) >= count and not self.is_shown("#stop")
        )
        return self.texts(".turn.assistant .body")

    def resize(self, width, height, is_mobile=False):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": is_mobile}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def prefer(self, scheme):
        features = [{"name": "prefers-color-scheme", "value": scheme}] if scheme else []
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def faults(self):
        """Accessibility faults that axe-core finds in what is shown now."""
        if not self.run("return 'axe' in window"):
            self.run(AXE.read_text(encoding="utf-8"))
        result = self.driver.execute_async_script(
            "const [done] = arguments; axe.run().then(done, (e) => done(String(e)))"
        )
        return [(one["id"], [node["html"] for node in one["nodes"]]) for one in result["violations"]]
