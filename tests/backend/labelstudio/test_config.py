"""Roles of the tags in a labeling config."""

from __future__ import annotations

import pytest

from backend.errors import LabelingConfigError
from backend.labelstudio.config import RECOMMENDED_CONFIG, SNIPPETS, Label, LabelingConfig
from backend.labelstudio.regions.controls import RegionControl, Tag

IMAGE = '<Image name="image" value="$image"/>'
BRUSH = '<BrushLabels name="mask" toName="image"><Label value="object"/></BrushLabels>'


def parse(inside: str) -> LabelingConfig:
    return LabelingConfig.parse(f"<View>{inside}</View>")


def test_the_recommended_config_lacks_nothing() -> None:
    config = LabelingConfig.parse(RECOMMENDED_CONFIG)

    assert config.missing() == []
    assert config.image is not None
    assert config.image.value == "image"
    tags = (config.prompt, config.mask, config.phrase, config.status, config.absent)
    assert [tag.name for tag in tags if tag] == ["prompt", "mask", "phrase", "status", "absent"]


def test_parts_are_found_by_type_or_confirmation_when_names_differ() -> None:
    config = parse(
        '<TextArea name="words" toName="photo" perRegion="true" sspsam="phrase"/>'
        '<TextArea name="what" toName="photo" sspsam="prompt"/>'
        '<BrushLabels name="paint" toName="photo"><Label value="cat"/><Label value="dog"/></BrushLabels>'
        '<KeyPointLabels name="point" toName="photo"><Label value="here"/></KeyPointLabels>'
        '<RectangleLabels name="frame" toName="photo"><Label value="cat"/></RectangleLabels>'
        '<Image name="photo" value="$url"/>'
    )

    assert config.prompt is not None
    assert config.prompt.name == "what"
    assert config.phrase is not None
    assert config.phrase.name == "words"
    assert config.mask == RegionControl("paint", "photo", (Label("cat"), Label("dog")))
    assert config.image is not None
    assert (config.image.name, config.image.value) == ("photo", "url")
    assert config.click is not None
    assert config.click.name == "point"
    assert config.box is not None
    assert config.box.name == "frame"
    assert [tag.role for tag in config.missing()] == ["status", "absent", "hints"]


@pytest.mark.parametrize(
    "area",
    [
        '<TextArea name="notes" toName="image"/>',
        '<TextArea name="notes" toName="image" perRegion="true"/>',
        '<TextArea name="prompt" toName="image" smart="false"/>',
        '<TextArea name="what" toName="image" smart="False" sspsam="prompt"/>',
        '<TextArea name="prompt" toName="second"/>',
        '<TextArea name="phrase" toName="second" perRegion="true"/>',
        '<TextArea name="what" toName="second" sspsam="prompt"/>',
        '<TextArea name="words" toName="image" perRegion="true" sspsam="prompt"/>',
        '<TextArea name="phrase" toName="image"/>',
        '<TextArea name="absent" toName="second"/>',
        '<TextArea name="notes" toName="image" sspsam="absent"/>',
    ],
)
def test_a_text_area_of_somebody_else_has_no_role(area: str) -> None:
    config = parse(f'{area}{BRUSH}{IMAGE}<Image name="second" value="$second"/>')

    assert (config.prompt, config.phrase, config.absent) == (None, None, None)
    assert "prompt" in [tag.role for tag in config.missing() if tag.required]


def test_a_form_without_an_image_lacks_only_that() -> None:
    config = parse('<TextArea name="prompt" toName="image"/>')

    assert config.prompt is not None
    assert [tag.role for tag in config.missing() if tag.required] == ["image", "mask"]


def test_a_confirmed_text_area_is_preferred() -> None:
    areas = '<TextArea name="prompt" toName="image"/><TextArea name="what" toName="image" sspsam="prompt"/>'

    config = parse(f"{areas}{BRUSH}{IMAGE}")

    assert config.prompt is not None
    assert config.prompt.name == "what"


def test_a_brush_on_no_image_of_the_task_has_no_image() -> None:
    config = parse(f'<BrushLabels name="mask" toName="clip"><Label value="a"/></BrushLabels>{IMAGE}')

    assert config.image is None


