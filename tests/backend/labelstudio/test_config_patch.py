"""Patches of labeling configs add missing tags and remove nothing."""

from __future__ import annotations

import re

import pytest

from backend.errors import LabelingConfigError
from backend.labelstudio.config import RECOMMENDED_CONFIG, LabelingConfig
from backend.labelstudio.config_patch import completed_config, config_diff, with_role

BRUSH = '<BrushLabels name="mask" toName="image"><Label value="cat &amp; dog"/></BrushLabels>'


@pytest.mark.parametrize(
    "xml",
    [
        '<View>\n  <Image name="image" value="$image"/>\n</View>',
        '<View><Image name="image" value="$image"/></View>',
        '<View>\n  <Header value="Käfer 🐞 &gt; 3"/>\n  <Image name="bild" value="$image"/>\n  </View>\n',
        f'<?xml version="1.0"?>\n<!-- <View> -->\n<View style="a > b">{BRUSH}</View>',
        f'<View\n  className="x">\n  <View>{BRUSH}</View>\n  <Image name="image" value="$image"/>\n</View>',
    ],
    ids=["lines", "one line", "letters of several bytes", "comment, brush alone", "nested"],
)
def test_what_is_missing_is_added_and_nothing_is_lost(xml: str) -> None:
    after = completed_config(xml)

    assert LabelingConfig.parse(after).missing() == []
    for line in xml.replace("><", ">\n<").split("\n"):
        assert line in after
    prompt, picture = after.index('name="prompt"'), after.find("<Image")
    assert prompt < picture, "where it is seen"
    assert completed_config(after) == after
    assert not [line for line in config_diff(xml + "\n", after).splitlines() if line.startswith("-<Image")]


OTHER_AREAS = (
    '<View>\n  <Image name="image" value="$image"/>\n'
    f"  {BRUSH}\n"
    '  <TextArea name="wörds" toName="image"/>\n'
    '  <TEXTAREA rows="1" name="what" toName="image"/>\n'
    '  <TextArea name="remark" toName="image" perRegion="true"/>\n'
    '  <TextArea name="notes" toName="image" smart="false"/>\n'
    '  <TextArea name="there" toName="second"/>\n</View>'
)


def test_a_text_area_of_another_name_gets_its_role() -> None:
    after = with_role(with_role(OTHER_AREAS, "what", "prompt"), "remark", "phrase")

    config = LabelingConfig.parse(after)
    assert [tag.name for tag in (config.prompt, config.phrase) if tag] == ["what", "remark"]
    assert after.replace(' sspsam="prompt"', "").replace(' sspsam="phrase"', "") == OTHER_AREAS
    assert with_role(after, "what", "prompt") == after
    assert LabelingConfig.parse(completed_config(after)).missing() == []


@pytest.mark.parametrize(
    ("name", "role", "reason"),
    [
        ("remark", "prompt", "whole image"),
        ("notes", "prompt", "smart"),
        ("there", "prompt", "image of the masks"),
        ("what", "phrase", "perRegion"),
        ("mask", "prompt", "no <TextArea>"),
    ],
)
def test_a_text_area_that_cannot_have_a_role_is_refused(name: str, role: str, reason: str) -> None:
    with pytest.raises(LabelingConfigError, match=reason):
        with_role(OTHER_AREAS, name, role)


def test_only_one_text_area_is_the_prompt() -> None:
    with pytest.raises(LabelingConfigError, match="only one"):
        with_role(with_role(OTHER_AREAS, "wörds", "prompt"), "what", "prompt")


NAMES_TAKEN = (
    '<View><Image name="click" value="$image"/><Image name="second" value="$second"/>'
    '<Labels name="mask" toName="click"><Label value="a"/></Labels>'
    '<Brush name="b" toName="click"/>'
    '<TextArea name="prompt" toName="second"/><Choices name="phrase" toName="click"/>'
    '<TextArea name="status" toName="click" perRegion="true"/><Rating name="absent" toName="click"/></View>'
)


@pytest.mark.parametrize(
    ("xml", "left"),
    [
        (NAMES_TAKEN, ["status", "absent"]),
        (NAMES_TAKEN.replace('<Brush name="b" toName="click"/>', ""), ["status", "absent"]),
        ('<View><Header name="image"/></View>', []),
    ],
    ids=["brush", "no brush", "no image"],
)
def test_what_is_added_has_a_name_that_is_free(xml: str, left: list[str]) -> None:
    after = completed_config(xml)

    names = re.findall(r'\bname="([^"]*)"', after)
    assert len(set(names)) == len(names)
    assert [tag.role for tag in LabelingConfig.parse(after).missing()] == left
    assert completed_config(after) == after


def test_a_new_project_gets_the_recommended_config() -> None:
    assert completed_config("<View></View>") == RECOMMENDED_CONFIG
    assert completed_config(RECOMMENDED_CONFIG) == RECOMMENDED_CONFIG


def test_the_diff_shows_what_comes() -> None:
    before = '<View>\n  <Image name="image" value="$image"/>\n</View>'

    lines = config_diff(before, completed_config(before)).splitlines()

    assert lines[:2] == ["--- before", "+++ after"]
    assert sum(line.startswith("+") for line in lines) == 8
    assert not [line for line in lines[2:] if line.startswith("-")]
