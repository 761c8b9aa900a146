"""Label Studio's pages as operated by users; every step waits for its effect."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import FloatRect, Locator, Page, Response, expect

from worker.local.local_label_studio import Account

LONG_MS = 60_000
"""A first answer loads the model."""
PICTURES_FOLDER = os.environ.get("KEEP_PICTURES")
"""Where `make screenshot` wants pictures of the editor."""
JPEG_QUALITY = 70
ACCEPT_AT_ONCE = "Auto-Accept Suggestions"


@dataclass
class Editor:
    """A browser page on one Label Studio."""

    page: Page
    url: str

    def log_in(self, account: Account) -> None:
        """Fills in the log-in form."""
        self.page.goto(f"{self.url}/user/login/")
        self.page.fill("input[name=email]", account.email)
        self.page.fill("input[name=password]", account.password)
        self.page.get_by_role("button", name="Log in").click()
        self.page.wait_for_url(re.compile(r"^(?!.*/user/login)"))

    def open_task(self, project: int, task: int, accept_at_once: bool = True) -> None:
        """Opens a task in the editor, waits until its picture is drawn, and switches the model on."""
        self.page.goto(f"{self.url}/projects/{project}/data?task={task}")
        expect(self.prompt).to_be_visible(timeout=LONG_MS)
        expect(self.canvas).to_be_visible(timeout=LONG_MS)
        expect(self.picture).to_be_attached(timeout=LONG_MS)
        self.page.wait_for_load_state("networkidle", timeout=LONG_MS)  # the editor may load the task again
        self.switch("Auto-Annotation", on=True)
        self.switch(ACCEPT_AT_ONCE, on=accept_at_once)

    def label_all_tasks(self, project: int) -> None:
        """Begins the stream of a project's tasks, as annotators do, and waits until one is drawn."""
        self.page.goto(f"{self.url}/projects/{project}/data")
        self.page.get_by_role("button", name=re.compile("^Label ")).click()
        expect(self.prompt).to_be_visible(timeout=LONG_MS)
        expect(self.picture).to_be_attached(timeout=LONG_MS)
        self.page.wait_for_load_state("networkidle", timeout=LONG_MS)

    def retrieve_predictions(self, project: int) -> None:
        """Has the model asked for all tasks of a project, by the Data Manager's menu."""
        self.page.goto(f"{self.url}/projects/{project}/data")
        self.page.get_by_role("checkbox").first.check()
        self.page.get_by_text(re.compile(r"^\d+ Tasks?$")).first.click()
        self.page.get_by_text("Retrieve Predictions").click()
        self.page.get_by_text("OK", exact=True).click()

    @property
    def prompt(self) -> Locator:
        """The box that phrases are typed into."""
        return self.page.locator(".prompt").get_by_test_id("textarea-input")

    @property
    def picture(self) -> Locator:
        """The picture itself, below the canvas of the masks."""
        return self.page.locator(".lsf-main-view img[alt=image]")

    @property
    def canvas(self) -> Locator:
        """The picture with its masks."""
        return self.page.locator(".konvajs-content").first

    @property
    def regions(self) -> Locator:
        """The rows of the Regions panel, one for each mask."""
        return self.page.locator("[role=treeitem].lsf-tree__node_type_brushregion")

    @property
    def unmatched_phrases(self) -> Locator:
        """Phrases that stay listed under the prompt box, because nothing fits them."""
        return self.page.locator(".prompt").get_by_test_id("htx-textbox-content")

    def region_of(self, phrase: str) -> Locator:
        """The row of this phrase, which stands in a text box at its end."""
        return self.page.get_by_role("treeitem", name=re.compile(rf" {re.escape(phrase)}$"))

    @property
    def status(self) -> Locator:
        """What the status line says."""
        return self.page.locator(".status").get_by_test_id("htx-textbox-content")

    def switch(self, name: str, on: bool) -> None:
        """Switches a toggle of the bottom bar, unless it stands like that already."""
        toggle = self.page.get_by_label(name)
        if toggle.is_checked() != on:
            self.page.get_by_text(name, exact=True).click()
        expect(toggle).to_be_checked(checked=on)

    def type_phrase(self, phrase: str) -> bool:
        """Types a phrase, presses Enter, waits for what comes of it, and says whether that is a mask."""
        found = bool(masks_of(self.ask(phrase)))
        unmatched = self.unmatched_phrases.filter(has_text=phrase)
        expect(self.region_of(phrase) if found else unmatched).to_be_visible()
        return found

    def ask(self, entry: str) -> list[dict[str, Any]]:
        """Types an entry, presses Enter and returns the results that come back."""
        with self.answer() as answer:
            self.prompt.fill(entry)
            self.prompt.press("Enter")
        return answer[0]

    @contextmanager
    def answer(self) -> Iterator[list[list[dict[str, Any]]]]:
        """Waits for the model's answer to what is done inside; its results are in the list afterwards."""
        results: list[list[dict[str, Any]]] = []
        with self.page.expect_response(re.compile("/interactive-annotating"), timeout=LONG_MS) as waited:
            yield results
        response: Response = waited.value
        assert response.ok, response.text()
        results.append(response.json()["data"]["result"])

    def point_at(self, place_xy: tuple[float, float], *keys: str) -> list[dict[str, Any]]:
        """Clicks on the picture with the Auto-Detect tool and returns the results that come back.

        Args:
            place_xy: in parts of the picture's width and height, 0..1.
            keys: held down; Control, since a bare click on a mask only chooses that mask; Alt for "not this".
        """
        self.take_smart_tool("key-point-tool", "refine")
        return self.click_for_answer(place_xy, *keys)

    def click_for_answer(self, place_xy: tuple[float, float], *keys: str) -> list[dict[str, Any]]:
        """Clicks on the picture with the tool that is taken, and returns the results that come back."""
        with self.answer() as answer, self.held(*keys):
            self.click_at(place_xy)
        return answer[0]

    def click_at(self, place_xy: tuple[float, float]) -> None:
        """Clicks on the picture."""
        self.page.mouse.click(*place(self.picture_frame(), place_xy))

    def drag(self, start_xy: tuple[float, float], end_xy: tuple[float, float]) -> None:
        """Drags from one place of the picture to another."""
        frame = self.picture_frame()
        self.page.mouse.move(*place(frame, start_xy))
        self.page.mouse.down()
        self.page.mouse.move(*place(frame, end_xy), steps=6)
        self.page.mouse.up()

    def draw_box(self, xyxy: tuple[float, float, float, float], *keys: str) -> list[dict[str, Any]]:
        """Draws a box, in parts of the picture, with the Auto-Detect tool; returns what comes back.

        The editor may show the picture a little larger than there is room for: the box ends where that ends.
        """
        self.take_smart_tool("rectangle-tool", "frame")
        frame, seen = self.picture_frame(), self.canvas.bounding_box()
        assert seen is not None
        start, end = (within(seen, place(frame, corner)) for corner in (xyxy[:2], xyxy[2:]))
        with self.answer() as answer, self.held(*keys):
            self.page.mouse.move(*start)
            self.page.mouse.down()
            self.page.mouse.move(*end, steps=4)
            self.page.mouse.up()
        return answer[0]

    def take_smart_tool(self, tool: str, label: str) -> None:
        """Takes an Auto-Detect tool; where a form has several, they open beside the one that is shown.

        Args:
            tool: its name.
            label: its label, which is chosen before each use where the form has it.
        """
        self.page.keyboard.press("Escape")
        smart = self.page.locator(".lsf-tool_smart")
        smart.first.hover()
        named = smart.and_(self.page.get_by_label(tool, exact=True))
        (named if named.count() else smart.first).click()
        labels = self.page.locator(".lsf-label").filter(has_text=label)
        if labels.count():
            labels.click()

    @contextmanager
    def held(self, *keys: str) -> Iterator[None]:
        """Holds keys down."""
        for key in keys:
            self.page.keyboard.down(key)
        yield
        for key in keys:
            self.page.keyboard.up(key)

    def accept_suggestions(self) -> None:
        """Takes what is proposed, with the tick of the bottom bar."""
        suggestions = self.page.get_by_text(re.compile(r"^\d+ suggestions?$"))
        suggestions.locator("..").get_by_role("button").last.click()
        expect(suggestions).to_have_count(0)

    def refuse_suggestions(self) -> None:
        """Rejects what is proposed, with the cross of the bottom bar."""
        self.page.get_by_test_id("bottombar-reject-suggestions-button").click()
        expect(self.page.get_by_text(re.compile(r"^\d+ suggestions?$"))).to_have_count(0)

    def keep_picture(self, name: str) -> None:
        """Saves the page (as PNG), or its editor (as JPEG), for the documents; see `make screenshot`."""
        if PICTURES_FOLDER is None:
            return
        path = Path(PICTURES_FOLDER, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            self.page.screenshot(path=path)
        else:
            editor = self.page.locator(".lsf-editor")
            shown = editor.first if editor.count() else self.page
            shown.screenshot(path=path, type="jpeg", quality=JPEG_QUALITY)

    def brush_over(self, phrase: str, path_xy: Sequence[tuple[float, float]], larger: int = 0) -> None:
        """Selects a phrase's mask and draws one stroke on it with the brush.

        Args:
            phrase: the phrase of the mask to correct.
            path_xy: places of the picture, as parts of its width and height, 0..1.
            larger: how many steps to make the brush larger.
        """
        self.region_of(phrase).click()
        self.page.get_by_label("brush-tool").first.click()
        for _ in range(larger):
            self.page.keyboard.press("]")
        frame = self.picture_frame()
        self.page.mouse.move(*place(frame, path_xy[0]))
        self.page.mouse.down()
        for part_xy in path_xy[1:]:
            self.page.mouse.move(*place(frame, part_xy), steps=2)
        self.page.mouse.up()
        self.page.keyboard.press("Escape")

    def picture_frame(self) -> FloatRect:
        """Where the picture is on the page, in pixels."""
        frame = self.picture.bounding_box()
        assert frame is not None, "the picture is not drawn"
        return frame

    def version_in_test_request(self, project: int) -> str:
        """Sends a test request from the project's Model page and returns the model version in the answer."""
        self.page.goto(f"{self.url}/projects/{project}/settings/ml")
        self.page.get_by_label("Machine learning model options").click()
        self.page.get_by_text("Send Test Request").click()
        self.page.get_by_role("button", name="Send Request").click()
        answer = self.page.locator("pre").filter(has_text="model_version")
        expect(answer).to_be_visible(timeout=LONG_MS)
        found = re.search(r'"model_version": "([^"]+)"', answer.inner_text())
        assert found is not None
        return found[1]

    def submit(self) -> None:
        """Presses Submit and waits until the annotation is saved."""
        with self.page.expect_response(
            lambda response: response.request.method == "POST" and "/annotations" in response.url
        ) as saved:
            self.page.get_by_test_id("bottombar-submit-button").click()
        assert saved.value.ok, saved.value.text()

    def update(self) -> None:
        """Presses Update and waits until the annotation is saved."""
        with self.page.expect_response(
            lambda response: response.request.method == "PATCH" and "/api/annotations/" in response.url
        ) as saved:
            self.page.get_by_test_id("bottombar-update-button").click()
        assert saved.value.ok, saved.value.text()


def place(frame: FloatRect, part_xy: tuple[float, float]) -> tuple[float, float]:
    """A place given in parts of a frame, in pixels of the page."""
    return frame["x"] + part_xy[0] * frame["width"], frame["y"] + part_xy[1] * frame["height"]


def within(frame: FloatRect, at: tuple[float, float]) -> tuple[float, float]:
    """The place inside a frame that is nearest to a place of the page, in pixels."""
    x = min(max(at[0], frame["x"] + 1), frame["x"] + frame["width"] - 2)
    y = min(max(at[1], frame["y"] + 1), frame["y"] + frame["height"] - 2)
    return x, y


def masks_of(results: Sequence[dict[str, Any]]) -> dict[str, list[int]]:
    """Region id -> brush RLE of the masks among results."""
    return {result["id"]: result["value"]["rle"] for result in results if result["type"] == "brushlabels"}