def test_the_name_decides_between_several() -> None:
    config = parse(
        '<TextArea name="comment" toName="image"/><TextArea name="prompt" toName="image"/>'
        '<BrushLabels name="area" toName="other"><Label value="sky"/></BrushLabels>'
        f'{BRUSH}<Image name="other" value="$second"/>{IMAGE}'
    )

    assert config.prompt is not None
    assert config.prompt.name == "prompt"
    assert config.mask is not None
    assert config.mask.name == "mask"
    assert config.image is not None
    assert config.image.value == "image", "the picture that the chosen brush works on"
    assert config.controls.keys() == {"area", "mask"}


def test_the_status_line_is_never_the_prompt() -> None:
    config = parse(f'{IMAGE}{BRUSH}<TextArea name="status" toName="image"/>')

    assert config.prompt is None
    assert config.status is not None


def test_gestures_need_no_labels() -> None:
    brush = '<BrushLabels name="mask" toName="image" smart="false"><Label value="object"/></BrushLabels>'
    click = '<KeyPoint name="click" toName="image" smart="true" smartOnly="true"/>'
    box = '<Rectangle name="box" toName="image" smart="true" smartOnly="true"/>'
    image = '<Image name="image" value="$image"/>'

    config = parse(brush + click + box + image)

    assert (config.click, config.box) == (Tag("click", "image"), Tag("box", "image"))
    assert config.controls.keys() == {"mask"}
    answered = parse(brush + box.replace(' smartOnly="true"', "") + image)
    assert answered.controls.keys() == {"mask", "box"}, "rectangles of annotators"


def test_colours_are_one_label() -> None:
    config = LabelingConfig.parse(RECOMMENDED_CONFIG)
    assert config.mask is not None

    used = [config.coloured(config.mask, number).name for number in range(2 * len(config.colours))]

    assert set(used) == config.controls.keys()
    assert used[: len(used) // 2] == used[len(used) // 2 :]
    assert {label.written for control in config.masks for label in control.labels} == {"object"}
    with_labels = RECOMMENDED_CONFIG.replace(
        '<Label value="object"', '<Label value="sky"/><Label value="o"', 1
    )
    changed = LabelingConfig.parse(with_labels)
    assert changed.mask is not None
    assert {changed.coloured(changed.mask, number).name for number in range(20)} == {"mask"}


def test_letter_case_of_tags_and_attributes_does_not_matter() -> None:
    config = parse(
        '<textarea NAME="phrase" toname="image" perregion="TRUE"/><IMAGE name="image" VALUE="$image"/>'
    )

    assert config.phrase is not None
    assert config.image is not None


@pytest.mark.parametrize("role", ["image", "prompt", "mask", "phrase", "status", "absent", "hints", "click"])
def test_what_is_missing_comes_with_the_tag_to_add(role: str) -> None:
    inside = "".join(xml for name, xml in SNIPPETS.items() if name != role)
    inside = inside.replace("{image}", "image").replace("{labels}", "object")

    (missing,) = parse(inside).missing()

    assert missing.role == role
    assert missing.required == (role in ("image", "prompt", "mask"))
    assert parse(inside + missing.xml).missing() == []


def test_what_to_add_speaks_of_the_tags_that_are_there() -> None:
    config = parse(
        '<Image name="a&quot;b" value="$image"/>'
        '<BrushLabels name="m" toName="a&quot;b"><Label value="cat"/><Label value="dog"/></BrushLabels>'
    )

    phrase = next(tag for tag in config.missing() if tag.role == "phrase")

    assert 'toName="a&quot;b"' in phrase.xml
    assert 'whenLabelValue="cat,dog"' in phrase.xml


def test_a_label_with_a_comma_is_no_condition() -> None:
    """Label Studio splits the attribute at commas."""
    config = parse(f'{IMAGE}<BrushLabels name="m" toName="image"><Label value="dog, brown"/></BrushLabels>')

    assert "whenLabelValue" not in next(tag.xml for tag in config.missing() if tag.role == "phrase")


def test_a_brush_for_several_images_is_for_the_first() -> None:
    image, second = IMAGE, '<Image name="second" value="$second"/>'
    config = parse(second + image + BRUSH.replace('"image"', '"image, second"'))

    assert config.image is not None
    assert config.image.name == "image"
    assert config.choice_for("a cat").control.to_name == "image"


def test_hints_may_have_further_classes() -> None:
    assert parse('<View className="wide hints"/>').hints is not None
    assert parse('<View className="hints-off"/>').hints is None


def test_an_image_that_is_no_field_of_the_task_does_not_count() -> None:
    assert parse('<Image name="image" value="http://example.com/a.png"/>').image is None


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        ("", "not XML"),
        ("<View>", "not XML"),
        ("a text", "not XML"),
        ('<!DOCTYPE v [<!ENTITY a "b">]><View>&a;</View>', "document type"),
    ],
)
def test_what_is_no_labeling_config_is_refused(xml: str, reason: str) -> None:
    with pytest.raises(LabelingConfigError, match=reason):
        LabelingConfig.parse(xml)


