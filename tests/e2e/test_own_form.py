"""A form with other names and several brushes, on a photograph that lies on its side in its file; and what
people see when something goes wrong.
"""

from pathlib import Path

import pytest
from PIL import Image, ImageOps
from playwright.sync_api import Page, ViewportSize, expect
from werkzeug.wrappers import Response

from backend.labelstudio.config import RECOMMENDED_CONFIG
from sspsam import Predictor
from tests.backend.web_server import Web
from tests.e2e.conftest import WINDOW
from tests.e2e.desk import Desk, connected_desk, connected_project, understood_picture
from tests.e2e.editor import Editor
from tests.e2e.running_demo import Demo
from tests.e2e.truth import UNDERSTOOD_IOU, overlap

OWN = """<View>
  <View className="prompt">
    <TextArea name="what" toName="photo" sspsam="prompt" rows="1" showSubmitButton="true" editable="false"/>
  </View>
  <BrushLabels name="things" toName="photo" smart="false"><Label value="Thing"/></BrushLabels>
  <BrushLabels name="named" toName="photo" smart="false"><Label value="Named" alias="{alias}"/></BrushLabels>
  <Image name="photo" value="$image"/>
  <TextArea name="remark" toName="photo" sspsam="phrase" perRegion="true"
            displayMode="region-list" editable="true"
            whenLabelValue="Thing,{alias}" maxSubmissions="1" rows="1" smart="false"/>
</View>"""
ORIENTATION = 0x0112
ON_ITS_SIDE = 6
"""To be shown turned clockwise by a quarter."""
PHONE = ViewportSize(width=390, height=844)


def word_of(phrase: str, other: str) -> str:
    """The longest word of a phrase that another has not."""
    return max(set(phrase.split()) - set(other.split()), key=len)


@pytest.fixture(scope="module")
def photograph(demo: Demo, predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    understood = understood_picture(demo, predictor)
    (one, _), (other, _) = understood.masks
    upright = Image.open(understood.picture.path).convert("RGB")
    exif = Image.Exif()
    exif[ORIENTATION] = ON_ITS_SIDE
    path: Path = tmp_path_factory.mktemp("photographs") / "photograph.jpg"
    upright.rotate(90, expand=True).save(path, quality=97, subsampling=0, exif=exif)
    assert ImageOps.exif_transpose(Image.open(path)).size == upright.size
    return connected_desk(demo, "Own form", OWN.format(alias=word_of(other, one)), [path], understood)


def test_a_form_of_ones_own_on_a_turned_photograph(photograph: Desk, editor: Editor) -> None:
    desk, ((one, one_mask), (other, other_mask)) = photograph, photograph.masks
    task = next(desk.fresh)
    editor.open_task(desk.project, task)

    assert editor.type_phrase(one)
    assert editor.type_phrase(other)
    assert not editor.type_phrase(desk.nothing)

    expect(editor.unmatched_phrases).to_have_text([f"{desk.nothing} ∅ nothing found"])
    expect(editor.regions).to_have_count(2)
    editor.submit()
    saved = desk.saved(task)
    regions = {region.phrase: region for region in saved.regions}
    assert {phrase: region.label for phrase, region in regions.items()} == {
        one: "Thing",
        other: word_of(other, one),
    }
    assert (saved.no_target_phrases, saved.found_nothing) == ((), (desk.nothing,))
    assert overlap(regions[one].mask, one_mask) > UNDERSTOOD_IOU, "upright, as it is shown"
    assert overlap(regions[other].mask, other_mask) > UNDERSTOOD_IOU


def test_what_went_wrong_is_told_to_annotator_and_lead(
    demo: Demo, predictor: Predictor, editor: Editor, page: Page
) -> None:
    """The picture lies where the browser may look and the backend may not."""
    understood = understood_picture(demo, predictor)
    file = Response(understood.picture.path.read_bytes(), content_type="image/png")
    file.headers["Access-Control-Allow-Origin"] = "*"  # without which the editor does not show it
    project = connected_project(demo, "Elsewhere", RECOMMENDED_CONFIG)
    with Web({"/a.png": file}) as elsewhere:
        demo.client.import_tasks(project, [{"image": f"{elsewhere.url}/a.png"}])
        (task,) = (int(one["id"]) for one in demo.client.tasks(project))
        editor.open_task(project, task)
        assert not editor.type_phrase(understood.masks[0][0])
        expect(editor.status).to_contain_text("was not looked for")
        expect(editor.status).to_contain_text("IMAGE_HOSTS")

    demo.open_start_page(page)
    told = page.locator(".problems").filter(has=page.locator(f'a[href$="task={task}"]'))
    expect(told).to_contain_text("IMAGE_HOSTS")
    page.set_viewport_size(PHONE)
    width_px = page.evaluate("document.documentElement.scrollWidth")
    page.set_viewport_size(WINDOW)
    assert width_px <= PHONE["width"], "it can be read on a phone without scrolling sideways"
