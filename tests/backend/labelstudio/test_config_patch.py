"""Patches of labeling configs add missing tags and remove nothing."""

from __future__ import annotations

import pytest

from backend.labelstudio.config import RECOMMENDED_CONFIG, LabelingConfig
from backend.labelstudio.config_patch import completed_config, config_diff

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


def test_a_new_project_gets_the_recommended_config() -> None:
    assert completed_config("<View></View>") == RECOMMENDED_CONFIG
    assert completed_config(RECOMMENDED_CONFIG) == RECOMMENDED_CONFIG


def test_the_diff_shows_what_comes() -> None:
    before = '<View>\n  <Image name="image" value="$image"/>\n</View>'

    lines = config_diff(before, completed_config(before)).splitlines()

    assert lines[:2] == ["--- before", "+++ after"]
    assert sum(line.startswith("+") for line in lines) == 8
    assert not [line for line in lines[2:] if line.startswith("-")]