def test_require_names_the_tag() -> None:
    config = parse(IMAGE)

    config.require("image")
    with pytest.raises(LabelingConfigError, match=r"no <BrushLabels>.*Add <BrushLabels"):
        config.require("image", "mask")


LABELS = (
    '<Label value="dog"/><Label value="Person" alias="pedestrian" predicted_values="man, woman,old man"/>'
    '<Label value="traffic light"/>'
)


@pytest.mark.parametrize(
    ("labels", "phrase", "label"),
    [
        ('<Label value="object"/>', "the cat", "object"),
        (LABELS, "a cat", "dog"),
        (LABELS, "Dog ", "dog"),
        (LABELS, "the PERSON on the left", "pedestrian"),
        (LABELS, "a pedestrian", "pedestrian"),
        (LABELS, "the woman with a dog", "pedestrian"),
        (LABELS, "the dog of the woman", "dog"),
        (LABELS, "two traffic  lights", "traffic light"),
        (LABELS, "the mane of a horse", "dog"),
        ("", "the cat", None),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else str(value),
)
def test_the_phrase_chooses_the_label(labels: str, phrase: str, label: str | None) -> None:
    config = parse(f'{IMAGE}<BrushLabels name="mask" toName="image">{labels}</BrushLabels>')

    assert config.choice_for(phrase).label == label


def test_labels_of_several_brushes() -> None:
    config = parse(
        f'{IMAGE}<BrushLabels name="animals" toName="image"><Label value="cat"/></BrushLabels>'
        '<BrushLabels name="people" toName="image"><Label value="man" alias="m"/></BrushLabels>'
        '<BrushLabels name="elsewhere" toName="other"><Label value="tree"/></BrushLabels>'
    )

    chosen = [config.choice_for(phrase) for phrase in ("the man", "a cat", "the tree")]
    asked_for = [config.choice_for("the man", label) for label in ("cat", "m", "tree")]

    assert [(brush.control.name, brush.label) for brush in chosen] == [
        ("people", "m"),
        ("animals", "cat"),
        ("animals", "cat"),
    ]
    assert [brush.label for brush in asked_for] == ["cat", "m", "m"]
    assert "cat,m" in next(tag.xml for tag in config.missing() if tag.role == "phrase")
    assert config.controls.keys() == {"animals", "people", "elsewhere"}


def test_key_points_and_boxes_that_are_labels_of_their_own_ask_nothing() -> None:
    config = parse(
        f"{IMAGE}"
        '<KeyPointLabels name="joint" toName="image" smart="false"><Label value="knee"/></KeyPointLabels>'
        '<RectangleLabels name="head" toName="image" smart="FALSE"><Label value="head"/></RectangleLabels>'
        '<KeyPointLabels name="fix" toName="image"><Label value="fix"/></KeyPointLabels>'
    )

    assert config.click is not None
    assert config.click.name == "fix"
    assert config.box is None


@pytest.mark.parametrize(
    ("value", "data", "address"),
    [
        ("$image", {"image": "/a.png"}, "/a.png"),
        ("$photo.url", {"photo": {"url": "/a.png"}}, "/a.png"),
        ("$photo.url", {"photo.url": "/dotted.png", "photo": {"url": "/a.png"}}, "/dotted.png"),
        ("$photos[1].url", {"photos": [{"url": "/a.png"}, {"url": "/b.png"}]}, "/b.png"),
        ("$photos.0", {"photos": ["/a.png"]}, "/a.png"),
        ("http://host$path", {"path": "/a.png"}, "http://host/a.png"),
        ("https://host/$set.name/$file", {"set": {"name": "s"}, "file": "a.png"}, "https://host/s/a.png"),
        ("$base$path", {"base": "http://host", "path": "/a.png"}, "http://host/a.png"),
        ("$фото", {"фото": "/a.png"}, "/a.png"),
        ("$image", {}, None),
        ("$photo.url", {"photo": "/a.png"}, None),
        ("$photos[7]", {"photos": ["/a.png"]}, None),
        ("$photos[99999999999999999999]", {"photos": ["/a.png"]}, None),
        ("http://host$path", {}, None),
    ],
)
def test_the_image_is_found_in_a_task_as_the_editor_does(
    value: str, data: dict[str, object], address: str | None
) -> None:
    config = parse(f'<Image name="image" value="{value}"/>{BRUSH}')

    assert config.image is not None
    assert config.image.of(data) == address


@pytest.mark.parametrize(
    "inside",
    [
        f'<Image name="image" valueList="$images"/>{BRUSH}',
        '<Image name="pages" valueList="$images"/>',
        f'<Repeater on="$images"><Image name="image" value="$images"/>{BRUSH}</Repeater>',
        f'{IMAGE}{BRUSH}<Repeater on="$a" mode="pagination"><Header value="page"/></Repeater>',
    ],
)
def test_forms_with_pages_are_refused(inside: str) -> None:
    config = parse(inside)

    assert "pages are not supported" in config.unsupported
    with pytest.raises(LabelingConfigError, match="pages are not supported"):
        config.require("image")


def test_pages_of_another_image_do_not_matter() -> None:
    config = parse(f'{IMAGE}{BRUSH}<Image name="pages" valueList="$images"/>')

    assert config.unsupported == ""
    assert config.image is not None


REAL_FORM = """
<View style="display: flex">
  <!-- a comment with <BrushLabels name="not this"/> -->
  <View><Collapse><Panel value="Хорошее фото"><Filter name="filter" toName="labels"/>
    <BrushLabels name="labels" toName="картинка" choice="multiple" showInline="true">
      <Label value="Кошка" alias="cat" hotkey="1" background="red"/>
      <View><Header value="Traffic"/><Label value="TrafficLight" hotkey="ctrl+2"/></View>
    </BrushLabels></Panel></Collapse></View>
  <View className="two"><Image name="картинка" value="$meta.photo" zoom="true"/>
    <Image name="before" value="$before"/></View>
  <Choices name="quality" toName="картинка" choice="multiple"><Choice value="good"/></Choices>
  <Taxonomy name="kind" toName="картинка"><Choice value="a"><Choice value="b"/></Choice></Taxonomy>
  <Relations><Relation value="part of"/></Relations>
  <TextArea name="prompt" toName="картинка"/>
</View>"""


def test_a_form_as_people_have_it() -> None:
    config = LabelingConfig.parse(REAL_FORM)

    assert config.unsupported == ""
    assert config.image is not None
    assert (config.image.name, config.image.of({"meta": {"photo": "/a.png"}})) == ("картинка", "/a.png")
    assert [control.name for control in config.masks] == ["labels"]
    assert [label.written for label in config.labels] == ["cat", "TrafficLight"]
    assert config.choice_for("two traffic lights").label == "TrafficLight"
    assert config.choice_for("кошка").label == "cat"
    assert not config.choice_for("a cow").is_named
    assert config.prompt is not None
    assert 'toName="картинка"' in next(tag.xml for tag in config.missing() if tag.role == "phrase")


def test_a_phrase_under_regions_without_labels_depends_on_no_label() -> None:
    config = parse(f'{IMAGE}<Polygon name="shape" toName="image"/>')

    assert "whenLabelValue" not in next(tag.xml for tag in config.missing() if tag.role == "phrase")
