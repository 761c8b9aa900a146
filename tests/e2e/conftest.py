"""The demo as `make demo` starts it, in a temporary folder on free ports, and a browser that sees only it."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Browser, Page, ViewportSize, expect, sync_playwright

from sspsam import Predictor
from tests.e2e.editor import Editor
from tests.e2e.running_demo import Demo, two_free_ports
from tests.e2e.truth import understands
from worker.local.demo_pictures import Picture
from worker.local.up import LOOPBACK

HERE = Path(__file__).parent
SCREENSHOTS = HERE / "screenshots"
CHROMIUM = os.environ.get("CHROMIUM", "chromium")
WINDOW = ViewportSize(width=1500, height=1250)
BROWSER_OPTIONS = (
    "--no-sandbox",  # as root, in a container
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    f"--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE {LOOPBACK}",
)


PATIENCE_S = 1200
"""Of a test, the demo's first start included, on a busy machine."""
expect.set_options(timeout=30_000)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.e2e)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(PATIENCE_S))


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """The running demo; its first start makes Label Studio's data base."""
    running = Demo(tmp_path_factory.mktemp("demo"), *two_free_ports())
    try:
        running.start()
        yield running
    finally:
        running.end_whatever_happens()


@pytest.fixture(autouse=True)
def end_started_processes() -> None:
    """Replaces the suite's: a demo that a test has restarted serves later tests, until `demo` ends it."""


@pytest.fixture(scope="session")
def predictor() -> Predictor:
    """The demo's model in this process: which of its pictures it understands, it decides itself."""
    torch.set_num_threads(1)
    return Predictor.from_preset("ssp-sam-demo", device="cpu")


@pytest.fixture(scope="session")
def understood(demo: Demo, predictor: Predictor) -> Picture:
    """The first picture whose phrases the model understands; how often it does, `sspsam evaluate` says."""
    found = next((picture for picture in demo.pictures if understands(predictor, picture)), None)
    assert found is not None, "the model understands none of the demo's pictures"
    return found


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    program = shutil.which(CHROMIUM)
    assert program is not None, f"no browser {CHROMIUM!r}: run `make chromium`, or set CHROMIUM"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=list(BROWSER_OPTIONS))
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def page(browser: Browser) -> Iterator[Page]:
    """One browser window for the whole session, as a person has."""
    context = browser.new_context(viewport=WINDOW)
    yield context.new_page()
    context.close()


@pytest.fixture(scope="session")
def editor(demo: Demo, page: Page) -> Editor:
    """Label Studio in the browser, logged in."""
    editor = Editor(page, demo.label_studio_url)
    editor.log_in(demo.account)
    return editor


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Keeps a picture of the browser when a test has failed."""
    report = yield
    page = getattr(item, "funcargs", {}).get("page")
    if page is not None and report.failed and report.when != "teardown":  # then there is no browser any more
        SCREENSHOTS.mkdir(exist_ok=True)
        page.screenshot(path=SCREENSHOTS / f"{re.sub(r'[^a-z0-9]+', '-', item.name.lower())}.png")
    return report
