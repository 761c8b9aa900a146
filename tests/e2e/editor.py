"""Label Studio's pages as a person uses them; every step waits for what it causes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from playwright.sync_api import FloatRect, Locator, Page, expect

from worker.local_label_studio import Account

LONG_MS = 60_000
"""A first answer loads the model."""


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

    def open_task(self, project: int, task: int) -> None:
        """Opens a task in the editor, waits until its picture is drawn, and switches the model on."""
        self.page.goto(f"{self.url}/projects/{project}/data?task={task}")
        expect(self.prompt).to_be_visible(timeout=LONG_MS)
        expect(self.canvas).to_be_visible(timeout=LONG_MS)
        expect(self.picture).to_be_attached(timeout=LONG_MS)
        self.switch_on("Auto-Annotation")
        self.switch_on("Auto-Accept Suggestions")

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

    def switch_on(self, name: str) -> None:
        """Switches a toggle of the bottom bar on, unless it is on already."""
        toggle = self.page.get_by_label(name)
        if not toggle.is_checked():
            self.page.get_by_text(name, exact=True).click()
        expect(toggle).to_be_checked()

    def type_phrase(self, phrase: str) -> bool:
        """Types a phrase, presses Enter, waits for what comes of it, and says whether that is a mask."""
        with self.page.expect_response(re.compile("/interactive-annotating"), timeout=LONG_MS) as answer:
            self.prompt.fill(phrase)
            self.prompt.press("Enter")
        assert answer.value.ok, answer.value.text()
        results = answer.value.json()["data"]["result"]
        found = any(result["type"] == "brushlabels" for result in results)
        unmatched = self.unmatched_phrases.filter(has_text=phrase)
        expect(self.region_of(phrase) if found else unmatched).to_be_visible()
        return found

    def brush_over(self, phrase: str, path_xy: Sequence[tuple[float, float]], larger: int = 0) -> None:
        """Selects a phrase's mask and draws one stroke on it with the brush.

        Args:
            phrase: the phrase of the mask to correct.
            path_xy: places of the picture, as parts of its width and height, 0..1.
            larger: how many steps to make the brush larger.
        """
        self.region_of(phrase).click()
        self.page.get_by_label("brush-tool").click()
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


def place(frame: FloatRect, part_xy: tuple[float, float]) -> tuple[float, float]:
    """A place given in parts of a frame, in pixels of the page."""
    return frame["x"] + part_xy[0] * frame["width"], frame["y"] + part_xy[1] * frame["height"]
