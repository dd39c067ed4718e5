"""The server's page in Chromium, driven by selenium."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

SECONDS = 120  # the longest that anything is waited for


@contextlib.contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    for switch in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.binary_location = _program("chromium")
    driver = webdriver.Chrome(options=options, service=Service(_program("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """The page in a tab of its own, which knows nothing of those before it."""

    def __init__(self, driver: webdriver.Chrome, url: str, width: int = 1280, height: int = 900, **media: str) -> None:
        self.driver = driver
        self.before = driver.current_window_handle
        driver.switch_to.new_window("tab")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": f"prefers-{name.replace('_', '-')}", "value": value} for name, value in media.items()]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        driver.get_log("browser")  # what others left
        driver.get(url)

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_: object) -> None:
        self.driver.close()
        self.driver.switch_to.window(self.before)

    def one(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(f"return {script}", *arguments)

    def wait(self, condition: Callable[[], Any]) -> None:
        WebDriverWait(self.driver, SECONDS, 0.02).until(lambda _: condition())

    def connected(self) -> Page:
        self.wait(lambda: self.one("#new-chat").is_enabled())
        return self

    def type(self, text: str) -> None:
        self.one("#prompt").send_keys(text)

    def begin(self, text: str) -> None:
        n = len(self.all(".turn"))
        self.type(text + Keys.ENTER)
        self.wait(lambda: len(self.all(".turn")) > n)

    def ask(self, text: str) -> None:
        self.begin(text)
        self.done()

    def done(self) -> None:
        self.wait(lambda: not self.one("#stop").is_displayed())

    def answer(self, place: str = "last") -> str:
        answers = self.run("[...document.querySelectorAll('.answer .text')].map((text) => text.textContent)")
        return str(answers[-1 if place == "last" else int(place)])

    def tokens(self, i: int, which: str = "") -> list[str]:
        """Texts of the answer's tokens, those that a selector picks."""
        tokens = f"document.querySelectorAll('.answer')[{i}].querySelectorAll('.token{which}')"
        return list(self.run(f"[...{tokens}].map((token) => token.textContent)"))

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def picture(self, path: Path) -> None:
        time.sleep(0.3)
        self.driver.save_screenshot(str(path))


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise SystemExit(f"{name}: there is no such program; apt-get install chromium chromium-driver")
    return path


def same(found: object, wanted: object) -> None:
    assert found == wanted, f"{found!r} is not {wanted!r}"
