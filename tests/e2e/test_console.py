"""The console in a browser: accessible in both themes and widths, by keyboard alone, from this host alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from flask import Flask
from playwright.sync_api import Browser, Page, ViewportSize
from redis import Redis
from werkzeug.serving import make_server

from backend.corrections import CorrectionLog, Tally
from backend.labelstudio.config import RECOMMENDED_CONFIG
from backend.settings import Settings
from backend.shared_redis import ServiceQueue
from backend.web.app import create_app
from backend.worker_requests import request_export
from tests.backend.colours import ColourPredictor
from tests.backend.console.browser import PASSWORD, closed

AXE = (Path(__file__).parent / "vendor/axe.min.js").read_text(encoding="utf-8")
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
PAGES = (
    "/sign-in",
    "/",
    "/projects",
    "/projects/7",
    "/projects/8/connect",
    "/jobs",
    "/settings",
    "/audit",
    "/x",
)


@pytest.fixture
def url(settings: Settings, redis_server: Redis) -> Iterator[str]:
    """The console with two projects, corrections and jobs."""
    app = create_app(closed(settings, requests_per_minute=10**6), redis_server, ColourPredictor())
    fill(app, redis_server)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.port}"
    server.shutdown()
    thread.join()
    server.server_close()


def fill(app: Flask, redis: Redis) -> None:
    client, auth = app.test_client(), ("user", PASSWORD)
    client.post("/setup", json={"project": "7.1", "schema": RECOMMENDED_CONFIG}, auth=auth)
    client.post(
        "/setup", json={"project": "8.1", "schema": '<View><Image name="i" value="$i"/></View>'}, auth=auth
    )
    for day in range(1, 9):
        tally = Tally("ssp-sam-test-base", "cup", accepted=day, edited=9 - day, missed=1)
        CorrectionLog(redis).note(
            7, day, [tally, Tally("ssp-sam-test-0001", "jug", added=1)], f"2026-05-0{day}"
        )
    decision = {"at": "2026-05-01T13:00:00+00:00", "trigger": "annotation", "start": False}
    redis.set("sspsam:decision:7", json.dumps({**decision, "reason": "6 of 8 new corrected masks"}))
    app.extensions["sspsam"].redis_store.note_problem("7", "41", "the image cannot be read")
    request_export(redis, 7, "coco")
    queue = ServiceQueue("events", redis)
    job = queue.enqueue_call("worker.jobs.collect_annotation", kwargs={"project_id": 7, "annotation_id": 1})
    queue.remove(job.id)
    job.set_status("failed")
    queue.failed_job_registry.add(job, ttl=300)


def sign_in(page: Page, url: str) -> None:
    page.goto(f"{url}/sign-in")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{url}/")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_every_page_is_accessible_and_fits(browser: Browser, url: str, scheme: Any, width: int) -> None:
    context = browser.new_context(color_scheme=scheme, viewport=ViewportSize(width=width, height=900))
    page = context.new_page()
    told: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: told.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: asked.append(request.url))
    sign_in(page, url)
    for path in PAGES:
        page.goto(url + path)
        page.evaluate(AXE)
        found = page.evaluate("rules => axe.run(document, {runOnly: rules})", RULES)
        serious = [one["id"] for one in found["violations"] if one["impact"] in ("serious", "critical")]
        assert serious == [], (path, found["violations"])
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
    assert [text for text in told if "404" not in text] == [], "the policy refuses nothing of the pages"
    assert {place.startswith((url, "data:")) for place in asked} == {True}
    context.close()


def test_the_keyboard_is_enough(browser: Browser, url: str) -> None:
    page = browser.new_page()
    page.goto(f"{url}/projects/7")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url(f"{url}/projects/7")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.get_by_role("button", name="Fine-tune now").focus()
    page.keyboard.press("Enter")
    page.get_by_role("status").get_by_text("the worker reads the latest labels").wait_for()
    page.close()


def test_progress_is_followed_without_reloading(browser: Browser, url: str, redis_server: Redis) -> None:
    page = browser.new_page()
    sign_in(page, url)
    page.goto(f"{url}/projects/7")
    state = page.locator("#operations").get_by_role("row").nth(1)
    state.get_by_text("waiting").wait_for()
    page.evaluate("window.stays = true")
    (job_id,) = ServiceQueue("prelabel", redis_server).get_job_ids()
    redis_server.hset(f"rq:job:{job_id}", "status", "started")
    redis_server.hset(f"rq:job:{job_id}", "meta", json.dumps({"done": 3, "total": 9}))
    state.get_by_text("3 of 9 tasks").wait_for()
    assert page.evaluate("window.stays") is True
    page.close()


@pytest.mark.parametrize(
    ("path", "part", "button"), [("/jobs", "#jobs", "Stop"), ("/projects/7", "#operations", "Cancel")]
)
def test_a_refresh_waits_while_a_part_is_in_use(
    browser: Browser, url: str, redis_server: Redis, path: str, part: str, button: str
) -> None:
    """Replaced meanwhile, it would take the focus from its button, and close its log."""
    page = browser.new_page()
    sign_in(page, url)
    page.goto(url + path)
    focused = page.locator(part).get_by_role("button", name=button).first
    focused.focus()
    page.evaluate("part => document.querySelector(part).stays = true", part)
    page.wait_for_timeout(4000)
    assert focused.evaluate("button => button === document.activeElement")
    assert page.evaluate("part => document.querySelector(part).stays", part) is True

    page.evaluate("document.activeElement.blur()")
    page.wait_for_function("part => !document.querySelector(part).stays", arg=part)
    page.evaluate(
        """part => {
            document.querySelector(part).stays = true;
            document.querySelector(part).insertAdjacentHTML("beforeend", "<details open>Log</details>");
        }""",
        part,
    )
    page.wait_for_timeout(4000)
    assert page.evaluate("part => document.querySelector(part).stays", part) is True
    page.evaluate("part => document.querySelector(part).querySelector('details').open = false", part)
    page.wait_for_function("part => !document.querySelector(part).stays", arg=part)
    page.close()
