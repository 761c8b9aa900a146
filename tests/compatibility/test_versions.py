"""A project in each tested version of Label Studio: connect, phrase, correction, export; and the editor.

The tests of a version build on one another, in this order.
"""

from __future__ import annotations

import json
import re
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, expect

from backend.labelstudio.annotations import read_annotation
from backend.labelstudio.predictions import ProposedRegion, region_results
from sspsam.images.masks import coco_rle_to_mask
from tests.e2e.conftest import WINDOW
from tests.integration.conftest import RunningLabelStudio
from tests.integration.project import (
    CONFIG,
    POLL_S,
    WAIT_S,
    Project,
    mask_of,
    ring,
    size_of,
    sspsam,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(1200)
LONG_MS = 90_000
UNDER_A_REGION = (
    "phrase => [...document.querySelectorAll('input, textarea')].some(box => box.value === phrase)"
)
"""The list of regions has other elements in each version; each shows a region's phrase in a text box."""


def test_a_new_project_is_connected(project: Project) -> None:
    version = project.client.version()
    connect = ["connect", "--project", str(project.number)]

    done = sspsam(project, *connect)

    assert f"Label Studio {version}, which `make compatibility` covers" in done
    assert "the project now has the recommended labeling config" in done
    assert "a webhook event arrived" in done
    assert "is fully connected" in sspsam(project, *connect, "--check")
    assert (project.backend["readable_state"], project.backend["is_interactive"]) == ("Connected", True)


def test_a_phrase_is_answered_and_its_correction_arrives_and_leaves(project: Project, tmp_path: Path) -> None:
    task, phrase = project.tasks[0], "the crab"
    results = project.ask(task, phrase)
    shown = next(one for one in results if one["from_name"] == "mask")
    under_it = next(one for one in results if one["from_name"] == "phrase")
    assert (shown["id"], under_it["value"]) == (under_it["id"], {"text": [phrase]})
    assert (shown["original_height"], shown["original_width"]) == size_of(project, task)
    assert mask_of(shown).any()

    corrected = ring(*size_of(project, task))
    region = ProposedRegion(shown["id"], phrase, corrected, score=0.5)
    project.client.create_annotation(task, region_results(region, CONFIG))

    wait_until(lambda: len(project.records) == 1, "the record", WAIT_S, POLL_S)
    (record,) = project.records
    assert (record.phrase, record.task, record.corrected) == (phrase, task, True)
    file = tmp_path / "labels.json"
    sspsam(project, "export", "--project", str(project.number), "--out", str(file))
    (annotation,) = json.loads(file.read_text())["annotations"]
    assert annotation["phrase"] == phrase
    assert np.array_equal(coco_rle_to_mask(annotation["segmentation"]), corrected)


def test_a_phrase_is_typed_in_the_editor_and_submitted(
    project: Project, label_studio: RunningLabelStudio, browser: Browser
) -> None:
    task, phrase = project.tasks[1], "the fish"
    before = len(project.records)
    context = browser.new_context(viewport=WINDOW)
    with closing(context):
        context.set_default_timeout(LONG_MS)
        page = context.new_page()
        page.goto(f"{label_studio.url}/user/login/")
        page.fill("input[name=email]", label_studio.account.email)
        page.fill("input[name=password]", label_studio.account.password)
        page.locator("form button[type=submit]").click()
        page.wait_for_url(re.compile(r"^(?!.*/user/login)"))
        page.goto(f"{label_studio.url}/projects/{project.number}/data?task={task}")
        prompt = page.locator(".prompt").locator("input[type=text], textarea").first
        expect(prompt).to_be_visible(timeout=LONG_MS)
        page.wait_for_load_state("networkidle", timeout=LONG_MS)
        for name in ("Auto-Annotation", "Auto-Accept Suggestions"):
            switch = page.get_by_label(name, exact=True)
            if not switch.is_checked():
                page.get_by_text(name, exact=True).click()
            expect(switch).to_be_checked(timeout=LONG_MS)

        with page.expect_response(re.compile("/interactive-annotating"), timeout=LONG_MS) as answered:
            prompt.fill(phrase)
            prompt.press("Enter")

        results = answered.value.json()["data"]["result"]
        assert any(result["from_name"] == "mask" for result in results)
        expect(prompt).to_have_value("", timeout=LONG_MS)
        page.wait_for_function(UNDER_A_REGION, arg=phrase)
        with page.expect_response(
            lambda response: response.request.method == "POST" and "/annotations" in response.url
        ) as saved:
            page.get_by_role("button", name=re.compile("^submit", re.IGNORECASE)).click()
        assert saved.value.ok

    (annotation,) = project.client.annotations(task)
    content = read_annotation(annotation, CONFIG)
    assert {region.phrase for region in content.regions} == {phrase}
    wait_until(lambda: len(project.records) == before + 1, "the record", WAIT_S, POLL_S)
