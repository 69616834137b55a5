"""A headless Chromium by way of chromedriver's HTTP interface (W3C WebDriver), by the standard library alone."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

WAIT = 120  # seconds for the driver to answer; a loaded machine is slow to start a browser
ENTER, SPACE = "\ue007", " "
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # key of element references, fixed by the standard
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def missing() -> str:
    """What is missing for a browser test, with how to get it; empty if nothing is."""
    if not any(map(shutil.which, _BROWSERS)) or not shutil.which("chromedriver"):
        return "no Chromium with chromedriver on PATH; on Debian: apt-get install chromium chromium-driver"
    return ""


class Browser:
    """One session; a context manager, so that browser and driver end with the test."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._base = f"http://127.0.0.1:{port}"
        self._driver = subprocess.Popen(
            ["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            self._wait()
            options = ["--headless=new", "--disable-gpu", "--hide-scrollbars"]
            if hasattr(os, "geteuid") and os.geteuid() == 0:
                options.append("--no-sandbox")  # Chromium has no sandbox for root
            wanted = {"goog:chromeOptions": {"args": options}, "goog:loggingPrefs": {"browser": "ALL"}}
            created = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        except BaseException:
            self._stop()
            raise
        self._base += f"/session/{created['sessionId']}"

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._call("DELETE", "")
        finally:
            self._stop()

    def open(self, path: Path) -> None:
        """Load a local file and wait until it is there."""
        self._call("POST", "/url", {"url": path.absolute().as_uri()})

    def resize(self, width: int, height: int = 900) -> None:
        """Set the size of the viewport, below the least that a window can have, too."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._call("POST", "/goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": size})

    def js(self, script: str, *arguments: Any) -> Any:
        """What the body of a function returns in the page."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def type(self, selector: str, keys: str) -> None:
        """Type on a real keyboard, as far as the page can tell, into the first element that `selector` finds."""
        found = self._call("POST", "/element", {"using": "css selector", "value": selector})
        self._call("POST", f"/element/{found[_ELEMENT]}/value", {"text": keys})

    def log(self) -> list[str]:
        """Messages of the console since the last call, errors of loading among them."""
        return [entry["message"] for entry in self._call("POST", "/se/log", {"type": "browser"})]

    def _wait(self) -> None:
        end = time.monotonic() + WAIT
        while True:
            try:
                self._call("GET", "/status")
            except (urllib.error.URLError, ConnectionError):
                if time.monotonic() > end or self._driver.poll() is not None:
                    raise
                time.sleep(0.1)
            else:
                return

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=WAIT) as answer:
            return json.load(answer)["value"]

    def _stop(self) -> None:
        self._driver.terminate()
        try:
            self._driver.wait(10)
        except subprocess.TimeoutExpired:
            self._driver.kill()
            self._driver.wait()
