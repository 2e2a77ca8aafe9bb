"""A headless Chromium, and an attestation service to show it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from confcom.simulator.world import SimulatedWorld
from running_attestation_service import RunningAttestation, make_world, running_attestation

if os.environ.get("CONFCOM_BROWSER"):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.support.expected_conditions import staleness_of
    from selenium.webdriver.support.wait import WebDriverWait
else:
    collect_ignore_glob = ["test_*.py"]

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--force-color-profile=srgb",
    "--ignore-certificate-errors",
)  # fmt: skip
AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


class Chromium:
    """A browser with what the tests ask of a page."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        self.driver.get(url)

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    @property
    def text(self) -> str:
        return str(self.find("body").text)

    def script(self, source: str, *arguments: object) -> Any:
        return self.driver.execute_script(source, *arguments)

    def look(self, size: str, scheme: str) -> None:
        """Take the size of a device, and prefer light or dark."""
        width, height = SIZES[size]
        device = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def keys(self, *keys: str) -> None:
        """Press keys, wherever the focus is."""
        ActionChains(self.driver).send_keys(*keys).perform()

    def chord(self, modifier: str, key: str) -> None:
        """Press a key while another is held."""
        ActionChains(self.driver).key_down(modifier).send_keys(key).key_up(modifier).perform()

    def focused(self) -> str:
        """What has the focus, by tag and id or text."""
        found = "const e = document.activeElement; return e.tagName + ' ' + (e.id || e.textContent).trim()"
        return str(self.script(found))

    @contextmanager
    def leaving(self) -> Iterator[None]:
        """Return when what the block does has led to another page."""
        page = self.find("html")
        yield
        self.wait(staleness_of(page))
        self.wait(lambda driver: driver.execute_script("return document.readyState") == "complete")

    def wait(self, condition: Any) -> None:
        """Wait until a condition of selenium, or one in JavaScript, holds."""
        script = f"return {condition}"
        until = (lambda driver: driver.execute_script(script)) if isinstance(condition, str) else condition
        WebDriverWait(self.driver, 60).until(until)

    def tab_to(self, wanted: str) -> None:
        """Press Tab until that has the focus."""
        seen = []
        for _ in range(80):
            self.keys("\ue004")
            seen.append(self.focused())
            if seen[-1] == wanted:
                return
        raise AssertionError(f"no Tab leads to {wanted!r}: {seen}")

    def settle(self) -> None:
        """Wait until two frames were drawn: what scripts of a page put off to the next one is done then."""
        self.driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")

    def violations(self) -> list[str]:
        """What axe-core finds, each with the first element."""
        found = self.driver.execute_async_script(
            AXE.read_text() + ";axe.run(document).then(arguments[arguments.length - 1]);"
        )
        return [f"{each['id']}: {each['nodes'][0]['html']}" for each in found["violations"]]

    def complaints(self) -> list[str]:
        """What the console has, violations of the content security policy among it."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def screenshot(self, name: str) -> None:
        """Keep a picture of the whole page, where the environment names a folder."""
        if folder := os.environ.get("CONFCOM_SCREENSHOTS"):
            height = self.script("return document.documentElement.scrollHeight")
            self.driver.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride",
                {"width": self.script("return innerWidth"), "height": height, "deviceScaleFactor": 1, "mobile": False},
            )
            self.driver.save_screenshot(str(Path(folder) / f"{name}.png"))


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    driver.set_script_timeout(120)
    driver.set_page_load_timeout(120)
    yield Chromium(driver)
    driver.quit()


@pytest.fixture(scope="session")
def world() -> SimulatedWorld:
    return make_world()


@pytest.fixture
def browser(chromium: Chromium) -> Iterator[Chromium]:
    """A browser without cookies; the console must be silent in the end."""
    chromium.driver.delete_all_cookies()
    chromium.look("desktop", "light")
    chromium.complaints()
    yield chromium
    assert chromium.complaints() == []


@pytest.fixture
def service(tmp_path: Path, world: SimulatedWorld) -> Iterator[RunningAttestation]:
    with running_attestation(tmp_path, world) as running:
        yield running
