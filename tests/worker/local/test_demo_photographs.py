"""The demo's photographs: files, licences, suggestions, and the form that says which model answers."""

import xml.etree.ElementTree as ElementTree

from PIL import Image

from worker.local.demo import MODEL, PHOTOGRAPHS_CONFIG, SUGGESTIONS
from worker.local.demo_photographs import FOLDER, PHRASES, SOURCES, demo_photographs


def test_every_photograph_has_a_source_and_phrases() -> None:
    names = {path.stem for path in FOLDER.glob("*.jpg")}
    assert len(names) == 6
    assert names == SOURCES.keys() == PHRASES.keys()
    for picture in demo_photographs():
        with Image.open(picture.path) as image:
            assert min(image.size) >= 300
        assert [bool(phrase.targets) for phrase in picture.phrases] == [True, True, True, False]


def test_every_licence_permits_distribution() -> None:
    for source in SOURCES.values():
        assert source.endswith(("CC0", "public domain", "no known copyright restrictions"))


def test_the_form_shows_the_model_and_the_suggestions() -> None:
    headers = [header.get("value") for header in ElementTree.fromstring(PHOTOGRAPHS_CONFIG).iter("Header")]
    assert headers[:2] == [f"${MODEL}", f"${SUGGESTIONS}"]
