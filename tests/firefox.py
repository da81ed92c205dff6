"""Firefox without a window, driven over WebDriver BiDi: Debian has no geckodriver, which Selenium would need."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import websocket

START_S = 120


class Firefox:
    """One browser with one page; `profile` is an empty folder."""

    def __init__(self, binary: str, profile: Path) -> None:
        self._log = profile / "log"
        with self._log.open("w") as log:
            command = [binary, "--headless", "--no-remote", "--profile", str(profile), "--remote-debugging-port", "0"]
            environment = {**os.environ, "HOME": str(profile), "MOZ_CRASHREPORTER_DISABLE": "1"}
            self._process = subprocess.Popen(command, stderr=log, stdout=log, env=environment, start_new_session=True)
        self._socket = websocket.create_connection(f"{self._address()}/session", timeout=START_S, suppress_origin=True)
        self._count = 0
        self.command("session.new", capabilities={})
        self._page = self.command("browsingContext.getTree")["contexts"][0]["context"]

    def _address(self) -> str:
        end_s = time.monotonic() + START_S
        while time.monotonic() < end_s:
            found = re.search(r"WebDriver BiDi listening on (ws://\S+)", self._log.read_text())
            if found:
                return found[1]
            assert self._process.poll() is None, self._log.read_text()
            time.sleep(0.05)
        raise AssertionError(f"Firefox did not start: {self._log.read_text()}")

    def command(self, method: str, **params: object) -> dict:
        """The result of a command of WebDriver BiDi."""
        self._count += 1
        self._socket.send(json.dumps({"id": self._count, "method": method, "params": params}))
        while True:
            reply = json.loads(self._socket.recv())
            if reply.get("id") == self._count:
                assert reply["type"] == "success", reply
                return reply["result"]

    def open(self, url: str) -> None:
        """Go to a page."""
        self.command("browsingContext.navigate", context=self._page, url=url, wait="complete")

    def run(self, expression: str) -> object:
        """The value of a JavaScript expression, awaited; it comes as JSON."""
        target = {"context": self._page}
        wrapped = f"(async () => JSON.stringify(await ({expression})))()"
        result = self.command(
            "script.evaluate", expression=wrapped, target=target, awaitPromise=True, userActivation=True
        )
        assert result["type"] == "success", result["exceptionDetails"]["text"]
        return json.loads(result["result"].get("value", "null"))

    def until(self, expression: str, limit_s: float = 120) -> object:
        """The value of an expression, once it is true."""
        end_s = time.monotonic() + limit_s
        while True:
            value = self.run(expression)
            if value:
                return value
            assert time.monotonic() < end_s, f"{expression}; the page says: {self.run('document.body.innerText')}"
            time.sleep(0.05)

    def close(self) -> None:
        """End the browser and its processes."""
        self._socket.close()
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(START_S)
